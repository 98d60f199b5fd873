"""Pooling of whole sequences with a mask, channels last.

The mean is linear, and its two ops are each other's derivative. The maximum is a fused op beside
its definition; steps that tie for it share the gradient.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import Array, namespace
from minidl.errors import DtypeError, ShapeError
from minidl.ops.elementwise import where
from minidl.ops.indexing import getitem
from minidl.ops.pooling import PASS, items_of
from minidl.ops.reduction import any, max, sum
from minidl.ops.shape import shape_of
from minidl.ops.windows import over_batch

__all__ = ["max_over_time", "mean_over_time"]


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
    expected = items_of(op, x, 1)[:2]
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
    xp, (batch, channels) = namespace(y), y.shape
    out = xp.empty((batch, time, channels), y.dtype)
    weights = None if mask is None else _weights(xp, mask, (batch, time), y.dtype)

    def work(start: int, stop: int) -> None:
        if weights is None:
            out[start:stop] = (y[start:stop] * (1 / (time or 1)))[:, None]
        else:
            part = weights[start:stop, :, None]
            xp.multiply(y[start:stop, None], part, out=out[start:stop])

    over_batch(work, y, PASS * out.size)
    return out


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

    over_batch(work, x, PASS * x.size)
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
