"""How the outputs of a convolution or a pooling meet its inputs, along one axis or several."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from minidl.errors import ShapeError
from minidl.ops.shape import count_of

USED = 0.9  # share of an axis's products that meet inputs, up to which the others are left out

Sizes = tuple[int, ...]  # one number for each axis between the items and the channels


class Axis(NamedTuple):
    """How outputs meet inputs along an axis; `left` and `right` are widths of padding."""

    stride: int
    left: int
    right: int
    dilation: int = 1

    def reach(self, size: int) -> int:
        """From the first to the last entry of a window of `size` taps."""
        return self.dilation * (size - 1)

    def steps(self, length: int, size: int) -> int:
        """The number of outputs."""
        room = self.left + length + self.right - self.reach(size) - 1
        return max(room // self.stride + 1, 0)


class Geometry(NamedTuple):
    """How outputs meet inputs."""

    axes: tuple[Axis, ...]
    groups: int = 1

    def steps(self, lengths: Sizes, sizes: Sizes) -> Sizes:
        return tuple(a.steps(n, k) for a, n, k in zip(self.axes, lengths, sizes, strict=True))


def per_axis(op: str, name: str, value: Any, axes: int) -> Sizes:
    """`value`, a number or one for each axis, as numbers of 1 or more."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        raise ShapeError(f"{op}: {name}: expected a number or {axes} of them, got {value}")
    return tuple(count_of(op, name, n, least=1) for n in values)


def paddings(
    padding: Any, length: int, size: int, stride: int, dilation: int, op: str = "conv1d"
) -> tuple[int, int]:
    """`padding` along one axis as zeros on the left and on the right."""
    reach = dilation * (size - 1)
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding == "causal":
            return reach, 0
        if padding == "same":
            total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
            return total // 2, total - total // 2
        raise ValueError(
            f"{op}: padding: expected 'valid', 'same', 'causal', an integer or (left, right), got "
            f"{padding!r}; use one of them"
        )
    left, right = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    return count_of(op, "padding", left), count_of(op, "padding", right)


def meeting(tap: int, steps: int, length: int, axis: Axis) -> tuple[int, int, slice]:
    """The outputs low to high - 1 that see one of `length` inputs through `tap`, and those."""
    stride, offset = axis.stride, tap * axis.dilation - axis.left
    low = max(0, -(offset // stride))
    high = max(low, min(steps, -((offset - length) // stride)))
    return low, high, slice(low * stride + offset, (high - 1) * stride + offset + 1, stride)


class Run(NamedTuple):
    """Neighbouring outputs along the first axis, and the taps through which they see inputs."""

    outs: slice
    taps: slice


def runs_of(length: int, steps: int, size: int, axis: Axis, most: int) -> list[Run]:
    """Runs that leave out products with padding, where those are enough of them and the runs no
    more than `most`; else one of everything."""
    every = [Run(slice(0, steps), slice(0, size))]
    met = [meeting(tap, steps, length, axis)[:2] for tap in range(size)]
    if most < 2 or sum(high - low for low, high in met) > USED * steps * size:
        return every
    ends = sorted({0, steps, *(end for low, high in met if low < high for end in (low, high))})
    if len(ends) > most + 1:
        return every
    runs = []
    for first, stop in pairwise(ends):  # between two ends all outputs see the same taps
        seen = [tap for tap, (low, high) in enumerate(met) if low <= first < high]
        runs.append(Run(slice(first, stop), slice(seen[0], seen[-1] + 1) if seen else slice(0, 0)))
    return runs
