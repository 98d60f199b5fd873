"""Ops that join arrays, take them apart, and pad them.

They come in pairs of which each is the derivative of the other: concatenate and split, stack and
unstack; padding's is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import namespace
from minidl.errors import ShapeError
from minidl.ops.comparison import SCALARS, owner
from minidl.ops.indexing import getitem, take
from minidl.ops.shape import count_of, one_axis, ravel, shape_of

__all__ = ["concatenate", "pad", "split", "stack", "unstack"]

PAD_MODES = ("constant", "edge", "reflect", "symmetric", "wrap")


# --- Padding --------------------------------------------------------------------------------------


@primitive
def _pad_constant(x, widths, value):
    xp = namespace(x)
    out = xp.full(
        tuple(b + n + a for n, (b, a) in zip(x.shape, widths, strict=True)), value, x.dtype
    )
    out[_inside(out.shape, widths)] = x
    return out


_pad_constant.defvjp(x=lambda g, widths: getitem(g, _inside(g.shape, widths)))


def _inside(shape: tuple[int, ...], widths: tuple) -> tuple[slice, ...]:
    return tuple(slice(b, n - a) for n, (b, a) in zip(shape, widths, strict=True))


@primitive(differentiable=False)
def _pad_positions(x, axis, width, mode):
    """Which entry of `axis` each place of the padded axis shows, computed where `x` lives."""
    xp, n = namespace(x), x.shape[axis]
    places = xp.arange(-width[0], n + width[1])
    if mode == "edge":
        return xp.clip(places, 0, n - 1)
    if mode == "wrap":
        return places % n
    period = 2 * n - 2 if mode == "reflect" else 2 * n  # symmetric shows the edge twice
    places = places % max(period, 1)
    return xp.minimum(places, max(period, 1) - places - (mode == "symmetric"))


def pad(x: Any, pad_width: Any, mode: str = "constant", constant_values: float = 0) -> Any:
    """`x` grown at both ends of its axes.

    `pad_width` is a number, (before, after), or one (before, after) for each axis. `mode`:
    "constant" (`constant_values`, one number), "edge" (a b c -> a a b c c), "reflect"
    (b a b c b), "symmetric" (a a b c c, mirrored on), "wrap" (c a b c a).
    Raises ShapeError for other widths, or where a mode has no entry to show.
    """
    shape = shape_of(x)
    if mode not in PAD_MODES:
        raise ValueError(f"pad: mode: expected one of {PAD_MODES}, got {mode!r}")
    try:
        widths = tuple((int(b), int(a)) for b, a in np.broadcast_to(pad_width, (len(shape), 2)))
    except ValueError:
        raise ShapeError(
            f"pad: pad_width: expected a number, (before, after) or {len(shape)} such pairs for x "
            f"of shape {shape}, got {pad_width}"
        ) from None
    if any(width < 0 for width in chain.from_iterable(widths)):
        raise ShapeError(f"pad: pad_width: expected 0 or more, got {pad_width}; to crop, slice x")
    if mode == "constant":
        return _pad_constant(x, widths, constant_values)
    for axis, width in enumerate(widths):
        if width != (0, 0):
            if shape[axis] == 0:
                raise ShapeError(
                    f"pad: mode: {mode!r} needs entries to show, got x of shape {shape}; "
                    "pad empty axes with mode='constant'"
                )
            x = take(x, _pad_positions(x, axis, width, mode), axis)
    return x


@samples(pad)
def _(draw: Draw):
    mode = "constant" if draw.boolean() else draw.choice(PAD_MODES)
    x = draw.array(draw.shape(max_side=3, min_side=0 if mode == "constant" else 1))
    widths = tuple((draw.integer(0, 3), draw.integer(0, 3)) for _ in x.shape)
    if mode == "constant":
        return call(x, widths or 1, constant_values=draw.real(-1, 1))
    return call(x, widths or 1, mode=mode)


# --- Several arrays -------------------------------------------------------------------------------


@primitive
def _concatenate(*arrays, axis=0):
    try:
        return namespace(arrays[0]).concatenate(arrays, axis)
    except ValueError:
        raise ShapeError(
            f"concatenate: arrays: expected shapes equal but for axis {axis}, got "
            f"{[a.shape for a in arrays]}; 0-d arrays need `stack`"
        ) from None


def _concatenate_vjp(g, arrays_shape, axis, needs):
    bounds = tuple(accumulate((shape[axis] for shape in arrays_shape), initial=0))
    parts = _split(g, bounds, axis)
    return tuple(part if need else None for part, need in zip(parts, needs, strict=True))


_concatenate.defvjp(joint=_concatenate_vjp)


def concatenate(arrays: Sequence[Any], axis: int | None = 0) -> Any:
    """The arrays one after the other along an axis they have (None: all flattened first).

    Raises ShapeError unless their shapes agree in all other axes.
    """
    arrays = tuple(arrays) if axis is not None else tuple(ravel(a) for a in arrays)
    if not arrays:
        raise ShapeError("concatenate: arrays: expected at least one array, got none")
    axis = one_axis("concatenate", axis or 0, len(shape_of(arrays[0])))
    return _concatenate(*arrays, axis=axis)


@samples(concatenate)
def _(draw: Draw):
    shape = draw.shape(min_dims=1)
    axis = draw.integer(0, len(shape) - 1)
    sides = [draw.integer(0, 3) for _ in range(draw.integer(1, 3))]
    parts = [draw.array((*shape[:axis], n, *shape[axis + 1 :])) for n in sides]
    return call(parts, axis=draw.choice([axis, axis - len(shape), None]))


@primitive(view=True)
def _split(x, bounds, axis):
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(start, stop))] for start, stop in pairwise(bounds))


_split.defvjp(x=lambda g, axis: _concatenate(*g, axis=axis))


def split(x: Any, indices_or_sections: int | Sequence[int], axis: int = 0) -> tuple:
    """A tuple of views of `x`: so many equal parts, or cut before each of the indices given.

    Raises ShapeError when the parts cannot be equal, or the indices do not ascend.
    """
    shape = shape_of(x)
    axis = one_axis("split", axis, len(shape))
    side = shape[axis]
    if isinstance(indices_or_sections, (tuple, list)):
        cuts = [min(max(i + side if i < 0 else i, 0), side) for i in indices_or_sections]
        bounds = (0, *cuts, side)
        if list(bounds) != sorted(bounds):
            raise ShapeError(
                f"split: indices_or_sections: expected ascending indices, got {indices_or_sections}"
            )
        return _split(x, bounds, axis)
    sections = count_of("split", "indices_or_sections", indices_or_sections)
    if sections == 0 or side % sections:
        raise ShapeError(
            f"split: indices_or_sections: expected a divisor of {side}, the length of axis {axis}, "
            f"got {sections}; give the indices to cut at for unequal parts"
        )
    return _split(x, tuple(side // sections * i for i in range(sections + 1)), axis)


@samples(split)
def _(draw: Draw):
    shape = draw.shape(min_dims=1)
    axis = draw.integer(-len(shape), len(shape) - 1)
    side = shape[axis]
    cuts = sorted(draw.integer(0, side) for _ in range(draw.integer(0, 2)))
    return call(draw.array(shape), draw.choice([cuts, max(side, 1), 1]), axis=axis)


@primitive
def _stack(*arrays, axis=0):
    xp = owner(*arrays)
    if any(type(a) in SCALARS for a in arrays):  # plain numbers take the arrays' dtype
        dtype = np.result_type(*arrays)
        arrays = tuple(xp.asarray(a, dtype) for a in arrays)
    try:
        return xp.stack(arrays, axis)
    except ValueError:
        raise ShapeError(
            f"stack: arrays: expected equal shapes, got {[a.shape for a in arrays]}"
        ) from None


def _stack_vjp(g, axis, needs):
    parts = _unstack(g, axis)
    return tuple(part if need else None for part, need in zip(parts, needs, strict=True))


_stack.defvjp(joint=_stack_vjp)


def stack(arrays: Sequence[Any], axis: int = 0) -> Any:
    """Arrays of one shape (numbers are of shape ()) joined along a new axis, which stands at `axis`
    of the result."""
    arrays = tuple(arrays)
    if not arrays:
        raise ShapeError("stack: arrays: expected at least one array, got none")
    return _stack(*arrays, axis=one_axis("stack", axis, len(shape_of(arrays[0])) + 1))


@samples(stack)
def _(draw: Draw):
    shape = draw.shape()
    parts = [draw.array(shape) for _ in range(draw.integer(1, 3))]
    return call(parts, axis=draw.integer(-len(shape) - 1, len(shape)))


@primitive(view=True)
def _unstack(x, axis):
    before = (slice(None),) * axis
    return tuple(x[(*before, i, ...)] for i in range(x.shape[axis]))  # ...: arrays, not scalars


_unstack.defvjp(x=lambda g, axis: _stack(*g, axis=axis))


def unstack(x: Any, axis: int = 0) -> tuple:
    """A tuple of the views of `x` along `axis`, which they lack: the inverse of `stack`.

    Backward is one stack, where indexing at each step would add up that many arrays of its size.
    """
    shape = shape_of(x)
    axis = one_axis("unstack", axis, len(shape))
    return _unstack(x, axis) if shape[axis] else ()


@samples(unstack)
def _(draw: Draw):
    shape = draw.shape(min_dims=1, min_side=1)
    return call(draw.array(shape), axis=draw.integer(-len(shape), len(shape) - 1))
