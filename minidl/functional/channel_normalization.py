"""Batch and group normalization: one fused op, of columns in segments, beside its definition.

Batch normalization is one segment, all rows, and each column is its own group; group normalization
has a segment for each item.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import primitive
from minidl.backend import Array, in_two, namespace
from minidl.errors import DtypeError, ShapeError
from minidl.functional.normalization import SPLIT, check_vectors, in_blocks
from minidl.graph import Tensor
from minidl.samples import Draw, call, samples

_BLOCK = 1 << 18  # elements that stay in the cache through the passes over them
SEGMENT = 1 << 14  # elements from which a segment is worth a dozen calls of its own


def batch_normalization(
    x: Any, gamma: Any = None, beta: Any = None, mask: Any = None, epsilon: float = 1e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, and mean and variance, of each channel
    over all other axes.

    x: (..., n); gamma, beta: (n,) or None; mask: x's shape without the last axis. What it leaves
    out is 0 in the result and does not count; where nothing counts mean and variance are 0. The
    variance is that of the sample, divided by its size. Statistics of float16 are taken, and
    returned, in float32. Raises ShapeError for other shapes, DtypeError for a mask that is not
    boolean. Ioffe and Szegedy 2015, algorithm 1.
    """
    shape = _checked("batch_normalization", x, gamma, beta, mask)
    rows = (1, math.prod(shape[:-1]))
    out, mean, variance = _normalize_columns(
        ops.reshape(x, (*rows, shape[-1])),
        gamma, beta, None if mask is None else ops.reshape(mask, rows), shape[-1], epsilon,
    )  # fmt: skip
    return ops.reshape(out, shape), mean[0], variance[0]


def group_normalization(
    x: Any,
    groups: int,
    gamma: Any = None,
    beta: Any = None,
    mask: Any = None,
    epsilon: float = 1e-3,
) -> Tensor:
    """As batch_normalization, but each item by itself, and its channels in `groups` equal groups:
    mean and variance are over all axes between the first and the last, and the group's channels.

    x: (batch, ..., n). Raises ShapeError for other shapes, or unless `groups` divides n. Wu and He
    2018; with n groups it is instance normalization.
    """
    shape = _checked("group_normalization", x, gamma, beta, mask)
    if len(shape) < 2:
        raise ShapeError(f"group_normalization: x: expected (batch, ..., n), got {shape}")
    if groups < 1 or shape[-1] % groups:
        raise ShapeError(
            f"group_normalization: groups: expected a divisor of {shape[-1]} channels, got {groups}"
        )
    rows = (shape[0], math.prod(shape[1:-1]))
    out, _, _ = _normalize_columns(
        ops.reshape(x, (*rows, shape[-1])),
        gamma, beta, None if mask is None else ops.reshape(mask, rows), groups, epsilon,
    )  # fmt: skip
    return ops.reshape(out, shape)


def _checked(op: str, x: Any, gamma: Any, beta: Any, mask: Any) -> tuple[int, ...]:
    """The shape of `x`, if the others fit it."""
    shape = check_vectors(op, x, gamma, beta)
    if mask is not None and mask.shape != shape[:-1]:
        raise ShapeError(
            f"{op}: mask: expected shape {shape[:-1]}, got {mask.shape}; give one entry for each "
            "vector of x"
        )
    if mask is not None and mask.dtype != np.bool_:
        raise DtypeError(
            f"{op}: mask: expected booleans (True = counts), got {mask.dtype}; use mask > 0"
        )
    return shape


# --- The fused op ---------------------------------------------------------------------------------


@primitive(floats=True, residuals=True)
def _normalize_columns(x, gamma, beta, mask, groups, epsilon):
    """x: (segments, rows, n) -> x of mean 0 and variance 1 in each segment and group of columns,
    and these (segments, n), each column with its group's. Keeps 1 / sqrt(variance + epsilon)."""
    forward = _forward if _in_segments(x) else _forward_portable
    out, mean, variance, scale = forward(_wide(x), gamma, beta, mask, groups, epsilon)
    return (out.astype(x.dtype, copy=False), mean, variance), scale


def _forward(x, gamma, beta, mask, groups, epsilon):
    out = np.empty(x.shape, x.dtype)
    mean, variance, scale = (np.empty((x.shape[0], x.shape[2]), x.dtype) for _ in range(3))

    def normalize(i):
        rows = x[i] if mask is None else x[i][mask[i]]
        mean[i], variance[i] = _statistics(rows, groups)
        scale[i] = 1 / np.sqrt(variance[i] + epsilon)
        factor = scale[i] if gamma is None else scale[i] * gamma
        shift = (0 if beta is None else beta) - mean[i] * factor
        target = out[i] if mask is None else np.empty(rows.shape, rows.dtype)

        def work(start, stop):
            part, result = _long(rows[start:stop]), _long(target[start:stop])
            np.multiply(part, _as_long(factor, part), out=result)
            result += _as_long(shift, part)

        in_blocks(work, rows.shape, _BLOCK, backwards=True)
        if mask is not None:
            _put(out[i], mask[i], target)

    _each(normalize, x)
    return out, mean, variance, scale


def _rule(g, x, gamma, mask, groups, out, kept, needs):
    """With c = x - mean, h = g * gamma, and m(.) the mean over rows and a group's columns:
    dx = (h - m(h) - c * scale^2 * m(h * c)) * scale, to which the gradients that come in by mean
    and variance add m(g_mean) and 2 c m(g_variance). Per column, that is a * g + b * c + d."""
    backward = _backward if _in_segments(x) else _backward_portable
    gradients = backward(g, _wide(x), gamma, mask, groups, out[1], kept)
    return tuple(d if needed else None for d, needed in zip(gradients, needs, strict=True))


def _backward(g, x, gamma, mask, groups, mean, scale):
    dx, by_gamma, by_beta = (np.empty(a.shape, a.dtype) for a in (x, scale, scale))
    upstream = _wide(g[0])

    def differentiate(i):
        rows, above = (x[i], upstream[i]) if mask is None else (x[i][mask[i]], upstream[i][mask[i]])
        count = max(len(rows), 1)
        sums, products = _sums_with(above, rows, mean[i])
        by_gamma[i], by_beta[i] = products * scale[i], sums
        a, b, d = _coefficients(
            sums, products, gamma, scale[i], g[1][i], g[2][i], lambda v: _pooled(v, count, groups)
        )
        d = d - b * mean[i]
        target = dx[i] if mask is None else np.empty(rows.shape, rows.dtype)

        def work(start, stop):
            part, result = _long(rows[start:stop]), _long(target[start:stop])
            np.multiply(part, _as_long(b, part), out=result)
            result += _as_long(d, part)
            result += _long(above[start:stop]) * _as_long(a, part)

        in_blocks(work, rows.shape, _BLOCK, backwards=True)
        if mask is not None:
            _put(dx[i], mask[i], target)

    _each(differentiate, x)
    return dx, by_gamma.sum(axis=0), by_beta.sum(axis=0)


def _coefficients(sums, products, gamma, scale, by_mean, by_variance, pooled):
    """a, b, d of `_rule`, from the sums of g and of g * c over the rows."""
    a = scale if gamma is None else scale * gamma
    b = 2 * pooled(by_variance) - scale * scale * pooled(products * a)
    return a, b, pooled(by_mean) - pooled(sums * a)


_normalize_columns.defvjp(joint=_rule, of=("x", "gamma", "beta"))


@_normalize_columns.define
def _(x, gamma, beta, mask, groups, epsilon):
    segments, rows, n = x.shape
    split = (segments, rows, groups, n // max(groups, 1))
    count = rows * split[3]
    if mask is not None:
        x = ops.where(mask[:, :, None], x, 0.0)
        mask = mask[:, :, None, None]
        count = ops.sum(mask, axis=(1, 2, 3), keepdims=True).astype(x.dtype) * split[3]

    def average(values):
        values = values if mask is None else ops.where(mask, values, 0.0)
        return ops.sum(values, axis=(1, 3), keepdims=True) / ops.maximum(count, 1)

    values = ops.reshape(x, split)
    mean = average(values)
    variance = average(ops.square(values - mean))
    out = ops.reshape((values - mean) / ops.sqrt(variance + epsilon), x.shape)
    out = out if gamma is None else out * gamma
    out = out if beta is None else out + beta
    if mask is not None:
        out = ops.where(mask[:, :, :, 0], out, 0.0)
    each = (segments, 1, groups, split[3])
    statistics = (ops.broadcast_to(v, each).reshape(segments, n) for v in (mean, variance))
    return (out, *statistics)


# --- Its parts ------------------------------------------------------------------------------------


def _in_segments(x: Array) -> bool:
    """Whether to go through the segments one by one: on NumPy, where they are large or few."""
    segments, rows, n = x.shape
    return type(x) is np.ndarray and (segments < 4 or rows * n >= SEGMENT)


def _wide(x: Array) -> Array:
    return x.astype(np.float32) if x.dtype.itemsize < 4 else x


def _each(work: Callable[[int], None], x: Array) -> None:
    """work(i) for each segment, half of them on the other thread where that pays."""
    count = len(x)

    def run(start: int, stop: int) -> None:
        for i in range(start, stop):
            work(i)

    if count < 2 or x.size < SPLIT:
        run(0, count)
    else:
        in_two(lambda: run(0, count // 2), lambda: run(count // 2, count))


def _statistics(rows: Array, groups: int) -> tuple[Array, Array]:
    """Mean and variance of each column, that of its group, from one pass over the rows: those of
    blocks, joined (Chan, Golub and LeVeque 1979)."""
    count = max(len(rows), 1)

    def work(start: int, stop: int) -> tuple[int, Array, Array]:
        part, ones = rows[start:stop], np.ones(stop - start, rows.dtype)
        mean = ones @ part / len(part)  # a product with ones is the fastest sum over rows
        long = _long(part)
        centred = np.subtract(long, _as_long(mean, long)).reshape(part.shape)
        rest = ones @ centred / len(part)  # what rounding has left of the mean
        squares = ones @ np.square(centred, out=centred)
        return len(part), mean + rest, squares - len(part) * np.square(rest)

    blocks = in_blocks(work, rows.shape, _BLOCK)
    zeros = np.zeros(rows.shape[1], rows.dtype)
    mean = _pooled(sum((n * part for n, part, _ in blocks), zeros), count, groups)
    squares = sum((part + n * np.square(m - mean) for n, m, part in blocks), zeros)
    return mean, _pooled(squares, count, groups)


def _sums_with(above: Array, rows: Array, mean: Array) -> tuple[Array, Array]:
    """The sums over rows of `above`, and of above * (rows - mean)."""

    def work(start: int, stop: int) -> tuple[Array, Array]:
        part, ones = _long(rows[start:stop]), np.ones(stop - start, rows.dtype)
        product = np.subtract(part, _as_long(mean, part))
        product *= _long(above[start:stop])
        return ones @ above[start:stop], ones @ product.reshape(len(ones), -1)

    blocks, zeros = in_blocks(work, rows.shape, _BLOCK), np.zeros_like(mean)
    return sum((s for s, _ in blocks), zeros), sum((p for _, p in blocks), zeros)


def _long(rows: Array) -> Array:
    """(r, n) as (r / k, k * n): NumPy is faster along longer rows. A view of what is contiguous."""
    count, n = rows.shape
    times = math.gcd(count, 1 << max(0, 10 - max(1, n).bit_length()))
    return rows.reshape(count // max(1, times), times * n)


def _as_long(vector: Array, rows: Array) -> Array:
    """(n,) as often in a row as fits `rows`, which come from `_long`."""
    return np.concatenate([vector] * (rows.shape[1] // max(1, len(vector))) or [vector])


def _put(out: Array, mask: Array, rows: Array) -> None:
    out[mask] = rows
    out[~mask] = 0


def _pooled(sums: Array, count: Any, groups: int) -> Array:
    """For each column, (..., n), the mean of its group, from sums over `count` rows."""
    n, sums = sums.shape[-1], sums / count
    if groups == n:
        return sums
    split = (*sums.shape[:-1], groups, n // groups)
    means = sums.reshape(split).mean(axis=-1, keepdims=True)
    return namespace(means).broadcast_to(means, split).reshape(sums.shape)


def _counts(x: Array, mask: Array | None) -> Any:
    """How many rows of each segment count, as (segments, 1), at least 1."""
    if mask is None:
        return max(x.shape[1], 1)
    return namespace(x).maximum(mask.sum(axis=1, keepdims=True), 1).astype(x.dtype)


def _forward_portable(x, gamma, beta, mask, groups, epsilon):
    xp, count = namespace(x), _counts(x, mask)
    real = None if mask is None else mask[:, :, None]
    x = x if real is None else xp.where(real, x, 0)
    mean = _pooled(x.sum(axis=1), count, groups)
    centred = x - mean[:, None]
    centred = centred if real is None else xp.where(real, centred, 0)
    variance = _pooled((centred * centred).sum(axis=1), count, groups)
    scale = 1 / xp.sqrt(variance + epsilon)
    out = centred * (scale if gamma is None else scale * gamma)[:, None]
    out = out if beta is None else out + beta
    return (out if real is None else xp.where(real, out, 0)), mean, variance, scale


def _backward_portable(g, x, gamma, mask, groups, mean, scale):
    xp, count = namespace(x), _counts(x, mask)
    above, centred = g[0].astype(x.dtype), x - mean[:, None]
    if mask is not None:
        above, centred = (xp.where(mask[:, :, None], v, 0) for v in (above, centred))
    sums, products = above.sum(axis=1), (above * centred).sum(axis=1)
    a, b, d = _coefficients(
        sums, products, gamma, scale, g[1], g[2], lambda v: _pooled(v, count, groups)
    )
    dx = above * a[:, None] + centred * b[:, None] + d[:, None]
    dx = dx if mask is None else xp.where(mask[:, :, None], dx, 0)
    return dx, (products * scale).sum(axis=0), sums.sum(axis=0)


@samples(batch_normalization)
def _(draw: Draw):
    shape = draw.shape(min_dims=1)
    return call(draw.array(shape), **_drawn(draw, shape))


@samples(group_normalization)
def _(draw: Draw):
    groups = draw.integer(1, 2)
    shape = (*draw.shape(min_dims=1, max_dims=2), groups * draw.integer(1, 2))
    return call(draw.array(shape), groups, **_drawn(draw, shape))


def _drawn(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    """gamma, beta, mask and epsilon, or some of them."""
    vectors = {name: draw.array(shape[-1:]) for name in ("gamma", "beta") if draw.boolean()}
    mask = draw.mask(shape[:-1]) if draw.boolean() else None
    return {**vectors, "mask": mask, "epsilon": draw.choice([0.05, 0.3])}
