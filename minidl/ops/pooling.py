"""Pooling over time, channels last: in windows, and of whole sequences with a mask.

The two averages are linear; each is a pair of ops that are each other's derivative. The two maxima
are fused ops beside their definitions; entries that tie for the maximum share the gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import Array, namespace
from minidl.errors import DtypeError, ShapeError
from minidl.ops.convolution import Geometry, meeting, over_batch, paddings
from minidl.ops.elementwise import ones_like, where
from minidl.ops.indexing import getitem
from minidl.ops.joining import pad, stack
from minidl.ops.reduction import any, max, sum
from minidl.ops.shape import count_of, shape_of

__all__ = ["average_pool1d", "max_over_time", "max_pool1d", "mean_over_time"]

_PASS = 64  # an elementwise pass over an entry costs about as much as so many products


# --- Windows --------------------------------------------------------------------------------------


def max_pool1d(x: Any, size: int = 2, stride: int | None = None, padding: str = "valid") -> Any:
    """The largest entry of each window of `size` steps: (batch, time, n) -> (batch, steps, n).

    A window begins every `stride` steps (None: `size`). padding: "valid" for whole windows only,
    "same" for ceil(time / stride) of them, where those at the ends see fewer entries. Raises
    ShapeError when not even one whole window fits, ValueError for another padding.
    """
    return _max_pool(x, *_windows("max_pool1d", x, size, stride, padding))


def average_pool1d(x: Any, size: int = 2, stride: int | None = None, padding: str = "valid") -> Any:
    """The mean of each window; arguments as for `max_pool1d`. Padding does not count."""
    windows = _windows("average_pool1d", x, size, stride, padding)
    total = _window_sum(x, *windows)
    if padding == "valid":
        return total * (1 / size)
    return total / _window_sum(ones_like(x[:1, :, :1]), *windows)


def _windows(
    op: str, x: Any, size: int, stride: int | None, padding: str
) -> tuple[int, int, Geometry]:
    """(size, number of outputs, geometry), checked."""
    stride = size if stride is None else stride
    for name, value in (("size", size), ("stride", stride)):
        if count_of(op, name, value) == 0:
            raise ShapeError(f"{op}: {name}: expected 1 or more, got 0; use 1")
    if padding not in ("valid", "same"):
        raise ValueError(f"{op}: padding: expected 'valid' or 'same', got {padding!r}")
    time = _sequences(op, x)[1]
    left, right = paddings(padding, time, size, stride, 1)
    if 0 < time < size - left - right:
        raise ShapeError(
            f"{op}: x: expected at least {size} steps for a window of size {size}, got {time}; "
            "use padding='same'"
        )
    steps = 0 if time == 0 else (time + left + right - size) // stride + 1
    return size, steps, Geometry(stride, left, right, 1, 1)


def _sequences(op: str, x: Any) -> tuple[int, ...]:
    shape = shape_of(x)
    if len(shape) != 3:
        raise ShapeError(
            f"{op}: x: expected (batch, time, channels), got {shape}; use x[None] for one item, "
            "x[..., None] for one channel"
        )
    return shape


@primitive(floats=True)
def _max_pool(x, size, steps, geometry):
    xp, time = namespace(x), x.shape[1]
    out = xp.empty((x.shape[0], steps, x.shape[2]), x.dtype)

    def work(start: int, stop: int) -> None:
        part = out[start:stop]
        part[...] = -np.inf
        for tap in range(size):
            low, high, seen = meeting(tap, steps, time, geometry)
            if low < high:
                some = part[:, low:high]
                xp.maximum(some, x[start:stop, seen], out=some)

    over_batch(work, x, _PASS * x.size)
    return out


def _max_pool_by_x(g, x, out, size, steps, geometry):
    """A window's gradient goes to the entries that equal its maximum."""
    xp, time = namespace(x), x.shape[1]
    dx = xp.zeros(x.shape, g.dtype)

    def work(start: int, stop: int) -> None:
        hits, count = [], xp.zeros(g[start:stop].shape, g.dtype)
        for tap in range(size):
            low, high, seen = meeting(tap, steps, time, geometry)
            if low < high:
                hit = x[start:stop, seen] == out[start:stop, low:high]
                count[:, low:high] += hit
                hits.append((low, high, seen, hit))
        share = xp.divide(g[start:stop], count, out=count)
        for low, high, seen, hit in hits:
            if geometry.stride >= size:  # no entry is in two windows
                xp.multiply(share[:, low:high], hit, out=dx[start:stop, seen])
            else:
                dx[start:stop, seen] += share[:, low:high] * hit

    over_batch(work, x, _PASS * x.size)
    return dx


_max_pool.defvjp(x=_max_pool_by_x)


@_max_pool.define
def _(x, size, steps, geometry):
    if steps == 0:
        return sum(x, axis=1, keepdims=True)[:, :0]
    padded = pad(x, ((0, 0), geometry[1:3], (0, 0)), constant_values=-np.inf)
    reach = (steps - 1) * geometry.stride + 1
    return max(stack([padded[:, t : t + reach : geometry.stride] for t in range(size)]), axis=0)


@primitive(floats=True)
def _window_sum(x, size, steps, geometry):
    total = namespace(x).zeros((x.shape[0], steps, x.shape[2]), x.dtype)
    for tap in range(size):
        low, high, seen = meeting(tap, steps, x.shape[1], geometry)
        if low < high:
            total[:, low:high] += x[:, seen]
    return total


@primitive
def _window_spread(y, time, size, geometry):
    """Each output to all entries of its window: the transpose of `_window_sum`."""
    total = namespace(y).zeros((y.shape[0], time, y.shape[2]), y.dtype)
    for tap in range(size):
        low, high, seen = meeting(tap, y.shape[1], time, geometry)
        if low < high:
            total[:, seen] += y[:, low:high]
    return total


_window_sum.defvjp(
    x=lambda g, x_shape, size, geometry: _window_spread(g, x_shape[1], size, geometry)
)
_window_spread.defvjp(
    y=lambda g, y_shape, size, geometry: _window_sum(g, size, y_shape[1], geometry)
)


@samples(max_pool1d)
@samples(average_pool1d)
def _(draw: Draw):
    size, time = draw.integer(1, 3), draw.integer(3, 6)
    batch, channels = draw.shape(min_dims=2, max_dims=2, max_side=2)
    x = draw.array((batch, time, channels), -4.0, 4.0, distinct=True)
    return call(x, size, draw.choice([None, 1, 2, 3]), draw.choice(["valid", "same"]))


@samples(_window_spread)
def _(draw: Draw):
    size, stride, steps = (draw.integer(1, 3) for _ in range(3))
    left, right = (draw.integer(0, size // 2) for _ in range(2))
    time = (steps - 1) * stride + size - left - right + draw.integer(1, 2)
    y = draw.array((draw.integer(1, 2), steps, draw.integer(1, 2)))
    return call(y, time, size, Geometry(stride, left, right, 1, 1))


# --- Whole sequences ------------------------------------------------------------------------------


def mean_over_time(x: Any, mask: Any = None) -> Any:
    """The mean of the steps that `mask` (batch, time) keeps: (batch, time, n) -> (batch, n).

    What is masked does not count, whatever stands there; an empty row gives zeros. Raises
    ShapeError for other shapes, DtypeError for a mask that is not boolean.
    """
    _check_mask("mean_over_time", x, mask)
    return _mean(x, mask)


def max_over_time(x: Any, mask: Any = None) -> Any:
    """The largest entry of each channel over the steps that `mask` keeps; as `mean_over_time`."""
    _check_mask("max_over_time", x, mask)
    return _max(x, mask)


def _check_mask(op: str, x: Any, mask: Any) -> None:
    expected = _sequences(op, x)[:2]
    if mask is None:
        return
    if shape_of(mask) != expected:
        raise ShapeError(
            f"{op}: mask: expected shape {expected}, got {shape_of(mask)}; give (batch, time)"
        )
    if mask.dtype != np.bool_:
        raise DtypeError(
            f"{op}: mask: expected booleans (True = keep), got {mask.dtype}; use mask != 0"
        )


def _weights(xp: Any, mask: Array | None, shape: tuple[int, ...], dtype: Any) -> Array:
    """(batch, time): what each step counts in its row's mean."""
    if mask is None:
        return xp.full(shape, 1 / (shape[1] or 1), dtype)
    kept = mask.astype(dtype)
    kept /= xp.maximum(kept.sum(axis=1, keepdims=True), 1)
    return kept


@primitive(floats=True)
def _mean(x, mask):
    """As products of rows of weights with the steps, the fastest way to sum over a middle axis."""
    xp, dtype = namespace(x), np.result_type(x.dtype, np.float32)
    weights = _weights(xp, mask, x.shape[:2], dtype)[:, None, :]
    if mask is None:
        return xp.matmul(weights, x)[:, 0].astype(x.dtype, copy=False)
    if xp is np:  # 0 * inf would be nan: look for it afterwards, in the small result
        with np.errstate(invalid="ignore"):
            out = np.matmul(weights, x)[:, 0]
        if np.isfinite(out).all():
            return out.astype(x.dtype, copy=False)
    kept = xp.where(mask[:, :, None], x, 0)
    return xp.matmul(weights, kept)[:, 0].astype(x.dtype, copy=False)


@primitive
def _mean_spread(y, mask, time):
    """The transpose of `_mean`: y[:, None] times each step's weight."""
    weights = _weights(namespace(y), mask, (y.shape[0], time), y.dtype)
    return y[:, None, :] * weights[:, :, None]


_mean.defvjp(x=lambda g, mask, x_shape: _mean_spread(g, mask, x_shape[1]))
_mean_spread.defvjp(y=lambda g, mask: _mean(g, mask))


@primitive(floats=True)
def _max(x, mask):
    xp, (batch, time, channels) = namespace(x), x.shape
    if time == 0:
        return xp.zeros((batch, channels), x.dtype)
    if mask is None:
        return x.max(axis=1)
    if xp is not np:
        top = xp.where(mask[:, :, None], x, -np.inf).max(axis=1)
        return xp.where(mask.any(axis=1)[:, None], top, 0)
    out = np.zeros((batch, channels), x.dtype)
    for row, steps, kept in zip(out, x, mask, strict=True):
        count = np.count_nonzero(kept)
        if count:
            padded_right = kept[:count].all()  # then nothing has to be copied
            np.maximum.reduce(steps[:count] if padded_right else steps[kept], axis=0, out=row)
    return out


def _max_by_x(g, x, out, mask):
    xp = namespace(x)
    dx = xp.empty(x.shape, g.dtype)

    def work(start: int, stop: int) -> None:
        hit = x[start:stop] == out[start:stop, None, :]
        if mask is not None:
            hit &= mask[start:stop, :, None]
        share = g[start:stop]
        if xp is not np or np.count_nonzero(hit) != _maxima(mask, start, stop) * x.shape[2]:  # ties
            share = share / xp.maximum(hit.sum(axis=1), 1).astype(g.dtype)
        xp.multiply(hit, share[:, None, :], out=dx[start:stop])

    over_batch(work, x, _PASS * x.size)
    return dx


def _maxima(mask: Array | None, start: int, stop: int) -> int:
    """How many of these rows have a maximum: those that are not empty."""
    return stop - start if mask is None else int(mask[start:stop].any(axis=1).sum())


_max.defvjp(x=_max_by_x)


@_max.define
def _(x, mask):
    if shape_of(x)[1] == 0:
        return sum(x, axis=1)
    if mask is None:
        return max(x, axis=1)
    top = max(where(getitem(mask, (..., None)), x, -np.inf), axis=1)
    return where(any(mask, axis=1, keepdims=True), top, 0.0)


@samples(mean_over_time)
@samples(max_over_time)
def _(draw: Draw):
    shape = draw.shape(min_dims=3, max_dims=3, max_side=3)
    x = draw.array(shape, -4.0, 4.0, distinct=True)
    return call(x, draw.mask(shape[:2]) if draw.boolean() else None)


@samples(_mean_spread)
def _(draw: Draw):
    shape = draw.shape(min_dims=3, max_dims=3, max_side=3)
    mask = draw.mask(shape[:2]) if draw.boolean() else None
    return call(draw.array((shape[0], shape[2])), mask, shape[1])
