"""Layer normalization: one fused op beside its definition."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import primitive
from minidl.backend import Array, in_two, namespace
from minidl.errors import ShapeError
from minidl.graph import Tensor
from minidl.samples import Draw, call, samples

_BLOCK = 1 << 16  # elements that stay in the cache through all passes over them
SPLIT = 100_000  # elements from which half of the rows goes to the other thread


def layer_normalization(
    x: Any, gamma: Any = None, beta: Any = None, epsilon: float = 1e-3
) -> Tensor:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, over the last axis.

    x: (..., n); gamma, beta: (n,) or None. Statistics of float16 are taken in float32. Raises
    ShapeError for other shapes. Ba, Kiros and Hinton 2016, eq. 4.
    """
    check_vectors("layer_normalization", x, gamma, beta)
    return _normalize(x, gamma, beta, epsilon)


def check_vectors(op: str, x: Any, gamma: Any, beta: Any) -> tuple[int, ...]:
    """The shape of `x`, if `gamma` and `beta` fit its last axis."""
    shape = np.shape(x)
    if not shape:
        raise ShapeError(f"{op}: x: expected one axis or more, got a scalar")
    for name, value in (("gamma", gamma), ("beta", beta)):
        if value is not None and np.shape(value) != shape[-1:]:
            raise ShapeError(
                f"{op}: {name}: expected shape {shape[-1:]}, got {np.shape(value)}; give one entry "
                "for each of the last axis of x"
            )
    return shape


@primitive(floats=True, residuals=True)
def _normalize(x, gamma, beta, epsilon):
    """The fused op; keeps the normalized rows and 1 / sqrt(variance + epsilon)."""
    rows = _rows(x)
    xp = namespace(rows)
    if xp is not np:
        centred = rows - _mean(rows)
        scale = 1 / xp.sqrt(_mean(centred * centred) + epsilon)
        normal = centred * scale
        out = normal if gamma is None else normal * gamma
        out = out if beta is None else out + beta
        return out.astype(x.dtype).reshape(x.shape), (normal, scale)
    out, normal = np.empty_like(rows), np.empty_like(rows)
    scale = np.empty((len(rows), 1), rows.dtype)

    def normalize(start, stop):
        np.subtract(rows[start:stop], _mean(rows[start:stop]), out=normal[start:stop])
        part = normal[start:stop]
        variance = np.einsum("ij,ij->i", part, part)[:, None] * (1 / max(1, part.shape[1]))
        scale[start:stop] = 1 / np.sqrt(variance + epsilon)
        part *= scale[start:stop]
        np.multiply(part, 1 if gamma is None else gamma, out=out[start:stop])
        if beta is not None:
            out[start:stop] += beta

    in_blocks(normalize, rows.shape)
    return out.astype(x.dtype, copy=False).reshape(x.shape), (normal, scale)


def _normalize_rule(g, gamma, gamma_dtype, kept, needs):
    """The gradient in closed form: with y the normalized row and h = g * gamma,
    dx = (h - mean(h) - y * mean(h * y)) * scale."""
    normal, scale = kept
    rows = _rows(g)
    xp = namespace(rows)
    if xp is not np:
        h = rows if gamma is None else rows * gamma
        dx = (h - _mean(h) - normal * _mean(h * normal)) * scale
        totals = [(rows * normal).sum(axis=0), rows.sum(axis=0)]
    else:
        dx, totals = _normalize_backward(rows, gamma, normal, scale, needs)
    gradients = [dx.astype(g.dtype, copy=False).reshape(g.shape), *totals]
    return tuple(d if needed else None for d, needed in zip(gradients, needs, strict=True))


def _normalize_backward(g, gamma, normal, scale, needs):
    dx, width = np.empty_like(normal), normal.shape[1]
    weights = np.full(width, 1 / max(1, width), normal.dtype)
    weights = weights if gamma is None else weights * gamma  # of means of h, as products

    def backward(start, stop):
        part, y, h = g[start:stop], normal[start:stop], dx[start:stop]
        product = part * y
        ones = np.ones(len(y), y.dtype)
        sums = (ones @ product if needs[1] else None, ones @ part if needs[2] else None)
        mean, slope = part @ weights, product @ weights
        np.multiply(part, 1 if gamma is None else gamma, out=h)
        h -= mean[:, None]
        h -= np.multiply(y, slope[:, None], out=product)
        h *= scale[start:stop]
        return sums

    parts = in_blocks(backward, normal.shape)
    zeros = np.zeros(width, normal.dtype)
    return dx, [sum((p[i] for p in parts), zeros) if needs[i + 1] else None for i in range(2)]


_normalize.defvjp(joint=_normalize_rule, of=("x", "gamma", "beta"))


@_normalize.define
def _(x, gamma, beta, epsilon):
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    variance = ops.mean(centred * centred, axis=-1, keepdims=True)
    out = centred / ops.sqrt(variance + epsilon)
    out = out if gamma is None else out * gamma
    return out if beta is None else out + beta


def _rows(x: Array) -> Array:
    """`x` as a matrix of its last axis, in float32 at least."""
    wide = x.astype(np.float32) if x.dtype.itemsize < 4 else x
    return wide.reshape(int(np.prod(x.shape[:-1])), x.shape[-1])


def _mean(rows: Array) -> Array:
    """Means of rows; on NumPy as a product, several times faster than a sum of short rows."""
    n = max(1, rows.shape[1])
    if type(rows) is not np.ndarray:
        return rows.sum(axis=1, keepdims=True) * (1 / n)
    return (rows @ np.full(rows.shape[1], 1 / n, rows.dtype))[:, None]


def in_blocks(  # type: ignore[no-untyped-def]
    work, shape, elements=_BLOCK, backwards=False
) -> list:
    """work(start, stop) on blocks of rows, half of them on the other thread; results in order.

    A block has about `elements`. `backwards`: the last block of each half comes first, as the cache
    still has it from a pass before.
    """
    count, width = shape
    parts = 1 if count * width < SPLIT else 2
    step = -(-count // (parts * max(1, -(-count * width // (parts * elements)))))
    step = max(1, step if step < 64 else step + -step % 16)  # a round number of rows
    bounds = [(i, min(i + step, count)) for i in range(0, count, step)]
    if parts == 1:
        return [work(*pair) for pair in bounds]
    middle, order = len(bounds) // 2, -1 if backwards else 1
    first, second = in_two(
        lambda: [work(*pair) for pair in bounds[:middle][::order]],
        lambda: [work(*pair) for pair in bounds[middle:][::order]],
    )
    return first[::order] + second[::order]


@samples(layer_normalization)
def _(draw: Draw):
    shape = draw.shape(min_dims=1)
    vectors = [draw.array(shape[-1:]) if draw.boolean() else None for _ in range(2)]
    return call(draw.array(shape), *vectors, epsilon=draw.choice([1e-3, 0.1]))
