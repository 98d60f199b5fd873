import numpy as np
import pytest

import minidl as md
from minidl import ops
from minidl.errors import ShapeError
from minidl.testing import check_gradients


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def positive(*shape):
    x = normal(*shape)
    return x @ x.mT + np.eye(shape[-1])


BATCHES = [(), (2,), (2, 0), (3, 1)]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("name", ["inv", "det", "slogdet", "cholesky", "svdvals"])
def test_values_are_numpys(name, batch, n):
    x = positive(*batch, n, n)
    out = getattr(ops, name)(md.tensor(x))
    expected = getattr(np.linalg, name)(x)
    outs, expecteds = (out, expected) if name == "slogdet" else ((out,), (expected,))
    for one, other in zip(outs, expecteds, strict=True):
        assert one.shape == np.shape(other)
        np.testing.assert_allclose(one.numpy(), other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["inv", "det", "slogdet", "svdvals"])
def test_gradients_away_from_symmetry(name):
    check_gradients(getattr(ops, name), normal(2, 3, 3))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 3), (3,)),
        ((3, 3), (3, 2)),
        ((2, 3, 3), (3,)),
        ((2, 3, 3), (3, 2)),
        ((2, 3, 3), (2, 3, 1)),
        ((3, 3), (2, 3, 4)),
        ((2, 1, 3, 3), (4, 3, 2)),
        ((3, 3), (3, 0)),
        ((0, 0), (0,)),
    ],
)
def test_solve(a, b):
    a, b = normal(*a) + 3 * np.eye(a[-1]), normal(*b, seed=1)
    out = ops.solve(md.tensor(a), md.tensor(b))
    assert out.shape == np.linalg.solve(a, b).shape
    np.testing.assert_allclose(out.numpy(), np.linalg.solve(a, b), rtol=1e-10)
    check_gradients(ops.solve, a, b)


@pytest.mark.parametrize("name", ["inv", "det", "slogdet", "cholesky", "eigh"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_square_matrices_are_demanded(name, shape):
    with pytest.raises(ShapeError, match=rf"{name}: x: expected \(\.\.\., n, n\)"):
        getattr(ops, name)(md.tensor(normal(*shape)))


def test_other_shapes_that_do_not_fit():
    with pytest.raises(ShapeError, match="svdvals: x"):
        ops.svdvals(normal(3))
    with pytest.raises(ShapeError, match=r"solve: b: .*n = 3.*use b\[\.\.\., None\]"):
        ops.solve(md.tensor(normal(2, 3, 3)), md.tensor(normal(2, 3)))
    with pytest.raises(ShapeError, match="solve: b"):
        ops.solve(normal(3, 3), np.array(1.0))


def test_the_gradient_of_logabsdet_is_the_inverse_transposed():
    x = md.tensor(normal(3, 3), requires_grad=True)
    ops.slogdet(x)[1].backward()
    np.testing.assert_allclose(x.grad.numpy(), np.linalg.inv(x.numpy()).T, rtol=1e-10)


@pytest.mark.parametrize("function", [ops.cholesky, lambda x: ops.eigh(x)[0]])
def test_gradients_of_symmetric_functions_are_symmetric(function):
    x = md.tensor(positive(4, 4), requires_grad=True)
    (g,) = md.grad((function(x) ** 3).sum(), [x])
    np.testing.assert_array_equal(g.numpy(), g.numpy().T)


def test_eigh_decomposes_and_fixes_signs():
    x = normal(2, 4, 4)
    x = x + x.mT
    w, v = ops.eigh(md.tensor(x))
    np.testing.assert_allclose(w.numpy(), np.linalg.eigh(x)[0], rtol=1e-12)
    np.testing.assert_allclose(x @ v.numpy(), v.numpy() * w.numpy()[..., None, :], atol=1e-12)
    largest = np.argmax(np.abs(v.numpy()), axis=-2)[..., None, :]
    assert (np.take_along_axis(v.numpy(), largest, -2) > 0).all()


def test_symmetric_functions_read_the_symmetric_part():
    x = positive(3, 3)
    skew = np.triu(normal(3, 3), 1)
    skew = skew - skew.T
    np.testing.assert_allclose(ops.cholesky(x + skew), np.linalg.cholesky(x), rtol=1e-12)
    np.testing.assert_allclose(ops.eigh(x + skew)[0], np.linalg.eigh(x)[0], rtol=1e-12)


def test_equal_eigenvalues_leave_finite_gradients():
    x = md.tensor(np.eye(3), requires_grad=True)
    w, v = ops.eigh(x)
    (g,) = md.grad((w**2).sum() + (v * v).sum(), [x])
    np.testing.assert_allclose(g.numpy(), 2 * np.eye(3), atol=1e-14)


@pytest.mark.parametrize("shape", [(2, 4), (4, 2), (3, 3), (2, 3, 2), (0, 3), (3, 0), (1, 3)])
def test_svdvals_of_any_shape(shape):
    x = normal(*shape)
    out = ops.svdvals(md.tensor(x)).numpy()
    np.testing.assert_allclose(out, np.linalg.svd(x, compute_uv=False), rtol=1e-12)
    check_gradients(ops.svdvals, x)


def test_nuclear_norm_of_a_matrix_without_full_rank_has_a_finite_gradient():
    x = md.tensor(np.outer(normal(3), normal(4, seed=1)), requires_grad=True)
    (g,) = md.grad(ops.svdvals(x).sum(), [x])
    assert np.isfinite(g.numpy()).all()


@pytest.mark.parametrize("name", ["inv", "det", "slogdet", "cholesky", "eigh", "svdvals"])
def test_single_precision_stays(name):
    out = getattr(ops, name)(md.tensor(positive(3, 3).astype(np.float32)))
    for one in out if isinstance(out, tuple) else (out,):
        assert one.dtype == np.float32


def test_integers_become_floats():
    x = np.array([[2, 1], [1, 3]])
    np.testing.assert_allclose(ops.inv(md.tensor(x)).numpy(), np.linalg.inv(x), rtol=1e-6)
    assert ops.inv(md.tensor(x)).dtype == np.float32
    assert ops.cholesky(md.tensor(x)).dtype == np.float32


def test_a_singular_matrix_is_numpys_error():
    with pytest.raises(np.linalg.LinAlgError):
        ops.inv(md.tensor(np.zeros((2, 2))))
