"""Matrix functions of numpy.linalg: inverses, determinants and spectra of (batches of) matrices.

The derivatives follow Giles, "Collected matrix derivative results for forward and reverse mode
algorithmic differentiation" (2008), and where named Murray (2016) and Townsend (2016). A matrix
that has no inverse raises numpy.linalg.LinAlgError on NumPy, and gives nan or inf on CuPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import namespace
from minidl.errors import ShapeError
from minidl.ops.products import matmul
from minidl.ops.shape import shape_of, tril

__all__ = ["cholesky", "det", "eigh", "inv", "slogdet", "solve", "svdvals"]


def _check_matrices(op: str, argument: str, shape: tuple[int, ...], square: bool = True) -> None:
    if len(shape) < 2 or (square and shape[-1] != shape[-2]):
        form = "(..., n, n)" if square else "(..., m, n)"
        raise ShapeError(
            f"{op}: {argument}: expected {form}, got {shape}; the matrices are the last two axes"
        )


def _matrix(draw: Draw, diagonal: tuple[float, ...], columns: int | None = None) -> np.ndarray:
    """Matrices with entries in [-0.4, 0.4], plus `diagonal`: well conditioned, spectrum apart."""
    side = draw.shape(min_dims=1, max_dims=1, max_side=len(diagonal))[0]
    columns = side if columns is None else columns
    batch = draw.shape(max_dims=1, max_side=2)
    x = draw.array((*batch, side, columns), low=-0.4, high=0.4)
    index = np.arange(min(side, columns))
    x[..., index, index] += np.asarray(diagonal[: len(index)], x.dtype)
    return x


# --- Inverse, linear systems, determinants --------------------------------------------------------


@primitive(floats=True)
def inv(x: Any) -> Any:
    """Inverse of matrices (..., n, n). Raises ShapeError unless they are square."""
    _check_matrices("inv", "x", x.shape)
    return namespace(x).linalg.inv(x)


inv.defvjp(x=lambda g, out: -matmul(matmul(out.mT, g), out.mT))


@primitive(floats=True)
def solve(a: Any, b: Any) -> Any:
    """The x of a @ x = b, for `a` (..., n, n) and `b` (n,) or (..., n, k), batches broadcasting.

    As in NumPy 2, only a 1-d `b` is a vector: give a batch of vectors as b[..., None]. Raises
    ShapeError when the shapes do not fit.
    """
    _check_matrices("solve", "a", a.shape)
    if b.ndim == 0 or b.shape[max(b.ndim - 2, 0)] != a.shape[-1]:
        raise ShapeError(
            f"solve: b: expected (n,) or (..., n, k) with n = {a.shape[-1]}, got {b.shape}; for a "
            "batch of vectors use b[..., None]"
        )
    return namespace(a).linalg.solve(a, b)


def _solve_vjp(g, a, b_shape, out, needs):
    vector = len(b_shape) == 1
    if vector:
        g, out = g[..., None], out[..., None]
    to_b = solve(a.mT, g)
    to_a = -matmul(to_b, out.mT) if needs[0] else None
    return to_a, (to_b[..., 0] if vector else to_b) if needs[1] else None


solve.defvjp(joint=_solve_vjp, of=("a", "b"))


@primitive(floats=True)
def det(x: Any) -> Any:
    """Determinant of matrices (..., n, n). Its gradient needs them invertible.

    Raises ShapeError unless they are square.
    """
    _check_matrices("det", "x", x.shape)
    return namespace(x).linalg.det(x)


det.defvjp(x=lambda g, out, x: (g * out)[..., None, None] * inv(x).mT)


@primitive(floats=True)
def slogdet(x: Any) -> Any:
    """(sign, logabsdet) of the determinants of matrices (..., n, n): sign * exp(logabsdet).

    The sign has gradient 0; that of logabsdet needs an invertible `x`. Raises ShapeError unless the
    matrices are square.
    """
    _check_matrices("slogdet", "x", x.shape)
    sign, logabsdet = namespace(x).linalg.slogdet(x)
    return sign, logabsdet


slogdet.defvjp(x=lambda g, x: g[1][..., None, None] * inv(x).mT)


@samples(inv)
@samples(det)
@samples(slogdet)
def _(draw: Draw):
    return call(_matrix(draw, draw.choice([(2.0, 2.0, 2.0), (-2.0, 3.0, 2.0)])))


@samples(solve)
def _(draw: Draw):
    a = _matrix(draw, (2.0, 3.0, 2.0))
    n, k = a.shape[-1], draw.integer(0, 2)
    return call(a, draw.array(draw.choice([(n,), (n, k), (*a.shape[:-2], n, k)])))


# --- Symmetric matrices ---------------------------------------------------------------------------


def _symmetric(x: Any) -> Any:
    return 0.5 * (x + x.mT)


def cholesky(x: Any) -> Any:
    """Lower triangular L with L @ L.mT = x, for symmetric positive definite `x` (..., n, n).

    It is taken of (x + x.mT) / 2, which is `x` where that is symmetric: so the gradient is
    symmetric, too. Raises ShapeError unless the matrices are square.
    """
    _check_matrices("cholesky", "x", shape_of(x))
    return _cholesky(_symmetric(x))


@primitive(floats=True)
def _cholesky(x):
    return namespace(x).linalg.cholesky(x)


def _cholesky_vjp(g, out):
    """Murray, "Differentiation of the Cholesky decomposition" (2016), eq. 9."""
    middle = matmul(out.mT, g)
    middle = 0.5 * (tril(middle) + tril(middle, -1))
    return _symmetric(solve(out.mT, solve(out.mT, middle.mT).mT))


_cholesky.defvjp(x=_cholesky_vjp)


def eigh(x: Any) -> Any:
    """Eigenvalues w (..., n), ascending, and eigenvectors v (..., n, n) of symmetric matrices.

    The columns of v, for which x @ v = v * w[..., None, :], have their largest entry positive: so
    they are the same on every device. Eigenvalues and gradient are those of (x + x.mT) / 2, as in
    cholesky. Where eigenvalues coincide the eigenvectors have no derivative: terms in
    1 / (w_i - w_j) are left out, which is right for symmetric functions of the eigenvalues (their
    sum, the sum of their squares), and for the first order only. Raises ShapeError unless the
    matrices are square.
    """
    _check_matrices("eigh", "x", shape_of(x))
    return _eigh(_symmetric(x))


@primitive(floats=True)
def _eigh(x):
    xp = namespace(x)
    w, v = xp.linalg.eigh(x)
    if v.size:
        largest = xp.expand_dims(xp.argmax(xp.abs(v), axis=-2), -2)
        v = v * xp.sign(xp.take_along_axis(v, largest, -2))
    return w, v


def _reciprocal(x: Any) -> Any:
    """1 / x, and 0 where x is 0."""
    zero = x == 0
    return ~zero / (x + zero)


def _eigh_vjp(g, out):
    to_w, to_v = g
    w, v = out
    gaps = w[..., None, :] - w[..., :, None]
    turn = _reciprocal(gaps) * matmul(v.mT, to_v)
    return _symmetric(matmul(v * to_w[..., None, :] + matmul(v, turn), v.mT))


_eigh.defvjp(x=_eigh_vjp)


@samples(cholesky)
def _(draw: Draw):
    return call(_matrix(draw, (2.0, 3.0, 2.0)))


@samples(eigh)
def _(draw: Draw):
    return call(_matrix(draw, (-2.0, 1.0, 4.0)))


# --- Singular values ------------------------------------------------------------------------------


@primitive(floats=True)
def svdvals(x: Any) -> Any:
    """Singular values of matrices (..., m, n), descending: (..., min(m, n)).

    The gradient comes from a full decomposition, made when it is asked for. Where singular values
    coincide or are 0, terms without a limit are left out, as in eigh: the gradient is then one
    choice, and second order is not to be had. Raises ShapeError for fewer than 2 dimensions.
    """
    _check_matrices("svdvals", "x", x.shape, square=False)
    return namespace(x).linalg.svd(x, compute_uv=False)


def _svdvals_vjp(g, x):
    u, _, vh = _svd(x)
    return matmul(u * g[..., None, :], vh)


svdvals.defvjp(x=_svdvals_vjp)


@primitive
def _svd(x):
    u, s, vh = namespace(x).linalg.svd(x, full_matrices=False)
    return u, s, vh


def _svd_vjp(g, out):
    """Townsend, "Differentiating the singular value decomposition" (2016): the thin one."""
    to_u, to_s, to_vh = g
    u, s, vh = out
    row, column = s[..., None, :], s[..., :, None]
    turns = _reciprocal((row - column) * (row + column))
    along_u, along_v = matmul(u.mT, to_u), matmul(vh, to_vh.mT)
    middle = turns * (along_u - along_u.mT) * row + column * (turns * (along_v - along_v.mT))
    total = matmul(u * to_s[..., None, :] + matmul(u, middle), vh)
    if u.shape[-2] > u.shape[-1]:
        total = total + matmul((to_u - matmul(u, along_u)) * _reciprocal(row), vh)
    if vh.shape[-1] > vh.shape[-2]:
        total = total + matmul(u * _reciprocal(row), to_vh - matmul(along_v.mT, vh))
    return total


_svd.defvjp(x=_svd_vjp)


@samples(svdvals)
def _(draw: Draw):
    columns = draw.shape(min_dims=1, max_dims=1)[0]
    return call(_matrix(draw, (2.0, 5.0, 8.0), columns))
