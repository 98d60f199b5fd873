"""Parameters of one dtype and device as one array, and passes over it in blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl import backend
from minidl.backend import Array
from minidl.graph import Leaf, Parameter, wrap

BLOCK = 65_536  # elements that stay in the cache through all passes over them
SPLIT = 100_000  # elements from which half of the blocks goes to the other thread
_ALIGNMENT = 64  # bytes: each parameter starts on a cache line


class Task(NamedTuple):
    """A stretch of the flat buffer, the number of steps it has made, and whether it decays."""

    start: int
    stop: int
    steps: int = 0
    decays: bool = False


class Flat:
    """Parameters of one dtype and device as one array, their gradients as its twin, and the slots.

    `members` holds (number, parameter, its view of the gradients, start, stop) in order; stop is
    the next start, so a stretch may hold a few zeros that pad it to a cache line.
    """

    def __init__(
        self, parameters: list[tuple[int, Parameter]], slots: Sequence[str], scratch: int
    ) -> None:
        first = parameters[0][1]
        self.xp, self.device = backend.namespace(first._data), first.device
        self.wide = np.dtype(np.float32) if first.dtype.itemsize < 4 else first.dtype
        self.scratch = scratch
        step = _ALIGNMENT // first.dtype.itemsize
        starts = [0]
        for _, p in parameters:
            starts.append(starts[-1] + -(-p.size // step) * step)
        self.data = self._zeros(starts[-1], first.dtype)
        self.gradient = self._zeros(starts[-1], first.dtype)
        self.slots = {name: self._zeros(starts[-1], self.wide) for name in slots}
        self.members, self.views = [], []
        for (i, p), start, stop in zip(parameters, starts[:-1], starts[1:], strict=True):
            view = self.data[start : start + p.size].reshape(p.shape)
            gradient = self.gradient[start : start + p.size].reshape(p.shape)
            adopt(p, view, gradient)
            self.views.append(view)
            self.members.append((i, p, gradient, start, stop))
        self._work: list[Array] = []

    def _zeros(self, size: int, dtype: Any) -> Array:
        return backend.to_device(np.zeros(size, dtype), self.device)

    def run(self, tasks: list[Task], work: Callable) -> list[Any]:
        """work(self, task, scratch arrays) on every block of the tasks; its results in order."""

        def half(part: int, own: list[Task]) -> list[Any]:
            return [work(self, task, self._scratch(part, task.stop - task.start)) for task in own]

        if self.xp is not np:
            return half(0, tasks)
        blocks = [
            Task(i, min(i + BLOCK, stop), steps, decays)
            for start, stop, steps, decays in tasks
            for i in range(start, stop, BLOCK)
        ]
        if sum(task.stop - task.start for task in tasks) < SPLIT:
            return half(0, blocks)
        middle = len(blocks) // 2
        first, second = backend.in_two(
            lambda: half(0, blocks[:middle]), lambda: half(1, blocks[middle:])
        )
        return first + second

    def _scratch(self, part: int, size: int) -> list[Array]:
        """Arrays to overwrite: kept between steps on the CPU, from the device's pool elsewhere."""
        if self.xp is not np:
            return [self.xp.empty(size, dtype=self.wide) for _ in range(self.scratch)]
        if not self._work:
            length = min(BLOCK, self.data.size)
            self._work = [np.empty((self.scratch, length), self.wide) for _ in range(2)]
        return [row[:size] for row in self._work[part]]


def adopt(p: Parameter, view: Array, gradient: Array) -> None:
    """Make `view` the parameter's memory, and `gradient` where backward writes."""
    view[...] = p._data
    p._data = view
    if isinstance(p._node, Leaf):
        if p._node.grad is not None:
            gradient[...] = p._node.grad._data
            p._node.grad = wrap(gradient, None, p._node.written)
        p._node.buffer = gradient


def sum_of_squares(flat: Flat, task: Task, work: Sequence[Array]) -> Array:
    """Of the gradients of a stretch, in float64."""
    squares = flat.xp.square(flat.gradient[task.start : task.stop], out=work[0], dtype=flat.wide)
    return squares.sum(dtype=np.float64)
