"""Products of arrays, sums over the axes they share, and diagonals.

matmul and einsum do the work; the derivative of each is the same op again, of any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import blas_divides, in_two, namespace
from minidl.errors import ShapeError
from minidl.ops.reduction import sum
from minidl.ops.shape import broadcast_to, many_axes, one_axis, reshape, shape_of, transpose

__all__ = ["diag", "diagonal", "dot", "einsum", "matmul", "outer", "tensordot", "trace"]

SPLIT = 6_000_000  # multiply-adds from which half a product is worth handing to the helper thread


# --- Matrix product -------------------------------------------------------------------------------


@primitive
def matmul(x: Any, y: Any) -> Any:
    """Matrix product x @ y: (..., m, k) and (..., k, n) give (..., m, n), batches broadcasting.

    A 1-d `x` is a row and a 1-d `y` a column, whose axis the result lacks, as in NumPy. Raises
    ShapeError for 0-d arguments, unequal inner sides, and batches that do not broadcast.
    """
    _check_matmul(getattr(x, "shape", ()), getattr(y, "shape", ()))
    if y.ndim == 1 or x.ndim == 1:
        return namespace(x).matmul(_laid_out(x), _laid_out(y))
    return _merged(x, y)


# Where a rule wants a transposed matrix there is an op that takes it as it is, so that a gradient
# lies in memory as its argument does: sums of gradients in two orders cost several times as much.


@primitive
def _matmul_nt(x, y):
    """x @ y.mT, of two or more axes each."""
    return _merged(x, y.mT)


@primitive
def _matmul_tn(x, y):
    """x.mT @ y, of two or more axes each."""
    return _product(x.mT, y)


def _merged(x: Any, y: Any) -> Any:
    """x @ y; of a batch with one matrix as one large product, not as many small ones."""
    if y.ndim > 2 or x.ndim == 2:
        return _product(x, y)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return _product(rows, y).reshape(*x.shape[:-1], y.shape[-1])


def _check_matmul(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    for name, shape in (("x", x), ("y", y)):
        if not shape:
            raise ShapeError(
                f"matmul: {name}: expected at least 1 dimension, got a 0-d array; use multiply"
            )
    if x[-1] != y[max(len(y) - 2, 0)]:
        raise ShapeError(
            f"matmul: y: expected {x[-1]} rows to meet x of shape {x}, got shape {y}; make "
            f"x.shape[-1] equal y.shape[{max(len(y) - 2, 0) - len(y)}], or swap axes"
        )
    if len(x) <= 2 or len(y) <= 2:
        return
    try:
        np.broadcast_shapes(x[:-2], y[:-2])
    except ValueError:
        raise ShapeError(
            f"matmul: y: expected batch axes that broadcast with {x[:-2]}, got {y[:-2]}; make "
            "them equal or 1"
        ) from None


def _product(x: Any, y: Any) -> Any:
    """x @ y of two or more axes each; a large one in two halves (NumPy, unless BLAS divides it): of
    its first axis, or of a matrix's columns where they are more, for then BLAS lays out the right
    side once in all."""
    xp = namespace(x)
    if xp is not np:
        return xp.matmul(x, y)
    if x.shape[-1] == 1:  # NumPy has slow loops for it, not BLAS
        return np.multiply(x, y)
    x, y = _laid_out(x), _laid_out(y)
    batch = np.broadcast_shapes(x.shape[:-2], y.shape[:-2]) if x.ndim > 2 or y.ndim > 2 else ()
    shape = (*batch, x.shape[-2], y.shape[-1])
    if shape[0] < 2 or math.prod(shape) * x.shape[-1] < SPLIT or blas_divides():
        return np.matmul(x, y)
    out = np.empty(shape, np.result_type(x, y))
    if len(shape) == 2 and shape[1] > shape[0]:
        half = (shape[1] + 1) // 2
        in_two(
            lambda: np.matmul(x, y[:, :half], out=out[:, :half]),
            lambda: np.matmul(x, y[:, half:], out=out[:, half:]),
        )
        return out

    def work(part: slice) -> None:
        left = x[part] if x.ndim == out.ndim and x.shape[0] > 1 else x
        right = y[part] if y.ndim == out.ndim > 2 and y.shape[0] > 1 else y
        np.matmul(left, right, out=out[part])

    half = (shape[0] + 1) // 2
    in_two(lambda: work(slice(0, half)), lambda: work(slice(half, None)))
    return out


def _laid_out(x: Any) -> Any:
    """x, a vector or matrix that was broadcast written out: BLAS takes no strides of 0."""
    if type(x) is np.ndarray and x.ndim < 3 and 0 in x.strides:
        return np.ascontiguousarray(x)
    return x


def _matmul_vjp_x(g, y, x_shape, y_shape):
    if len(y_shape) == 1:
        return g[..., None] * y
    if len(x_shape) == 1:
        return matmul(y, g[..., None])[..., 0]
    return _matmul_nt(g, y)


def _matmul_vjp_y(g, x, x_shape, y_shape):
    if len(x_shape) == 1:
        return g[..., None] * x if len(y_shape) == 1 else x[:, None] * g[..., None, :]
    if len(y_shape) == 1:
        rows = math.prod(x_shape[:-1])
        return matmul(reshape(x, (rows, x_shape[-1])).mT, reshape(g, (rows,)))
    return _of_one(x, g, len(y_shape))


def _of_one(x, y, ndim):
    """x.mT @ y; for `ndim` 2 the sum over the batch is part of one product."""
    if ndim == 2 < len(x.shape):
        rows = math.prod(x.shape[:-1])
        x, y = reshape(x, (rows, x.shape[-1])), reshape(y, (rows, y.shape[-1]))
    return _matmul_tn(x, y)


matmul.defvjp(x=_matmul_vjp_x, y=_matmul_vjp_y)
_matmul_nt.defvjp(x=lambda g, y: matmul(g, y), y=lambda g, x, y_shape: _of_one(g, x, len(y_shape)))
_matmul_tn.defvjp(x=lambda g, y: _matmul_nt(y, g), y=lambda g, x: matmul(x, g))


@samples(matmul)
def _(draw: Draw):
    m, k, n = draw.shape(min_dims=3, max_dims=3, max_side=3)
    left, right = draw.broadcast_shapes(2, max_dims=2, max_side=2)
    x = draw.choice([(k,), (m, k), (*left, m, k)])
    y = draw.choice([(k,), (k, n), (*right, k, n)])
    return call(draw.array(x), draw.array(y))


@samples(_matmul_nt)
@samples(_matmul_tn)
def _(draw: Draw):
    side = draw.integer(0, 3)
    left, right = draw.broadcast_shapes(2, max_dims=2, max_side=2)
    x = draw.choice([(side, side), (*left, side, side)])
    return call(draw.array(x), draw.array(draw.choice([(side, side), (*right, side, side)])))


def dot(x: Any, y: Any) -> Any:
    """NumPy's dot: the last axis of `x` against the last but one (or only) axis of `y`.

    Equals matmul up to 2-d; beyond, all pairs of rows and columns: (..., k) and (*batch, k, n) give
    (..., *batch, n). A 0-d argument multiplies. Raises ShapeError as matmul does.
    """
    x_ndim, y_ndim = len(shape_of(x)), len(shape_of(y))
    if x_ndim == 0 or y_ndim == 0:
        return reshape(x, shape_of(x)) * y
    return matmul(x, y) if y_ndim <= 2 else tensordot(x, y, (-1, -2))


@samples(dot)
def _(draw: Draw):
    k = draw.integer(0, 3)
    x = draw.choice([(), (k,), (2, k), (2, 1, k)])
    y = draw.choice([(), (k,), (k, 3), (2, k, 1)])
    return call(draw.array(x), draw.array(y))


def outer(x: Any, y: Any) -> Any:
    """All products of an entry of `x` and one of `y`, both flattened: (x.size, y.size)."""
    return reshape(x, (-1, 1)) * reshape(y, (1, -1))


@samples(outer)
def _(draw: Draw):
    return call(draw.array(draw.shape(max_dims=2)), draw.array(draw.shape(max_dims=2)))


def tensordot(x: Any, y: Any, axes: int | Sequence = 2) -> Any:
    """Sum of products over pairs of axes: x's other axes, then y's, remain.

    `axes` n pairs the last n of `x` with the first n of `y`; (a, b) pairs the axes (or sequences of
    axes) a of `x` with b of `y`. Raises ShapeError when paired sides differ.
    """
    x_shape, y_shape = shape_of(x), shape_of(y)
    if isinstance(axes, int):
        last, first = range(len(x_shape) - axes, len(x_shape)), range(axes)
        axes = (tuple(last), tuple(first))
    left = many_axes("tensordot", _sequence(axes[0]), len(x_shape))
    right = many_axes("tensordot", _sequence(axes[1]), len(y_shape))
    inner = [x_shape[a] for a in left]
    if inner != [y_shape[a] for a in right]:
        raise ShapeError(
            f"tensordot: axes: expected pairs of equal sides, got axes {left} of x {x_shape} and "
            f"{right} of y {y_shape}; pair axes of one length"
        )
    x_free = [a for a in range(len(x_shape)) if a not in left]
    y_free = [a for a in range(len(y_shape)) if a not in right]
    x_kept, y_kept = [x_shape[a] for a in x_free], [y_shape[a] for a in y_free]
    k = math.prod(inner)
    rows = reshape(transpose(x, (*x_free, *left)), (math.prod(x_kept), k))
    columns = reshape(transpose(y, (*right, *y_free)), (k, math.prod(y_kept)))
    return reshape(matmul(rows, columns), (*x_kept, *y_kept))


def _sequence(axes: Any) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, (tuple, list)) else (axes,)


@samples(tensordot)
def _(draw: Draw):
    inner = draw.shape(max_dims=2, max_side=3)
    left, right = draw.shape(max_dims=2, max_side=2), draw.shape(max_dims=2, max_side=2)
    if len(inner) == 1 and draw.boolean():
        axes: Any = (0, -1)
        return call(draw.array((*inner, *left)), draw.array((*right, *inner)), axes=axes)
    return call(draw.array((*left, *inner)), draw.array((*inner, *right)), axes=len(inner))


# --- Diagonals ------------------------------------------------------------------------------------


@primitive(view=True)
def _diagonal(x, offset, axis1, axis2):
    return x.diagonal(offset, axis1, axis2)


@primitive
def _put_diagonal(x, shape, offset, axis1, axis2):
    """Zeros of `shape` with `x` (..., length) on a diagonal: the adjoint of `_diagonal`."""
    xp = namespace(x)
    rest = [n for a, n in enumerate(shape) if a not in (axis1, axis2)]
    rows, columns = shape[axis1], shape[axis2]
    out = xp.zeros((*rest, rows, columns), x.dtype)
    flat = out.reshape(*rest, rows * columns)
    first, step = offset if offset >= 0 else -offset * columns, columns + 1
    flat[..., first : first + x.shape[-1] * step : step] = x
    return xp.moveaxis(out, (-2, -1), (axis1, axis2))


_diagonal.defvjp(
    x=lambda g, x_shape, offset, axis1, axis2: _put_diagonal(g, x_shape, offset, axis1, axis2)
)
_put_diagonal.defvjp(x=lambda g, offset, axis1, axis2: _diagonal(g, offset, axis1, axis2))


def diagonal(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """The entries x[i, i + offset] of two axes, as a new last axis; a view.

    Raises ShapeError when `x` lacks the axes, or they are one.
    """
    ndim = len(shape_of(x))
    one, two = one_axis("diagonal", axis1, ndim), one_axis("diagonal", axis2, ndim)
    if one == two:
        raise ShapeError(f"diagonal: axis2: expected another axis than axis1, got {axis2} for both")
    return _diagonal(x, offset, one, two)


def trace(x: Any, offset: int = 0, axis1: int = 0, axis2: int = 1) -> Any:
    """The sum of `diagonal(x, offset, axis1, axis2)`. Raises ShapeError as diagonal does."""
    return sum(diagonal(x, offset, axis1, axis2), axis=-1)


@samples(diagonal)
@samples(trace)
def _(draw: Draw):
    x = draw.array(draw.shape(min_dims=2, max_dims=3))
    axis1, axis2 = draw.permutation(x.ndim)[:2]
    return call(x, draw.integer(-2, 2), axis1, axis2 - x.ndim)


def diag(x: Any, k: int = 0) -> Any:
    """A matrix with 1-d `x` on its k-th diagonal; of a 2-d `x`, that diagonal.

    Raises ShapeError for other ranks: see diagonal.
    """
    shape = shape_of(x)
    if len(shape) == 1:
        side = shape[0] + abs(k)
        return _put_diagonal(x, (side, side), k, 0, 1)
    if len(shape) != 2:
        raise ShapeError(f"diag: x: expected 1 or 2 dimensions, got shape {shape}; use diagonal")
    return _diagonal(x, k, 0, 1)


@samples(diag)
def _(draw: Draw):
    return call(draw.array(draw.shape(min_dims=1, max_dims=2)), draw.integer(-2, 2))


# --- Einstein summation ---------------------------------------------------------------------------


def einsum(subscripts: str, *operands: Any) -> Any:
    """Einstein summation: einsum("bij,bjk->bik", x, y) sums over every letter not in the output.

    As in NumPy: without "->" the output has the letters that occur once, in alphabetical order;
    "..." stands for axes that broadcast; a letter twice in one operand takes its diagonal; sides of
    1 broadcast. Raises ShapeError when subscripts and shapes do not fit.
    """
    shapes = [shape_of(x) for x in operands]
    terms, output = _parse(subscripts, shapes)
    sizes: dict = {}
    for term, shape in zip(terms, shapes, strict=True):
        for label, n in zip(term, shape, strict=True):
            if n != 1 and sizes.setdefault(label, n) != n:
                raise ShapeError(
                    f"einsum: operands: expected one length for {_show(label)} of {subscripts!r}, "
                    f"got {sizes[label]} and {n} in shapes {shapes}; make them equal or 1"
                )
    pairs = [_simplify(x, term, sizes) for x, term in zip(operands, terms, strict=True)]
    missing = [label for label in output if not any(label in term for _, term in pairs)]
    arrays, kept = [x for x, _ in pairs], tuple(term for _, term in pairs)
    out = _contract(*arrays, terms=kept, output=tuple(a for a in output if a not in missing))
    if not missing:
        return out
    return reshape(out, tuple(1 if label in missing else sizes[label] for label in output))


def _parse(subscripts: str, shapes: list) -> tuple[list[list], list]:
    """Labels of each operand's axes and of the output's: letters, and -1, -2, ... for "..."."""

    def error(expected: str) -> ShapeError:
        return ShapeError(f"einsum: subscripts: expected {expected}, got {subscripts!r}")

    if not isinstance(subscripts, str):
        raise error("a string such as 'ij,jk->ik' (lists of axes are not supported)")
    inputs, arrow, output = subscripts.replace(" ", "").partition("->")
    texts = inputs.split(",")
    if len(texts) != len(shapes):
        raise error(f"one term for each of {len(shapes)} operands")
    terms, widest = [], 0
    for text, shape in zip(texts, shapes, strict=True):
        wild = len(shape) - len(text.replace("...", "", 1))
        if not text.replace("...", "", 1).isalpha() and text not in ("", "..."):
            raise error("letters, and '...' at most once a term")
        if wild < 0 or (wild and "..." not in text):
            raise error(f"{len(shape)} letters for an operand of shape {shape} in {text!r}")
        terms.append(_labels(text, wild))
        widest = max(widest, wild)
    everything = [label for term in terms for label in term]
    if not arrow:
        letters = sorted({a for a in everything if isinstance(a, str) and everything.count(a) == 1})
        return terms, [*range(-widest, 0), *letters]
    if widest and "..." not in output:
        raise error("'...' in the output too, where an operand's stands for axes")
    result = _labels(output, widest)
    if len(set(result)) < len(result) or not set(result) <= {*everything, *range(-widest, 0)}:
        raise error("output letters that occur once there and in some operand")
    return terms, result


def _labels(text: str, wild: int) -> list:
    before, dots, after = text.partition("...")
    return [*before, *(range(-wild, 0) if dots else ()), *after]


def _show(label: Any) -> str:
    return f"letter {label!r}" if isinstance(label, str) else f"axis {label} of '...'"


def _simplify(x: Any, term: list, sizes: dict) -> tuple[Any, tuple]:
    """Take diagonals of repeated labels, and drop axes of 1."""
    while len(set(term)) < len(term):
        label = next(a for a in term if term.count(a) > 1)
        one = term.index(label)
        two = term.index(label, one + 1)
        shape = shape_of(x)
        if shape[one] != shape[two]:
            raise ShapeError(
                f"einsum: operands: expected equal sides for the repeated {_show(label)}, got "
                f"shape {shape}; slice it to a square"
            )
        x = diagonal(x, 0, one, two)
        term = [a for axis, a in enumerate(term) if axis not in (one, two)] + [label]
    shape = shape_of(x)
    wide = [n != 1 for n in shape]
    if not all(wide):
        x = reshape(x, tuple(n for n in shape if n != 1))
    return x, tuple(label for label, keep in zip(term, wide, strict=True) if keep)


@primitive
def _contract(*operands, terms, output):
    """Multiply arrays whose axes bear the labels `terms`, summing over all labels not in `output`.

    No label occurs twice in a term, and each has one length. Pairs go first that leave the
    smallest array.
    """
    parts = list(zip(operands, terms, strict=True))
    while len(parts) > 1:
        best = min(combinations(parts, 2), key=_growth) if len(parts) > 2 else tuple(parts)
        rest = [part for part in parts if not any(part is chosen for chosen in best)]
        keep = set(output).union(*(term for _, term in rest))
        parts = [*rest, _pair(*best, keep)]
    x, term = _sum_out(parts[0], set(output))
    x = x.transpose([term.index(label) for label in output])
    return x.copy() if len(operands) == 1 else x


def _growth(pair: tuple) -> int:
    """The size of the product of two labelled arrays, at most, less their own."""
    (x, a), (y, b) = pair
    sizes = dict(zip((*a, *b), (*x.shape, *y.shape), strict=True))
    common = math.prod(sizes[label] for label in a if label in b)
    return math.prod(sizes.values()) // max(common, 1) - x.size - y.size


def _sum_out(part: tuple, keep: set) -> tuple[Any, tuple]:
    x, term = part
    axes = tuple(axis for axis, label in enumerate(term) if label not in keep)
    if not axes:
        return x, term
    wide = x.dtype == np.float16  # accumulate in float32
    out = x.sum(axis=axes, dtype=np.float32 if wide else x.dtype)
    return out.astype(x.dtype) if wide else out, tuple(a for a in term if a in keep)


def _pair(left: tuple, right: tuple, keep: set) -> tuple[Any, tuple]:
    """The product of two labelled arrays as one batched matrix product (or elementwise)."""
    x, a = _sum_out(left, keep | set(right[1]))
    y, b = _sum_out(right, keep | set(a))
    sizes = dict(zip((*a, *b), (*x.shape, *y.shape), strict=True))
    batch = [label for label in a if label in b and label in keep]
    inner = [label for label in a if label in b and label not in keep]
    rows = [label for label in a if label not in b]
    columns = [label for label in b if label not in a]
    x = x.transpose([a.index(label) for label in (*batch, *rows, *inner)])
    y = y.transpose([b.index(label) for label in (*batch, *inner, *columns)])
    out_labels = (*batch, *rows, *columns)
    lengths = [[sizes[label] for label in group] for group in (batch, rows, inner, columns)]
    if not inner:
        y = y.reshape((*lengths[0], *(1 for _ in rows), *lengths[3]))
        return x.reshape((*x.shape, *(1 for _ in columns))) * y, out_labels
    m, k, n = (math.prod(group) for group in lengths[1:])
    head = (math.prod(lengths[0]),) if batch else ()
    out = _product(x.reshape(*head, m, k), y.reshape(*head, k, n))
    return out.reshape([sizes[label] for label in out_labels]), out_labels


def _contract_vjp(g, operands, operands_shape, terms, output, needs):
    gradients = [None] * len(terms)
    for i, needed in enumerate(needs):
        if not needed:
            continue
        others = [x for j, x in enumerate(operands) if j != i]
        known = (output, *(term for j, term in enumerate(terms) if j != i))
        found = [any(label in term for term in known) for label in terms[i]]
        target = tuple(label for label, there in zip(terms[i], found, strict=True) if there)
        gradient = _contract(g, *others, terms=known, output=target)
        if not all(found):  # labels of this operand alone were summed over
            shape = operands_shape[i]
            spread = tuple(n if there else 1 for n, there in zip(shape, found, strict=True))
            gradient = broadcast_to(reshape(gradient, spread), shape)
        gradients[i] = gradient
    return tuple(gradients)


_contract.defvjp(joint=_contract_vjp)

SUBSCRIPTS = (
    "i->i", "ij->ji", "ij->", "ii", "ii->i", "iij->ji", "iii->i", "...i->...", "ij->j", "i,i",
    "i,j->ij", "ij,ij->ij", "ij,jk", "ij,jk->ki", "bij,bjk->bik", "bij,bkj->bik", "...ij,...jk",
    "...i,i", "ij,kj->ik", "ij,k->j", "iij,jk->k", "bhqk,bkhd->bqhd", "ij,jk,kl->il", "i,i,i->i",
    "ab,b...,ab->a...", ",i->i",
)  # fmt: skip


@samples(einsum)
def _(draw: Draw):
    subscripts = draw.choice(SUBSCRIPTS)
    sizes = {label: draw.integer(1, 3) for label in "abcdhijklq"} | {"k": draw.integer(0, 2)}
    wild = draw.shape(max_dims=2, max_side=2)
    arrays = []
    for text in subscripts.partition("->")[0].split(","):
        before, dots, after = text.partition("...")
        sides = [*(sizes[a] for a in before), *(wild if dots else ()), *(sizes[a] for a in after)]
        arrays.append(draw.array(sides))
    return call(subscripts, *arrays)
