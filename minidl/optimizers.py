"""Optimisers. All parameters of one dtype and device live in one flat buffer, their gradients in
its twin, and a step is a handful of in-place passes over both.

At construction each parameter's array becomes a view of the flat buffer; backward then writes its
gradient straight into the twin. On the CPU the passes go over blocks that stay in the cache, on
other devices over the whole buffer at once, since there every call costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

from minidl import backend, schedules
from minidl.backend import Array
from minidl.errors import SerializationError
from minidl.graph import Leaf, Parameter, wrap
from minidl.layers.layer import Layer

_BLOCK = 32_768  # elements that stay in the cache through all passes over them
_SPLIT = 100_000  # elements from which half of the blocks goes to the other thread
_ALIGNMENT = 64  # bytes: each parameter starts on a cache line

Task = tuple[int, int, int]  # a stretch of the flat buffer, and the number of steps it has made


class Optimizer:
    """Base of optimisers: a subclass names its state arrays (`slots`) and writes `update`.

    parameters: a layer, or parameters (a tied one may occur twice).
    learning_rate: a number, or a schedule: a function of the number of steps already made.
    global_clipnorm: scale all gradients together so that their common norm is at most this.
    clipvalue: clip each entry of the gradients to [-clipvalue, clipvalue].

    As in PyTorch, a parameter without a gradient (frozen, or not used) is passed over: neither it
    nor its state changes. An array kept from `p.grad` shows the next gradient after the next
    backward: copy what is to last. Parameters that another optimiser or `to` has moved are gathered
    again at the next step, with their state.

    Raises BuildError for a layer that is not built, ValueError when there are no parameters.
    """

    slots: tuple[str, ...] = ()
    scratch = 1  # how many arrays of the block's size `update` needs

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float],
        global_clipnorm: float | None = None,
        clipvalue: float | None = None,
        **unknown: Any,
    ) -> None:
        if unknown:
            mend = {"lr": "learning_rate", "betas": "beta_1 and beta_2", "eps": "epsilon"}
            name = min(unknown)
            raise TypeError(
                f"{type(self).__name__}: unexpected argument {name!r}"
                + (f"; use {mend[name]}" if name in mend else "")
            )
        if isinstance(parameters, Layer):
            parameters = parameters.parameters()
        self.parameters = list({id(p): p for p in parameters}.values())
        self._check(learning_rate, global_clipnorm, clipvalue)
        self.learning_rate = learning_rate
        self.global_clipnorm = global_clipnorm
        self.clipvalue = clipvalue
        self.iterations = 0
        self._counts = [0] * len(self.parameters)  # steps that each parameter has made
        self._gather()

    def _check(self, learning_rate: Any, global_clipnorm: Any, clipvalue: Any) -> None:
        name = type(self).__name__
        if not self.parameters:
            raise ValueError(f"{name}: parameters: expected at least one Parameter, got none")
        for p in self.parameters:
            if not isinstance(p, Parameter):
                raise TypeError(
                    f"{name}: parameters: expected Parameters, got {type(p).__name__}; pass a "
                    "layer or layer.parameters()"
                )
        if not callable(learning_rate) and not learning_rate >= 0:
            raise ValueError(f"{name}: learning_rate: expected 0 or more, got {learning_rate}")
        for what, limit in (("global_clipnorm", global_clipnorm), ("clipvalue", clipvalue)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name}: {what}: expected more than 0, got {limit}")
        if global_clipnorm is not None and clipvalue is not None:
            raise ValueError(f"{name}: give one of global_clipnorm and clipvalue, not both")

    # What subclasses write

    def update(
        self, xp: Any, p: Array, g: Array, state: Sequence[Array], work: Sequence[Array],
        rate: float, count: int,
    ) -> None:  # fmt: skip
        """Change a stretch `p` of the parameters in place, given its gradient `g`.

        state: this stretch of each slot; work: `scratch` arrays to overwrite; rate: the learning
        rate; count: how many steps these parameters have made, with this one.
        """
        raise NotImplementedError(f"{type(self).__name__}: write update(...)")

    # What users call

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        rate = self.learning_rate
        return float(rate(self.iterations) if callable(rate) else rate)

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for p in self.parameters:
            if p._node is not None:
                p._node.grad = None  # type: ignore[union-attr]

    def step(self) -> None:
        """Change every parameter that has a gradient."""
        self._gather_moved()
        rate = self.rate
        tasks = [self._tasks(flat) for flat in self._flats]
        scales = self._clip_scales(tasks)
        for flat, own, scale in zip(self._flats, tasks, scales, strict=True):
            flat.run(own, partial(self._step_block, rate, scale))
        self.iterations += 1

    def _step_block(
        self, rate: float, scale: Any,
        flat: _Flat, start: int, stop: int, count: int, work: Sequence[Array],
    ) -> None:  # fmt: skip
        xp, g = flat.xp, flat.gradient[start:stop]
        if self.clipvalue is not None:
            xp.clip(g, -self.clipvalue, self.clipvalue, out=g)
        if scale is not None:
            xp.multiply(g, scale, out=g)
        state = [flat.slots[name][start:stop] for name in self.slots]
        self.update(xp, flat.data[start:stop], g, state, work, rate, count)

    def _tasks(self, flat: _Flat) -> list[Task]:
        """The stretches of `flat` that have gradients, merged where they meet; counts the step."""
        tasks: list[Task] = []
        for i, p, gradient, start, stop in flat.members:
            leaf = p._node
            if leaf is None or leaf.grad is None:  # type: ignore[union-attr]
                continue
            if leaf.grad._data is not gradient:  # type: ignore[union-attr]
                gradient[...] = leaf.grad._data  # type: ignore[union-attr]
                leaf.buffer, leaf.grad = gradient, wrap(gradient, None, leaf.written)  # type: ignore[union-attr]
            leaf.grad._touch()  # type: ignore[union-attr]  # clipping writes into it
            p._touch()
            count = self._counts[i] = self._counts[i] + 1
            if tasks and tasks[-1][1] == start and tasks[-1][2] == count:
                tasks[-1] = (tasks[-1][0], stop, count)
            else:
                tasks.append((start, stop, count))
        return tasks

    def _clip_scales(self, tasks: list[list[Task]]) -> list[Any]:
        """What to multiply the gradients of each buffer by: scalars that stay on its device."""
        if self.global_clipnorm is None or not any(tasks):
            return [None] * len(tasks)
        total: Any = 0.0
        for flat, own in zip(self._flats, tasks, strict=True):
            for part in flat.run(own, _sum_of_squares):
                device = backend.device_of(total) if backend.is_array(total) else flat.device
                total = backend.to_device(part, device) + total
        xp, limit = backend.namespace(total), self.global_clipnorm
        # A NaN scale would stay in the zeros between parameters, and in every norm from then on.
        norm = xp.where(xp.isfinite(total), xp.sqrt(total), xp.inf)
        scale = limit / xp.maximum(norm, limit)
        return [backend.to_device(scale.astype(f.wide), f.device) for f in self._flats]

    # Gathering

    def _gather(self, carried: dict[int, dict[str, Array]] | None = None) -> None:
        """Lay all parameters into flat buffers, with the state in `carried` (else zeros)."""
        kinds: dict[tuple, list[int]] = {}
        for i, p in enumerate(self.parameters):
            kinds.setdefault((p.dtype, p.device), []).append(i)
        self._flats = [
            _Flat([(i, self.parameters[i]) for i in indices], self.slots, self.scratch)
            for indices in kinds.values()
        ]
        if carried:
            self._write_slots(carried)

    def _write_slots(self, values: dict[int, dict[str, Array]]) -> None:
        for flat in self._flats:
            for i, p, _, start, _ in flat.members:
                for name in self.slots:
                    value = backend.to_device(values[i][name], flat.device).reshape(-1)
                    flat.slots[name][start : start + p.size] = value

    def _read_slots(self) -> dict[int, dict[str, Array]]:
        return {
            i: {n: flat.slots[n][start : start + p.size].reshape(p.shape) for n in self.slots}
            for flat in self._flats
            for i, p, _, start, _ in flat.members
        }

    def _gather_moved(self) -> None:
        """Take back parameters whose arrays are no longer ours."""
        for flat in self._flats:
            for (_, p, gradient, _, _), view in zip(flat.members, flat.views, strict=True):
                if p._data is view:
                    continue
                if p._data.dtype != view.dtype or p.device != flat.device:
                    self._gather(self._read_slots())
                    return
                _adopt(p, view, gradient)

    # State

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next steps depend on but the parameters; arrays are host copies.

        A schedule of minidl's is part of it; any other function is not.
        """
        rate = self.learning_rate
        slots = {
            str(i): {name: np.array(backend.to_host(a)) for name, a in own.items()}
            for i, own in sorted(self._read_slots().items())
        }
        return {
            "optimizer": type(self).__name__,
            "iterations": self.iterations,
            "learning_rate": (
                rate.state_dict() if isinstance(rate, schedules.Schedule)
                else None if callable(rate) else float(rate)
            ),
            "counts": list(self._counts),
            "slots": slots,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave.

        Raises SerializationError for the state of another optimiser or of other parameters.
        """
        name = type(self).__name__
        if state.get("optimizer") != name:
            raise SerializationError(f"{name}: got the state of {state.get('optimizer')!r}")
        expected = [dict.fromkeys(self.slots, p.shape) for p in self.parameters]
        slots = {int(i): own for i, own in state["slots"].items()}
        given = [{n: np.shape(a) for n, a in slots[i].items()} for i in sorted(slots)]
        if given != expected or len(state["counts"]) != len(expected):
            raise SerializationError(
                f"{name}: the state is of parameters of other shapes: expected {expected}, got "
                f"{given}; build the model as it was when saved"
            )
        self.iterations = state["iterations"]
        self._counts = list(state["counts"])
        rate = state["learning_rate"]
        if rate is not None:
            self.learning_rate = schedules.from_state(rate) if isinstance(rate, dict) else rate
        self._write_slots(slots)

    def __repr__(self) -> str:
        n = sum(p.size for p in self.parameters)
        return f"{type(self).__name__}({n:,} parameters, learning_rate={self.learning_rate})"


class _Flat:
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
            _adopt(p, view, gradient)
            self.views.append(view)
            self.members.append((i, p, gradient, start, stop))
        self._work: list[Array] = []

    def _zeros(self, size: int, dtype: Any) -> Array:
        return backend.to_device(np.zeros(size, dtype), self.device)

    def run(self, tasks: list[Task], work: Callable) -> list[Any]:
        """work(self, start, stop, count, scratch arrays) on every block; its results in order."""
        if self.xp is not np:
            return [work(self, *task, self._scratch(0, task[1] - task[0])) for task in tasks]
        blocks = [
            (i, min(i + _BLOCK, stop), count)
            for start, stop, count in tasks
            for i in range(start, stop, _BLOCK)
        ]

        def half(part: int, own: list[Task]) -> list[Any]:
            return [work(self, a, b, n, self._scratch(part, b - a)) for a, b, n in own]

        if sum(stop - start for start, stop, _ in tasks) < _SPLIT:
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
            length = min(_BLOCK, self.data.size)
            self._work = [np.empty((self.scratch, length), self.wide) for _ in range(2)]
        return [row[:size] for row in self._work[part]]


def _adopt(p: Parameter, view: Array, gradient: Array) -> None:
    """Make `view` the parameter's memory, and `gradient` where backward writes."""
    view[...] = p._data
    p._data = view
    if isinstance(p._node, Leaf):
        if p._node.grad is not None:
            gradient[...] = p._node.grad._data
            p._node.grad = wrap(gradient, None, p._node.written)
        p._node.buffer = gradient


def _sum_of_squares(flat: _Flat, start: int, stop: int, count: int, work: Sequence[Array]) -> Array:
    squares = flat.xp.square(flat.gradient[start:stop], out=work[0], dtype=flat.wide)
    return squares.sum(dtype=np.float64)


# --- The optimisers -------------------------------------------------------------------------------


class SGD(Optimizer):
    """p -= rate * g; with momentum v = momentum * v + g and p -= rate * v, with `nesterov`
    p -= rate * (g + momentum * v) (Sutskever et al. 2013, in PyTorch's form)."""

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **clipping: Any,
    ) -> None:
        self.momentum = momentum
        self.nesterov = nesterov
        if nesterov and not momentum:
            raise ValueError("SGD: nesterov: needs momentum; give momentum=0.9")
        self.slots = ("velocity",) if momentum else ()
        super().__init__(parameters, learning_rate, **clipping)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        step = work[0]
        if not self.momentum:
            xp.multiply(g, rate, out=step)
        else:
            velocity = state[0]
            velocity *= self.momentum
            velocity += g
            if self.nesterov:
                xp.multiply(velocity, self.momentum, out=step)
                step += g
                step *= rate
            else:
                xp.multiply(velocity, rate, out=step)
        p -= step


class Adam(Optimizer):
    """p -= rate * m / (sqrt(v) + epsilon), m and v the bias-corrected moving averages of g and g^2
    (Kingma and Ba 2015, algorithm 1).

    The slots hold sum(beta^k g) and sum(beta^k g^2): the factors (1 - beta) and the correction of
    the bias are folded into two scalars.
    """

    slots = ("momentum", "velocity")
    weight_decay = 0.0

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **clipping: Any,
    ) -> None:
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= beta < 1:
                raise ValueError(f"Adam: {name}: expected a number in [0, 1), got {beta}")
        self.beta_1, self.beta_2, self.epsilon = beta_1, beta_2, epsilon
        super().__init__(parameters, learning_rate, **clipping)

    def update(self, xp, p, g, state, work, rate, count):  # type: ignore[no-untyped-def]
        (momentum, velocity), step = state, work[0]
        root = math.sqrt((1 - self.beta_2) / (1 - self.beta_2**count))
        if self.weight_decay:
            p *= 1 - rate * self.weight_decay
        momentum *= self.beta_1
        momentum += g
        velocity *= self.beta_2
        velocity += xp.square(g, out=step, dtype=step.dtype)
        xp.sqrt(velocity, out=step)
        step += self.epsilon / root
        xp.divide(momentum, step, out=step)
        step *= rate * (1 - self.beta_1) / (1 - self.beta_1**count) / root
        p -= step


class AdamW(Adam):
    """Adam with decoupled weight decay: p *= 1 - rate * weight_decay before each step (Loshchilov
    and Hutter 2019, algorithm 2)."""

    def __init__(
        self,
        parameters: Layer | Iterable[Parameter],
        learning_rate: float | Callable[[int], float] = 1e-3,
        weight_decay: float = 0.01,
        **options: Any,
    ) -> None:
        self.weight_decay = weight_decay
        super().__init__(parameters, learning_rate, **options)
