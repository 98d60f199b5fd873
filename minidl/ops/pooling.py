"""Pooling in windows along any number of axes, channels last.

All are linear where the maxima stay where they are, and each op's derivative is an op of this file:
gradients of any order run at full speed. Windows are taken axis by axis, as the maximum of an image
is that of its columns' maxima. Entries that tie for the maximum share the gradient equally.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples, stop_gradient
from minidl.backend import Array, namespace
from minidl.errors import ShapeError
from minidl.ops.elementwise import ones_like
from minidl.ops.geometry import Axis, meeting, paddings, per_axis
from minidl.ops.joining import pad, stack
from minidl.ops.shape import shape_of
from minidl.ops.windows import over_batch

__all__ = ["average_pool1d", "average_pool2d", "max_pool1d", "max_pool2d"]

PASS = 64  # an elementwise pass over an entry costs about as much as so many products
_BLOCK = 1 << 20  # bytes of the items that are gone through together: within a core's cache


# --- Windows --------------------------------------------------------------------------------------


def max_pool1d(x: Any, size: int = 2, stride: int | None = None, padding: str = "valid") -> Any:
    """The largest entry of each window of `size` steps: (batch, time, n) -> (batch, steps, n).

    A window begins every `stride` steps (None: `size`). padding: "valid" for whole windows only,
    "same" for ceil(time / stride) of them, where those at the ends see fewer entries. Raises
    ShapeError when not even one whole window fits, ValueError for another padding.
    """
    return _max_pool(x, _windows("max_pool1d", 1, x, size, stride, padding))


def max_pool2d(x: Any, size: Any = 2, stride: Any = None, padding: str = "valid") -> Any:
    """The largest entry of each window of an image: (batch, height, width, n) -> (batch, rows,
    columns, n).

    `size` and `stride` (None: `size`) are a number or (along height, along width); the rest is as
    for `max_pool1d`.
    """
    return _max_pool(x, _windows("max_pool2d", 2, x, size, stride, padding))


def average_pool1d(x: Any, size: int = 2, stride: int | None = None, padding: str = "valid") -> Any:
    """The mean of each window; arguments as for `max_pool1d`. Padding does not count."""
    return _average_pool(x, _windows("average_pool1d", 1, x, size, stride, padding))


def average_pool2d(x: Any, size: Any = 2, stride: Any = None, padding: str = "valid") -> Any:
    """The mean of each window; arguments as for `max_pool2d`. Padding does not count."""
    return _average_pool(x, _windows("average_pool2d", 2, x, size, stride, padding))


def _average_pool(x: Any, windows: Windows) -> Any:
    total = _window_sum(x, windows)
    if not any(w.axis.left or w.axis.right for w in windows):
        return total * (1 / math.prod(w.size for w in windows))
    ones = ones_like(x[(slice(1), *(slice(None) for _ in windows), slice(1))])
    return total / _window_sum(ones, windows)


class Window(NamedTuple):
    """The windows along one axis: `steps` of them, each of `size` entries."""

    size: int
    steps: int
    axis: Axis


Windows = tuple[Window, ...]  # one for each axis between the first and the last
_FORMS = {
    1: ("(batch, time, channels)", ("steps",)),
    2: ("(batch, height, width, channels)", ("rows", "columns")),
}


def _windows(op: str, axes: int, x: Any, size: Any, stride: Any, padding: str) -> Windows:
    """The windows along each axis, checked."""
    sizes = per_axis(op, "size", size, axes)
    strides = sizes if stride is None else per_axis(op, "stride", stride, axes)
    if padding not in ("valid", "same"):
        raise ValueError(f"{op}: padding: expected 'valid' or 'same', got {padding!r}")
    sides = items_of(op, x, axes)[1:-1]
    found = []
    for side, n, step, unit in zip(sides, sizes, strides, _FORMS[axes][1], strict=True):
        left, right = paddings(padding, side, n, step, 1, op)
        if 0 < side < n - left - right:
            raise ShapeError(
                f"{op}: x: expected at least {n} {unit} for a window of size {n}, got {side}; use "
                "padding='same'"
            )
        steps = 0 if side == 0 else (side + left + right - n) // step + 1
        found.append(Window(n, steps, Axis(step, left, right)))
    return tuple(found)


def items_of(op: str, x: Any, axes: int) -> tuple[int, ...]:
    """The shape of `x`, if it has so many axes between batch and channels."""
    shape = shape_of(x)
    if len(shape) != axes + 2:
        raise ShapeError(
            f"{op}: x: expected {_FORMS[axes][0]}, got {shape}; use x[None] for one item, "
            "x[..., None] for one channel"
        )
    return shape


def pool_definition(x: Any, windows: Windows, reduce: Callable, outside: float) -> Any:
    """What pooling is: all windows, one axis for the places in them, reduced over that axis."""
    x = pad(x, ((0, 0), *(w.axis[1:3] for w in windows), (0, 0)), constant_values=outside)
    places = []
    for taps in product(*(range(w.size) for w in windows)):
        starts = zip(taps, windows, strict=True)
        seen = (slice(t, t + w.steps * w.axis.stride, w.axis.stride) for t, w in starts)
        places.append(x[(slice(None), *seen)])
    return reduce(stack(places), axis=0)


@primitive(floats=True)
def _max_pool(x, windows):
    return _reduced("maximum", -np.inf, x, windows)


@primitive
def _max_spread(y, x, maxima, windows):
    """Each output of `_max_pool` to those entries of x that are its maximum, in equal shares."""
    dx = namespace(x).empty(x.shape, y.dtype)

    def work(items: slice) -> None:
        taps, count = _maxima_of(x[items], maxima[items], windows)
        part = y[items] if count is None else y[items] / count
        _spread(part, windows, taps, dx[items])

    _in_blocks(work, x)
    return dx


@primitive
def _max_pick(y, x, maxima, windows):
    """The mean of those entries of y where x has a window's maximum: `_max_spread` transposed."""
    picked = namespace(x).empty(maxima.shape, y.dtype)

    def work(items: slice) -> None:
        taps, count = _maxima_of(x[items], maxima[items], windows)
        total = _summed(y[items], windows, taps)
        picked[items] = total if count is None else total / count

    _in_blocks(work, x)
    return picked


_max_pool.defvjp(
    x=lambda g, x, out, windows: _max_spread(g, stop_gradient(x), stop_gradient(out), windows)
)
_max_spread.defvjp(y=lambda g, x, maxima, windows: _max_pick(g, x, maxima, windows))
_max_pick.defvjp(y=lambda g, x, maxima, windows: _max_spread(g, x, maxima, windows))


@primitive(floats=True)
def _window_sum(x, windows):
    return _reduced("add", 0, x, windows)


@primitive
def window_spread(y, sides, windows):
    """Each output to all entries of its window, of axes as long as `sides`: the transpose of
    `_window_sum`."""
    total = namespace(y).empty((y.shape[0], *sides, y.shape[-1]), y.dtype)
    taps = [_taps(w, axis, sides[axis - 1]) for axis, w in enumerate(windows, 1)]
    _in_blocks(lambda items: _spread(y[items], windows, taps, total[items]), total)
    return total


_window_sum.defvjp(x=lambda g, x_shape, windows: window_spread(g, x_shape[1:-1], windows))
window_spread.defvjp(y=lambda g, windows: _window_sum(g, windows))


# --- Windows, axis by axis ------------------------------------------------------------------------
# A tap is one place in the windows along an axis: (the windows that have an entry there, these
# entries, which of the entries count: None for all), the first two as indices.


def _taps(window: Window, axis: int, side: int) -> list[tuple[tuple, tuple, Array | None]]:
    before, taps = (slice(None),) * axis, []
    for tap in range(window.size):
        low, high, seen = meeting(tap, window.steps, side, window.axis)
        if low < high:
            taps.append(((*before, slice(low, high)), (*before, seen), None))
    return taps


def _reduced(name: str, neutral: float, x: Array, windows: Windows) -> Array:
    """All windows reduced by the array module's function `name`."""
    out = namespace(x).empty((x.shape[0], *(w.steps for w in windows), x.shape[-1]), x.dtype)

    def work(items: slice) -> None:
        part = x[items]
        for axis, window in enumerate(windows, 1):
            last = out[items] if axis == len(windows) else None
            part = _along(name, neutral, part, axis, window, last)

    _in_blocks(work, x)
    return out


def _along(
    name: str, neutral: float, x: Array, axis: int, window: Window, out: Array | None = None
) -> Array:
    """The windows along one axis reduced."""
    xp, taps = namespace(x), _taps(window, axis, x.shape[axis])
    reduce, whole = getattr(xp, name), not any(window.axis[1:3])
    if out is None:
        out = xp.empty((*x.shape[:axis], window.steps, *x.shape[axis + 1 :]), x.dtype)
    if whole and len(taps) > 1:
        (_, first, _), (_, second, _), *taps = taps
        reduce(x[first], x[second], out=out)
    else:
        out[...] = neutral
    for to, at, _ in taps:
        reduce(out[to], x[at], out=out[to])
    return out


def _maxima_of(x: Array, out: Array, windows: Windows) -> tuple[list[list], Array | None]:
    """The taps of each axis, with the entries that are maxima, and how many entries of x share each
    output (None: one each)."""
    xp, axes, alone = namespace(x), [], namespace(x) is np
    ones = xp.broadcast_to(xp.ones((), out.dtype), x.shape)
    for axis, window in enumerate(windows, 1):
        last = axis == len(windows)
        top = out if last else _along("maximum", -np.inf, x, axis, window)
        taps = [(to, at, x[at] == top[to]) for to, at, _ in _taps(window, axis, x.shape[axis])]
        alone = alone and sum(np.count_nonzero(hit) for _, _, hit in taps) == top.size
        axes.append(taps)
        x = top
    return axes, None if alone else _summed(ones, windows, axes)


def _summed(x: Array, windows: Windows, taps: list[list]) -> Array:
    """The sum of each window's entries, of those that the taps count."""
    for axis, (window, some) in enumerate(zip(windows, taps, strict=True), 1):
        shape = (*x.shape[:axis], window.steps, *x.shape[axis + 1 :])
        total = namespace(x).zeros(shape, x.dtype)
        for to, at, hit in some:
            total[to] += x[at] * hit
        x = total
    return x


def _spread(y: Array, windows: Windows, taps: list[list], out: Array) -> None:
    """Write to `out` what each window's value gives to its entries, those that the taps count."""
    xp = namespace(y)
    for axis in range(len(windows), 0, -1):
        size, stride, side = windows[axis - 1].size, windows[axis - 1].axis.stride, out.shape[axis]
        shape = (*y.shape[:axis], side, *y.shape[axis + 1 :])
        target = out if axis == 1 else xp.empty(shape, y.dtype)
        if stride != size or y.shape[axis] * size != side:  # else each entry is in one window
            target[...] = 0
        for to, at, hit in taps[axis - 1]:
            if stride < size:
                target[at] += y[to] if hit is None else y[to] * hit
            elif hit is None:
                target[at] = y[to]
            else:
                xp.multiply(y[to], hit, out=target[at])
        y = target


def _in_blocks(work: Callable[[slice], None], x: Array) -> None:
    """work(items) for blocks of the batch that fit the cache, half of them on the other thread."""
    batch = max(x.shape[0], 1)
    count = max(_BLOCK * batch // max(x.nbytes, 1), 1) if namespace(x) is np else batch

    def run(start: int, stop: int) -> None:
        for first in range(start, stop, count):
            work(slice(first, min(first + count, stop)))

    over_batch(run, x, PASS * x.size)


@samples(max_pool1d)
@samples(average_pool1d)
def _(draw: Draw):
    size, time = draw.integer(1, 3), draw.integer(3, 6)
    batch, channels = draw.shape(min_dims=2, max_dims=2, max_side=2)
    x = draw.array((batch, time, channels), -4.0, 4.0, distinct=True)
    return call(x, size, draw.choice([None, 1, 2, 3]), draw.choice(["valid", "same"]))


@samples(max_pool2d)
@samples(average_pool2d)
def _(draw: Draw):
    size, sides = _drawn(draw)
    batch, channels = draw.shape(min_dims=2, max_dims=2, max_side=2)
    x = draw.array((batch, *sides, channels), -4.0, 4.0, distinct=True)
    stride = draw.choice([None, 1, 2, (1, 3), (3, 2)])
    return call(x, size, stride, draw.choice(["valid", "same"]))


def _drawn(draw: Draw) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size of a window, and the sides of an image that it fits into."""
    size = (draw.integer(1, 3), draw.integer(1, 3))
    return size, (size[0] + draw.integer(0, 2), size[1] + draw.integer(0, 2))


def _spread_of(y: Any, ranks: Any, windows: Windows) -> Any:
    x = ranks.astype(y.dtype)
    return _max_spread(y, x, _max_pool(x, windows), windows)


def _pick_of(y: Any, ranks: Any, windows: Windows) -> Any:
    x = ranks.astype(y.dtype)
    return _max_pick(y, x, _max_pool(x, windows), windows)


def _ranked(draw: Draw) -> tuple[Array, Windows]:
    """Images with ties, and windows on them."""
    size, sides = _drawn(draw)
    ranks = draw.integers((draw.integer(1, 2), *sides, draw.integer(1, 2)), 0, 3)
    return ranks, _windows("max_pool2d", 2, ranks, size, draw.integer(1, 3), "same")


@samples(_spread_of)
def _(draw: Draw):
    ranks, windows = _ranked(draw)
    y = draw.array((len(ranks), *(w.steps for w in windows), ranks.shape[-1]))
    return call(y, ranks, windows)


@samples(_pick_of)
def _(draw: Draw):
    ranks, windows = _ranked(draw)
    return call(draw.array(ranks.shape), ranks, windows)


@samples(window_spread)
def _(draw: Draw):
    size, sides = _drawn(draw)
    batch, channels = draw.shape(min_dims=2, max_dims=2, max_side=2)
    stride = draw.integer(1, 3)
    windows = _windows("max_pool2d", 2, np.empty((1, *sides, 1)), size, stride, "same")
    y = draw.array((batch, *(w.steps for w in windows), channels))
    return call(y, sides, windows)
