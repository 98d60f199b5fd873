"""Ops that give one array another shape: their derivatives shape the gradient back.

This is the lowest module of ops: others build on it, so what it needs of them it imports inside
functions.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import namespace
from minidl.errors import DtypeError, ShapeError

__all__ = [
    "atleast_1d",
    "broadcast_to",
    "expand_dims",
    "flatten",
    "flip",
    "moveaxis",
    "ravel",
    "repeat",
    "reshape",
    "roll",
    "squeeze",
    "swapaxes",
    "tile",
    "transpose",
    "tril",
    "triu",
]

_FEW = 1024  # entries that are copied faster than a view of them is made


# --- Shapes and axes as arguments -----------------------------------------------------------------


def shape_of(x: Any) -> tuple[int, ...]:
    """The shape of a Tensor, an array, a nested list or a number."""
    shape = getattr(x, "shape", None)
    return np.shape(x) if shape is None else shape


def one_axis(op: str, axis: Any, ndim: int) -> int:
    """`axis` counted from the front; ShapeError when an array of `ndim` axes has no such axis."""
    axis = operator.index(axis)
    if not -ndim <= axis < ndim:
        raise ShapeError(
            f"{op}: axis: expected an axis of an array of {ndim} dimensions, got {axis}; "
            + (f"use {-ndim} to {ndim - 1}" if ndim else "a 0-d array has none")
        )
    return axis % ndim


def many_axes(op: str, axis: Any, ndim: int) -> tuple[int, ...]:
    """One axis or a sequence of different axes (None: all), each counted from the front."""
    if axis is None:
        return tuple(range(ndim))
    entries = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(one_axis(op, entry, ndim) for entry in entries)
    if len(set(axes)) < len(axes):
        raise ShapeError(f"{op}: axis: expected each axis once, got {axis}; drop the repeated one")
    return axes


def count_of(op: str, argument: str, value: Any, least: int = 0) -> int:
    """`value` as a number of things: an integer, `least` or more."""
    try:
        count = operator.index(value)
    except TypeError:
        raise DtypeError(f"{op}: {argument}: expected an integer, got {value!r}") from None
    if count < least:
        raise ShapeError(
            f"{op}: {argument}: expected {least} or more, got {count}; use {least} or more"
        )
    return count


def _as_tuple(first: Any, more: tuple) -> tuple[int, ...]:
    """The numbers of f(x, 2, 3), f(x, (2, 3)) or f(x, 2)."""
    if more:
        return (first, *more)
    return tuple(first) if isinstance(first, (tuple, list)) else (first,)


def unbroadcast(x: Any, shape: tuple[int, ...]) -> Any:
    """Sum `x` down to `shape`: the adjoint of broadcasting `shape` to x.shape.

    Raises ShapeError when `shape` does not broadcast to x.shape.
    """
    have = x.shape
    if have == shape:
        return x
    extra = len(have) - len(shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, have[extra:], strict=True)):
        raise ShapeError(
            f"unbroadcast: x: expected a shape that {shape} broadcasts to, got {have}; "
            "a sum over broadcast axes cannot lead from one to the other"
        )
    from minidl.ops.reduction import sum

    stretched = (a for a in range(extra, len(have)) if have[a] != shape[a - extra])
    return reshape(sum(x, axis=(*range(extra), *stretched)), shape)


# --- Same entries, another shape ------------------------------------------------------------------


@primitive(view=True)
def _reshape(x, shape):
    try:
        return x.reshape(shape)
    except ValueError:
        raise ShapeError(
            f"reshape: shape: expected a shape of {math.prod(x.shape)} entries, as x of shape "
            f"{x.shape} has, got {shape}; at most one side may be -1"
        ) from None


_reshape.defvjp(x=lambda g, x_shape: _reshape(g, x_shape))


def reshape(x: Any, shape: Any, *more: int) -> Any:
    """The entries of `x`, in C order, in another shape: reshape(x, (2, -1)) or x.reshape(2, -1).

    One side may be -1: it is inferred. A view where the layout allows it. Raises ShapeError when
    the numbers of entries differ.
    """
    return _reshape(x, _as_tuple(shape, more))


@samples(reshape)
def _(draw: Draw):
    x = draw.array(draw.shape())
    sides = draw.choice([x.shape[::-1], (1, *x.shape), (x.size, 1), (x.size,)])
    if x.size and sides and draw.boolean():
        hidden = draw.integer(0, len(sides) - 1)
        sides = tuple(-1 if a == hidden else n for a, n in enumerate(sides))
    return call(x, sides)


def ravel(x: Any) -> Any:
    """`x` as one axis, in C order; a view where the layout allows it."""
    return _reshape(x, (-1,))


def flatten(x: Any) -> Any:
    """`x` as one axis: `ravel` under its other name (Tensors being immutable, a copy is idle)."""
    return _reshape(x, (-1,))


def atleast_1d(x: Any) -> Any:
    """`x`, or, when it is 0-d, an array of shape (1,)."""
    return _reshape(x, shape_of(x) or (1,))


@samples(ravel)
@samples(flatten)
@samples(atleast_1d)
def _(draw: Draw):
    return call(draw.array(draw.shape()))


def expand_dims(x: Any, axis: int | tuple[int, ...]) -> Any:
    """`x` with sides of 1 inserted, which stand at `axis` (one or several) of the result."""
    shape = shape_of(x)
    count = len(axis) if isinstance(axis, (tuple, list)) else 1
    new = many_axes("expand_dims", axis, len(shape) + count)
    sides = iter(shape)
    return _reshape(x, tuple(1 if a in new else next(sides) for a in range(len(shape) + count)))


@samples(expand_dims)
def _(draw: Draw):
    x = draw.array(draw.shape())
    axes = [a for a in range(-x.ndim - 1, x.ndim + 1)]
    return call(x, draw.choice([*axes, (0, -1), ()]))


def squeeze(x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """`x` without its sides of 1, or without those at `axis`, which must be 1 (else ShapeError)."""
    shape = shape_of(x)
    if axis is None:
        return _reshape(x, tuple(n for n in shape if n != 1))
    gone = many_axes("squeeze", axis, len(shape))
    if any(shape[a] != 1 for a in gone):
        raise ShapeError(
            f"squeeze: axis: expected axes of length 1, got {axis} of shape {shape}; "
            "name axes of length 1 only"
        )
    return _reshape(x, tuple(n for a, n in enumerate(shape) if a not in gone))


@samples(squeeze)
def _(draw: Draw):
    x = draw.array(draw.shape(max_side=2))
    units = tuple(a for a, n in enumerate(x.shape) if n == 1)
    return call(x, axis=draw.choice([None, units, *units]))


# --- Same entries, other order of axes ------------------------------------------------------------


@primitive(view=True)
def _transpose(x, axes):
    return x.transpose(axes)


_transpose.defvjp(x=lambda g, axes: _transpose(g, _inverse(axes)))


def _inverse(axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def transpose(x: Any, axes: Any = None, *more: int) -> Any:
    """`x` with its axes in the order `axes` (default: reversed); a view.

    As a method also x.transpose(0, 2, 1). Raises ShapeError unless `axes` names each axis once.
    """
    ndim = len(shape_of(x))
    if axes is None:
        return _transpose(x, tuple(range(ndim))[::-1])
    order = many_axes("transpose", _as_tuple(axes, more), ndim)
    if len(order) != ndim:
        raise ShapeError(
            f"transpose: axes: expected all {ndim} axes, got {axes}; name each axis once"
        )
    return _transpose(x, order)


@samples(transpose)
def _(draw: Draw):
    x = draw.array(draw.shape())
    order = tuple(a - x.ndim if draw.boolean() else a for a in draw.permutation(x.ndim))
    return call(x, axes=draw.choice([None, order]))


def swapaxes(x: Any, axis1: int, axis2: int) -> Any:
    """`x` with two of its axes exchanged; a view."""
    ndim = len(shape_of(x))
    one, two = one_axis("swapaxes", axis1, ndim), one_axis("swapaxes", axis2, ndim)
    order = list(range(ndim))
    order[one], order[two] = two, one
    return _transpose(x, tuple(order))


def moveaxis(x: Any, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Any:
    """`x` with the axes `source` moved to `destination`, the others keeping their order; a view."""
    ndim = len(shape_of(x))
    old, new = many_axes("moveaxis", source, ndim), many_axes("moveaxis", destination, ndim)
    if len(old) != len(new):
        raise ShapeError(
            f"moveaxis: destination: expected {len(old)} axes, as source has, got {len(new)}; "
            "give each moved axis one place"
        )
    order = [a for a in range(ndim) if a not in old]
    for place, axis in sorted(zip(new, old, strict=True)):
        order.insert(place, axis)
    return _transpose(x, tuple(order))


@samples(swapaxes)
@samples(moveaxis)
def _(draw: Draw):
    x = draw.array(draw.shape(min_dims=1))
    return call(x, draw.integer(-x.ndim, x.ndim - 1), draw.integer(-x.ndim, x.ndim - 1))


@primitive(view=True)
def _flip(x, axes):
    return x[tuple(slice(None, None, -1 if a in axes else None) for a in range(x.ndim))]


_flip.defvjp(x=lambda g, axes: _flip(g, axes))


def flip(x: Any, axis: int | tuple[int, ...] | None = None) -> Any:
    """`x` in reversed order along `axis` (one, several, or None: all); a view."""
    return _flip(x, many_axes("flip", axis, len(shape_of(x))))


@samples(flip)
def _(draw: Draw):
    x = draw.array(draw.shape())
    return call(x, axis=draw.axes(x.ndim))


@primitive
def _roll(x, shift, axis):
    xp = namespace(x)
    return xp.roll(x, shift, axis) if axis else xp.array(x)


_roll.defvjp(x=lambda g, shift, axis: _roll(g, tuple(-s for s in shift), axis))


def roll(x: Any, shift: int | tuple[int, ...], axis: int | tuple[int, ...] | None = None) -> Any:
    """`x` with its entries moved by `shift` places along `axis`, the last coming in first.

    Several axes take one shift each, or share one. With axis None the flattened entries move.
    """
    shifts = tuple(shift) if isinstance(shift, (tuple, list)) else (shift,)
    shape = shape_of(x)
    if axis is None:
        return _reshape(_roll(_reshape(x, (-1,)), (sum(shifts),), (0,)), shape)
    entries = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = tuple(one_axis("roll", entry, len(shape)) for entry in entries)
    if len(shifts) == 1:
        shifts = shifts * len(axes)
    if len(shifts) != len(axes):
        raise ShapeError(
            f"roll: shift: expected one number or {len(axes)}, one for each axis, got {shift}"
        )
    return _roll(x, shifts, axes)


@samples(roll)
def _(draw: Draw):
    x = draw.array(draw.shape())
    return call(x, draw.integer(-5, 5), axis=draw.axes(x.ndim))


# --- More or fewer entries ------------------------------------------------------------------------


@primitive(view=True)
def broadcast(x, shape):
    try:
        if type(x) is np.ndarray and x.ndim <= len(shape) and math.prod(shape) < _FEW:
            out = np.empty(shape, x.dtype)
            out[...] = x
            return out
        return namespace(x).broadcast_to(x, shape)
    except ValueError:
        raise ShapeError(
            f"broadcast_to: shape: expected a shape to which {x.shape} broadcasts, got {shape}; "
            "sides must be equal from the right, or 1 in x"
        ) from None


broadcast.defvjp(x=lambda g: g)  # the engine sums it down to x's shape


def broadcast_to(x: Any, shape: int | Sequence[int]) -> Any:
    """`x` repeated to `shape`: a view, read-only on NumPy, unless it is small."""
    return broadcast(x, _as_tuple(shape, ()))


@samples(broadcast_to)
def _(draw: Draw):
    shape = draw.shape()
    return call(draw.array(draw.broadcastable(shape)), shape)


def repeat(x: Any, repeats: int, axis: int | None = None) -> Any:
    """Each entry of `x` `repeats` times in a row along `axis` (None: of the flattened `x`).

    `repeats` is one number: a different number for each entry would need the host to size the
    result (use `take` with the positions wanted).
    """
    repeats = count_of("repeat", "repeats", repeats)
    if axis is None:
        x, axis = ravel(x), 0
    shape = shape_of(x)
    axis = one_axis("repeat", axis, len(shape))
    before, side, after = shape[:axis], shape[axis], shape[axis + 1 :]
    x = _reshape(x, (*before, side, 1, *after))
    x = broadcast(x, (*before, side, repeats, *after))
    return _reshape(x, (*before, side * repeats, *after))


@samples(repeat)
def _(draw: Draw):
    x = draw.array(draw.shape())
    axis = draw.axis(x.ndim)
    return call(x, draw.integer(0, 3), axis=None if axis == () else axis)


def tile(x: Any, reps: int | Sequence[int]) -> Any:
    """`x` laid out `reps` times along each axis; the shorter of shape and reps gets leading 1s."""
    counts = tuple(count_of("tile", "reps", n) for n in _as_tuple(reps, ()))
    shape = shape_of(x)
    ndim = max(len(counts), len(shape))
    counts = (1,) * (ndim - len(counts)) + counts
    shape = (1,) * (ndim - len(shape)) + shape
    x = _reshape(x, tuple(chain.from_iterable((1, n) for n in shape)))
    x = broadcast(x, tuple(chain.from_iterable(zip(counts, shape, strict=True))))
    return _reshape(x, tuple(map(operator.mul, counts, shape)))


@samples(tile)
def _(draw: Draw):
    reps = draw.choice([2, 0, (), (2, 1), (1, 3, 2)])
    return call(draw.array(draw.shape(max_side=3)), reps)


def _band(x: Any, k: int, lower: bool) -> Any:
    if x.ndim < 2:
        raise ShapeError(
            f"{'tril' if lower else 'triu'}: x: expected (..., rows, columns), got {x.shape}; "
            "give x at least two axes"
        )
    xp = namespace(x)
    return xp.tril(x, k) if lower else xp.triu(x, k)


@primitive
def tril(x: Any, k: int = 0) -> Any:
    """`x` (..., rows, columns) with zeros above the k-th diagonal of each matrix."""
    return _band(x, k, lower=True)


tril.defvjp(x=lambda g, k: tril(g, k))


@primitive
def triu(x: Any, k: int = 0) -> Any:
    """`x` (..., rows, columns) with zeros below the k-th diagonal of each matrix."""
    return _band(x, k, lower=False)


triu.defvjp(x=lambda g, k: triu(g, k))


@samples(tril)
@samples(triu)
def _(draw: Draw):
    return call(draw.array(draw.shape(min_dims=2)), draw.integer(-3, 3))
