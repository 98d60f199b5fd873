"""Ops that pick entries and put them back: gather and scatter, each the other's derivative.

An index is anything NumPy takes: integers, slices, Ellipsis, None, boolean masks, integer arrays
(repeats too), and Tensors for arrays. Positions out of range raise IndexError on the CPU; on a GPU
arrays of positions wrap around instead, since looking at them would wait for the device.
"""

from __future__ import annotations

import math
from types import EllipsisType, NoneType
from typing import Any

import numpy as np

from minidl import backend
from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import namespace
from minidl.errors import DeviceError, DtypeError, ShapeError
from minidl.graph import unwrap
from minidl.ops.shape import count_of, one_axis, ravel, reshape, shape_of

__all__ = [
    "argsort",
    "getitem",
    "index_put",
    "nonzero",
    "one_hot",
    "scatter_add",
    "sort",
    "take",
    "take_along_axis",
    "topk",
]

_BASIC = frozenset((int, bool, slice, NoneType, EllipsisType))
_WHOLE = slice(None)

# Rows summed through a sparse product, from so many numbers on: below, it is not worth SciPy.
SPARSE_FROM = 4096


# --- What an index may be -------------------------------------------------------------------------


def _normal(op: str, x: Any, index: Any) -> tuple:
    """`index` as a tuple of basic entries and arrays on x's device, with one Ellipsis in it.

    The Ellipsis makes NumPy answer with an array, a view, where it would with a scalar.
    """
    entries = tuple(index) if isinstance(index, tuple) else (index,)
    if any(type(entry) not in _BASIC for entry in entries):
        entries = tuple(e if type(e) in _BASIC else _array_entry(op, x, e) for e in entries)
    return entries if any(e is Ellipsis for e in entries) else (*entries, Ellipsis)


def _array_entry(op: str, x: Any, entry: Any) -> Any:
    entry = _positions(op, "index", x, unwrap(entry), "iub")
    host_number = type(entry) is np.ndarray and entry.ndim == 0
    return entry.item() if host_number else entry


def _positions(op: str, argument: str, x: Any, value: Any, kinds: str = "iu") -> Any:
    """`value` as an array of positions on x's device; a Tensor stays one."""
    data, found = unwrap(x), unwrap(value)
    if not backend.is_array(found):
        found = value = np.asarray(found, dtype=None if np.size(found) else np.intp)
        value = backend.to_device(value, backend.device_of(data))
    elif namespace(found) is not namespace(data):
        here, there = backend.device_of(data), backend.device_of(found)
        raise DeviceError(
            f"{op}: {argument}: expected an array on {here}, where x is, got one on {there}; "
            f"use to_device({argument}, {here!r})"
        )
    if found.dtype.kind not in kinds:
        wanted = "integers or booleans" if "b" in kinds else "integers"
        raise DtypeError(
            f"{op}: {argument}: expected {wanted}, got {found.dtype}; use .astype('int64')"
        )
    return value


def _is_integers(entry: Any) -> bool:
    return type(entry) not in _BASIC and entry.dtype.kind != "b"


def _run(index: tuple) -> tuple[int, tuple]:
    """(axis, arrays) when whole slices and then integer arrays are all there is; else (0, ())."""
    entries = index[:-1] if index[-1] is Ellipsis else index
    axis = 0
    while axis < len(entries) and type(entries[axis]) is slice and entries[axis] == _WHOLE:
        axis += 1
    run = entries[axis:]
    if any(map(_is_integers, run)) and all(type(e) is int or _is_integers(e) for e in run):
        return axis, run
    return 0, ()


# --- Gather and scatter ---------------------------------------------------------------------------


@primitive(view=True)
def _getitem(x, index):
    try:
        return x[index]
    except IndexError as error:
        raise IndexError(f"getitem: index: {error}; x has shape {x.shape}") from None


_getitem.defvjp(x=lambda g, index, x_shape: getitem_adjoint(g, index, x_shape))


@primitive
def _take(x, indices, axis):
    try:
        return namespace(x).take(x, indices, axis)
    except IndexError as error:
        raise IndexError(f"take: indices: {error}; x has shape {x.shape}") from None


_take.defvjp(
    x=lambda g, indices, axis, x_shape: getitem_adjoint(
        g, (_WHOLE,) * axis + (unwrap(indices), Ellipsis), x_shape
    )
)


def _gather(x: Any, index: tuple) -> Any:
    """x[index] for a normal index: by `take`, which is faster, where one array is all of it."""
    axis, run = _run(index)
    return _take(x, run[0], axis) if len(run) == 1 else _getitem(x, index)


@primitive
def getitem_adjoint(values, index, shape):
    """Zeros of `shape` with `values` added at `index` (normal form): the derivative of x[index]."""
    xp = namespace(values)
    if xp is np and values.size:
        axis, run = _run(index)
        if run:
            return _sum_at(values, run, axis, shape)
    out = xp.zeros(shape, values.dtype)
    if any(map(_is_integers, index)):  # they may name an entry twice
        xp.add.at(out, index, values)
    else:
        out[index] = values
    return out


getitem_adjoint.defvjp(values=lambda g, index: _gather(g, index))


def _sum_at(values: np.ndarray, run: tuple, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """getitem_adjoint for integer arrays side by side, as a sum of rows into rows."""
    end = axis + len(run)
    before, sides, after = math.prod(shape[:axis]), shape[axis:end], math.prod(shape[end:])
    positions = np.broadcast_arrays(*(np.asarray(entry, np.intp) for entry in run))
    rows = np.ravel_multi_index(tuple(positions), sides, mode="wrap").ravel()  # -1 is the last
    values = values.reshape(before, rows.size, after).swapaxes(0, 1)
    total = _sum_rows(values.reshape(rows.size, before * after), rows, math.prod(sides))
    return total.reshape(-1, before, after).swapaxes(0, 1).reshape(shape)


def _sum_rows(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """(count, width) with values[i] added to row rows[i], in the order of i."""
    if values.dtype == np.float16:  # sums of halves run in single precision
        return _sum_rows(values.astype(np.float32), rows, count).astype(np.float16)
    n, width = values.shape
    if width == 1 or values.size < SPARSE_FROM:
        out = np.zeros((count, width), values.dtype)
        line = 0 if width == 1 else _WHOLE  # add.at has a fast path for one axis
        np.add.at(out[:, line], rows, values[:, line])
        return out
    from scipy.sparse import csc_array

    # Column i of this matrix has its one in row rows[i]: a product of one pass over the values,
    # five to twenty times as fast as add.at, adding in the same order.
    ones = np.ones(n, values.dtype)
    return csc_array((ones, rows, np.arange(n + 1)), shape=(count, n)) @ values


def getitem(x: Any, index: Any) -> Any:
    """x[index], every NumPy form; a view for basic indexing, fresh memory for arrays and masks.

    Lists are read as arrays. A mask makes a GPU wait; `where` does not. Raises IndexError for a
    position out of range (see above for GPUs), DtypeError for an index of floats, DeviceError for
    an index array on another device than x's.
    """
    if type(index) is int or type(index) is slice:  # the common case, at its own speed
        return _getitem(x, (index, Ellipsis))
    return _gather(x, _normal("getitem", x, index))


def _draw_index(draw: Draw, shape: tuple[int, ...], repeats: bool = True) -> tuple:
    """An index of any form into an array of `shape`; without `repeats`, none is named twice."""
    kind = draw.choice(["basic", "mask", "arrays"])
    if kind == "mask":
        return (draw.mask(shape[: draw.integer(0, len(shape))]),)
    arrays = draw.shape(max_dims=2, max_side=3)
    budget = 0 if kind == "basic" else 3 if repeats else 1
    entries: list = []
    for side in shape[: draw.integer(0, len(shape))]:
        if side and budget and draw.boolean():
            budget -= 1
            some = draw.integers(arrays, -side, side - 1)
            entries.append(some if repeats else np.array(draw.permutation(side)[1:], np.int64))
        elif side and draw.integer(0, 2) == 0:
            entries.append(draw.integer(-side, side - 1))
        else:
            ends = [None, *range(-side, side + 1)]
            step = draw.choice([None, 1, 2, -1, -2])
            entries.append(slice(draw.choice(ends), draw.choice(ends), step))
    if draw.boolean():
        entries.insert(draw.integer(0, len(entries)), None)
    if draw.boolean():
        entries.append(Ellipsis)
    return tuple(entries)


@samples(getitem_adjoint)
def _(draw: Draw):
    x = np.zeros(draw.shape())
    index = _normal("getitem", x, _draw_index(draw, x.shape))
    return call(draw.array(x[index].shape), index, x.shape)


@samples(getitem)
def _(draw: Draw):
    x = draw.array(draw.shape())
    return call(x, _draw_index(draw, x.shape))


def take(x: Any, indices: Any, axis: int | None = None) -> Any:
    """The entries of `x` at integer positions `indices` along `axis` (None: of the flattened x).

    Shape: x.shape with `axis` replaced by indices.shape. With axis=0 it is the embedding look-up;
    its derivative adds up, in a fixed order on the CPU, the rows of ids that repeat. Raises
    IndexError for a position out of range (see above for GPUs), DtypeError for other than integers.
    """
    indices = _positions("take", "indices", x, indices)
    if axis is None:
        return _take(ravel(x), indices, 0)
    return _take(x, indices, one_axis("take", axis, len(shape_of(x))))


@samples(take)
def _(draw: Draw):
    x = draw.array(draw.shape(min_side=1))
    axis = draw.choice([None, *range(-x.ndim, x.ndim)])
    side = x.size if axis is None else x.shape[axis]
    return call(x, draw.integers(draw.shape(max_dims=2), -side, side - 1), axis=axis)


def take_along_axis(x: Any, indices: Any, axis: int | None = -1) -> Any:
    """For each line of `x` along `axis`, its entries at that line of integers `indices`.

    `indices` has x's number of axes; its other sides broadcast against x's. With axis None, `x` is
    flattened and `indices` is 1-d. Raises ShapeError, DtypeError, IndexError accordingly.
    """
    op = "take_along_axis"
    indices = unwrap(_positions(op, "indices", x, indices))
    if axis is None:
        x, axis = ravel(x), 0
    shape, wanted = shape_of(x), indices.shape
    axis = one_axis(op, axis, len(shape))
    others = [a for a in range(len(shape)) if a != axis]
    if len(wanted) != len(shape) or any(
        shape[a] != wanted[a] and 1 not in (shape[a], wanted[a]) for a in others
    ):
        raise ShapeError(
            f"{op}: indices: expected the shape {shape} of x but for axis {axis}, got {wanted}; "
            "sides of 1 broadcast"
        )
    lines = namespace(indices).arange
    index: list = [
        lines(n).reshape([-1 if a == b else 1 for b in range(len(shape))])
        for a, n in enumerate(shape)
    ]
    index[axis] = indices
    return _getitem(x, (*index, Ellipsis))


@samples(take_along_axis)
def _(draw: Draw):
    x = draw.array(draw.shape(min_dims=1, min_side=1))
    axis = draw.integer(0, x.ndim - 1)
    wanted = list(draw.broadcastable(x.shape))
    wanted = [1] * (x.ndim - len(wanted)) + wanted
    wanted[axis] = draw.integer(0, 4)
    indices = draw.integers(wanted, -x.shape[axis], x.shape[axis] - 1)
    return call(x, indices, axis=draw.choice([axis, axis - x.ndim]))


# --- Functional assignment ------------------------------------------------------------------------


def _fitting(values: Any, shape: tuple[int, ...]) -> Any:
    """`values` with as many leading sides of 1 as `shape` has more: assignment allows them."""
    extra = len(shape) - len(shape_of(values))
    return reshape(values, (1,) * extra + values.shape) if extra > 0 else values


def _writable(x: Any, values: Any) -> Any:
    """A copy of `x` of a dtype that holds `values` too; a Python number does not widen it."""
    other = getattr(values, "dtype", x.dtype)
    return namespace(x).array(x, dtype=np.promote_types(x.dtype, other))


def _unfit(op: str, x: Any, values: Any, error: Exception) -> Exception:
    if isinstance(error, IndexError):
        return IndexError(f"{op}: index: {error}; x has shape {x.shape}")
    return ShapeError(
        f"{op}: values: expected a shape that broadcasts to that of x[index], got "
        f"{np.shape(values)}: {error}"
    )


@primitive
def _index_put(x, values, index):
    out = _writable(x, values)
    try:
        out[index] = values
    except (IndexError, ValueError) as error:
        raise _unfit("index_put", x, values, error) from None
    return out


_index_put.defvjp(
    x=lambda g, index: _index_put(g, 0, index),
    values=lambda g, index, values_shape: _fitting(_gather(g, index), values_shape),
)


def index_put(x: Any, index: Any, values: Any) -> Any:
    """A copy of `x` with `values`, broadcast, at `index`; differentiable in both.

    Which of two values at one position stays is not defined, so integer arrays that name a position
    twice raise IndexError on the CPU, and must be avoided on a GPU: `scatter_add` takes them.
    """
    index = _normal("index_put", x, index)
    arrays = [entry for entry in index if _is_integers(entry)]
    if arrays and namespace(arrays[0]) is np:
        _refuse_repeats(index, shape_of(x))
    return _index_put(x, values, index)


def _refuse_repeats(index: tuple, shape: tuple[int, ...]) -> None:
    named = np.zeros(shape, np.bool_)
    try:
        named[index] = True
        wanted = named[index].size
    except IndexError:
        return  # the op itself says what is wrong
    if np.count_nonzero(named) < wanted:
        raise IndexError(
            "index_put: index: expected different positions, got some twice; "
            "use scatter_add, which adds them up"
        )


@primitive
def _scatter_add(x, values, index):
    out = _writable(x, values)
    try:
        if any(map(_is_integers, index)):
            namespace(x).add.at(out, index, values)
        else:
            out[index] += values
    except (IndexError, ValueError) as error:
        raise _unfit("scatter_add", x, values, error) from None
    return out


_scatter_add.defvjp(x=lambda g: g, values=lambda g, index: _gather(g, index))


def scatter_add(x: Any, index: Any, values: Any) -> Any:
    """A copy of `x` with `values`, broadcast, added at `index`; repeated positions add up."""
    return _scatter_add(x, values, _normal("scatter_add", x, index))


def _draw_assignment(draw: Draw, repeats: bool) -> Any:
    x = draw.array(draw.shape())
    index = _draw_index(draw, x.shape, repeats)
    values = draw.array(draw.broadcastable(np.zeros(x.shape)[index].shape))
    return call(x, index, values)


@samples(index_put)
def _(draw: Draw):
    return _draw_assignment(draw, repeats=False)


@samples(scatter_add)
def _(draw: Draw):
    return _draw_assignment(draw, repeats=True)


@primitive(differentiable=False)
def _one_hot(ids, depth, dtype):
    xp = namespace(ids)
    if xp is np and ids.size and (ids.min() < 0 or ids.max() >= depth):
        raise IndexError(
            f"one_hot: ids: expected integers in [0, {depth}), got {ids.min()} to {ids.max()}; "
            "make depth larger than the largest id"
        )
    return xp.equal(ids[..., None], xp.arange(depth)).astype(dtype)


def one_hot(ids: Any, depth: int, dtype: Any = None) -> Any:
    """(..., depth): 1 at the place that each of `ids` (...) names, 0 elsewhere; not differentiable.

    `dtype` is by default the default float dtype. Raises IndexError for ids out of range on the
    CPU (their rows are 0 on a GPU), DtypeError for ids other than integers.
    """
    ids = _positions("one_hot", "ids", ids, ids)
    return _one_hot(ids, count_of("one_hot", "depth", depth), dtype or backend.current_dtype())


@samples(one_hot, differentiable=False)
def _(draw: Draw):
    depth = draw.integer(1, 4)
    return call(draw.integers(draw.shape(), 0, depth - 1), depth)


# --- Order ----------------------------------------------------------------------------------------


@primitive(differentiable=False)
def _argsort(x, axis):
    return namespace(x).argsort(x, axis=axis, kind="stable")


def argsort(x: Any, axis: int | None = -1) -> Any:
    """The positions along `axis` (None: of the flattened x) that sort `x`; equal entries keep
    their order. Not differentiable."""
    if axis is None:
        return _argsort(ravel(x), 0)
    return _argsort(x, one_axis("argsort", axis, len(shape_of(x))))


def sort(x: Any, axis: int | None = -1) -> Any:
    """`x` in ascending order along `axis` (None: flattened). The gradient goes where entries came
    from; among equal entries, in their order."""
    if axis is None:
        x, axis = ravel(x), 0
    return take_along_axis(x, argsort(x, axis), axis)


@samples(sort)
@samples(argsort, differentiable=False)
def _(draw: Draw):
    x = draw.array(draw.shape(min_dims=1), distinct=True)
    return call(x, axis=draw.axis(x.ndim))


@primitive(differentiable=False)
def _largest(x, k, axis):
    # Reversed before and after the stable sort, so that of equal entries the first comes first.
    xp, n = namespace(x), x.shape[axis]
    ascending = n - 1 - xp.argsort(xp.flip(x, axis), axis=axis, kind="stable")
    largest = (slice(None),) * axis + (slice(n - k, None),)
    return xp.flip(ascending[largest], axis).copy()


def topk(x: Any, k: int, axis: int = -1) -> tuple[Any, Any]:
    """(values, positions) of the `k` largest entries along `axis`, largest first; of equal entries
    the first comes first. The values are differentiable. Raises ShapeError unless 0 <= k <= side.
    """
    shape = shape_of(x)
    axis = one_axis("topk", axis, len(shape))
    k = count_of("topk", "k", k)
    if k > shape[axis]:
        raise ShapeError(f"topk: k: expected at most {shape[axis]}, axis {axis}'s length, got {k}")
    positions = _largest(x, k, axis)
    return take_along_axis(x, positions, axis), positions


@samples(topk)
def _(draw: Draw):
    x = draw.array(draw.shape(min_dims=1), distinct=True)
    axis = draw.integer(-x.ndim, x.ndim - 1)
    return call(x, draw.integer(0, x.shape[axis]), axis=axis)


@primitive(differentiable=False)
def nonzero(x: Any) -> tuple:
    """The positions of the entries that are not 0, an integer array for each axis of `x`.

    Not differentiable. How many there are, a GPU must be waited for: keep it out of training steps.
    """
    if x.ndim == 0:
        raise ShapeError("nonzero: x: expected at least one axis, got (); use atleast_1d(x)")
    return namespace(x).nonzero(x)


@samples(nonzero, differentiable=False)
def _(draw: Draw):
    return call(draw.mask(draw.shape(min_dims=1)))
