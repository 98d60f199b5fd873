"""Reductions: values, conventions, dtypes, errors. Gradients: test_registry."""

import math

import numpy as np
import pytest
import scipy.special

import minidl as md
from minidl.testing import check_gradients

AXES = [None, 0, -1, (0, 2), (-1, 1), ()]


def gradient(f, x):
    x = md.tensor(np.asarray(x), requires_grad=True)
    out = f(x)
    return md.grad(out, [x], md.ones_like(out))[0].numpy()


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(2, 3, 4))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize(
    "name", "sum mean prod max min var std all any count_nonzero logsumexp".split()
)
def test_values_are_numpys(x, name, axis, keepdims):
    x[0, 0] = np.round(x[0, 0])
    reference = scipy.special.logsumexp if name == "logsumexp" else getattr(np, name)
    out = getattr(md, name)(md.tensor(x), axis=axis, keepdims=keepdims)
    expected = reference(x, axis=axis, keepdims=keepdims)
    assert out.shape == np.shape(expected)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-13)


@pytest.mark.parametrize("axis", [None, 0, -1])
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_positions_of_extremes(x, name, axis):
    np.testing.assert_array_equal(
        getattr(md, name)(md.tensor(x), axis, True).numpy(),
        getattr(np, name)(x, axis, keepdims=True),
    )


@pytest.mark.parametrize("axis", [None, 0, -2])
def test_cumsum(x, axis):
    np.testing.assert_allclose(md.cumsum(md.tensor(x), axis).numpy(), np.cumsum(x, axis))


@pytest.mark.parametrize("ddof", [0, 1, 2])
def test_degrees_of_freedom(x, ddof):
    np.testing.assert_allclose(md.var(md.tensor(x), 2, ddof).numpy(), np.var(x, 2, ddof=ddof))
    np.testing.assert_allclose(md.std(md.tensor(x), 2, ddof).numpy(), np.std(x, 2, ddof=ddof))


def test_no_entries():
    empty = md.tensor(np.zeros((0, 3)))
    np.testing.assert_array_equal(md.sum(empty, 0).numpy(), [0, 0, 0])
    np.testing.assert_array_equal(md.prod(empty, 0).numpy(), [1, 1, 1])
    for op in (md.mean, md.var, md.std):
        np.testing.assert_array_equal(op(empty, 0).numpy(), [np.nan] * 3)
    assert md.max(empty, 1).shape == (0,)
    assert md.softmax(empty, 0).shape == (0, 3)
    assert np.isnan(md.var(md.tensor([1.0]), ddof=1).item())


@pytest.mark.parametrize("op", [md.max, md.min, md.argmax, md.argmin, md.logsumexp])
def test_extremes_of_nothing(op):
    with pytest.raises(md.errors.ShapeError, match="expected at least one entry along axis 0"):
        op(md.tensor(np.zeros((0, 3))), 0)


@pytest.mark.parametrize(
    "op", [md.sum, md.mean, md.prod, md.max, md.var, md.softmax, md.cumsum, md.logsumexp, md.any]
)
def test_a_wrong_axis_is_named(op):
    with pytest.raises(md.errors.ShapeError, match=r"axis: expected .* 2 dimensions, got 2"):
        op(md.tensor(np.zeros((2, 3))), 2)


# --- Products -------------------------------------------------------------------------------------


def test_prod_with_zeros():
    rows = np.array([[2.0, 3.0, 5.0, 7.0], [2.0, 0.0, 5.0, 7.0], [0.0, 3.0, 0.0, 7.0]])
    expected = [[105, 70, 42, 30], [0, 70, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(gradient(lambda x: md.prod(x, 1), rows), expected)
    check_gradients(lambda x: md.prod(x, 1), rows, order=3)


def test_prod_of_three_zeros_has_third_derivatives():
    check_gradients(md.prod, np.array([0.0, 2.0, 0.0, 0.0, 3.0]), order=4)
    hessian = md.hessian(md.prod, md.tensor(np.array([0.0, 2.0, 0.0])))
    np.testing.assert_array_equal(hessian.numpy(), [[0, 0, 2], [0, 0, 0], [2, 0, 0]])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 8])
def test_prod_of_any_length(n):
    x = np.random.default_rng(n).uniform(0.5, 1.5, n)
    np.testing.assert_allclose(gradient(md.prod, x), np.prod(x) / x)


# --- Conventions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [md.max, md.min])
def test_ties_share_equally(op):
    np.testing.assert_array_equal(gradient(op, [2.0, 2.0, 2.0, 2.0]), [0.25] * 4)
    sign = 1 if op is md.max else -1
    rows = sign * np.array([[3.0, 1.0, 3.0], [0.0, 5.0, 1.0]])
    np.testing.assert_array_equal(gradient(lambda x: op(x, 1), rows), [[0.5, 0, 0.5], [0, 1, 0]])


def test_std_of_equal_entries_has_gradient_0():
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(gradient(md.std, [3.0, 3.0, 3.0]), [0, 0, 0])


@pytest.mark.parametrize("ord", [1, 2, "fro", math.inf])
def test_norm_at_0_has_gradient_0(ord):
    with np.errstate(all="raise"):
        out = gradient(lambda x: md.norm(x, ord), np.zeros((2, 3)))
        double = gradient(lambda x: md.square(md.norm(x, ord)), np.zeros(3))
    np.testing.assert_array_equal(out, np.zeros((2, 3)))
    np.testing.assert_array_equal(double, np.zeros(3))


def test_norm_values(x):
    for ord in (1, 2, math.inf):
        expected = np.linalg.norm(x, ord, axis=1)
        np.testing.assert_allclose(md.norm(md.tensor(x), ord, axis=1).numpy(), expected)
    frobenius = np.linalg.norm(x, axis=(0, 2), keepdims=True)
    np.testing.assert_allclose(md.norm(md.tensor(x), axis=(0, 2), keepdims=True).numpy(), frobenius)
    np.testing.assert_allclose(md.norm(md.tensor(x)).item(), np.linalg.norm(x))
    with pytest.raises(ValueError, match="norm: ord: expected 1, 2, inf or 'fro', got 3"):
        md.norm(md.tensor(x), 3)


# --- Exponentials ---------------------------------------------------------------------------------

INF = math.inf


def test_logsumexp_of_infinities():
    rows = np.array([[-INF, -INF, -INF], [-INF, 0.0, 0.0], [1.0, INF, -INF], [1e4, -1e4, 1e4]])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        out = md.logsumexp(md.tensor(rows), 1).numpy()
        slope = gradient(lambda x: md.logsumexp(x, 1), rows)
    np.testing.assert_allclose(out, [-INF, math.log(2), INF, 1e4 + math.log(2)])
    np.testing.assert_allclose(slope, [[0, 0, 0], [0, 0.5, 0.5], [0, 1, 0], [0.5, 0, 0.5]])


def test_second_order_of_a_row_of_minus_infinity_is_0():
    x = md.tensor(np.full(3, -INF), requires_grad=True)
    for f in (md.logsumexp, lambda x: md.softmax(x)[0]):
        (first,) = md.grad(f(x), [x], create_graph=True)
        (second,) = md.grad(first.sum(), [x])
        np.testing.assert_array_equal(second.numpy(), [0, 0, 0])


def test_softmax_of_masked_rows():
    rows = np.array([[-INF, -INF], [-INF, 3.0], [1e4, -1e4]])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        out = md.softmax(md.tensor(rows)).numpy()
        slope = gradient(lambda x: md.softmax(x)[:, 0], rows)
    np.testing.assert_array_equal(out, [[0, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(slope, np.zeros((3, 2)))


def test_log_softmax_of_masked_rows():
    rows = np.array([[-INF, -INF], [-INF, 3.0], [1e4, -1e4]])
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        out = md.log_softmax(md.tensor(rows)).numpy()
        slope = gradient(lambda x: md.log_softmax(x)[1:, 1], rows)
    np.testing.assert_array_equal(out, [[-INF, -INF], [-INF, 0], [0, -2e4]])
    np.testing.assert_array_equal(slope, [[0, 0], [0, 0], [-1, 1]])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_is_scipys(x, axis):
    t = md.tensor(x)
    np.testing.assert_allclose(md.softmax(t, axis).numpy(), scipy.special.softmax(x, axis))
    np.testing.assert_allclose(md.log_softmax(t, axis).numpy(), scipy.special.log_softmax(x, axis))


@pytest.mark.parametrize("op", [md.softmax, md.log_softmax])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_halves_give_the_whole(op, axis):
    x = np.random.default_rng(0).normal(size=(30, 200, 20))
    whole = op(md.tensor(x), axis).numpy()
    for i in range(3):
        part = (slice(None), slice(None), [i]) if axis == 0 else [i]
        np.testing.assert_allclose(op(md.tensor(x[part]), axis).numpy(), whole[part], rtol=1e-12)
    with md.threads(2):
        np.testing.assert_array_equal(op(md.tensor(x), axis).numpy(), whole)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_halves_of_softmaxs_gradient(axis):
    generator = np.random.default_rng(0)
    weights, upstream = generator.normal(size=(2, 30, 200, 20))
    out = md.softmax(md.tensor(weights), axis).numpy()
    x = md.tensor(weights, requires_grad=True)
    (g,) = md.grad(md.softmax(x, axis), [x], upstream)
    expected = out * (upstream - np.sum(out * upstream, axis, keepdims=True))
    np.testing.assert_allclose(g.numpy(), expected, atol=1e-15)


# --- Dtypes ---------------------------------------------------------------------------------------


def test_float16_sums_accumulate_in_float32():
    x = md.tensor(np.full(10_000, 0.1, np.float16)[:, None])
    for axis in (None, 0):
        assert md.sum(x, axis).item() == pytest.approx(1000, rel=1e-3)
        assert md.mean(x * 100, axis).item() == pytest.approx(10, rel=1e-3)  # the sum overflows
        assert md.norm(x * 100, 2, axis).item() == pytest.approx(1000, rel=1e-3)
    assert md.cumsum(x, 0)[-1].item() == pytest.approx(1000, rel=1e-3)
    assert md.logsumexp(x).item() == pytest.approx(0.1 + math.log(10_000), rel=1e-3)
    assert md.var(x).item() == pytest.approx(0, abs=1e-6)
    assert md.softmax(x, 0).numpy().astype(np.float32).sum() == pytest.approx(1, rel=5e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "op",
    [
        md.sum, md.mean, md.prod, md.max, md.min, md.var, md.std, md.cumsum, md.logsumexp,
        md.softmax, md.log_softmax, md.norm,
    ],
)  # fmt: skip
def test_dtype_is_kept(op, dtype):
    x = md.tensor(np.linspace(-1, 2, 6).reshape(2, 3).astype(dtype), requires_grad=True)
    assert op(x).dtype == dtype
    assert md.grad(op(x).sum(), [x])[0].dtype == dtype


def test_integers():
    n = md.tensor(np.array([[1, 2], [3, 4]]))
    assert md.sum(n).dtype == md.prod(n).dtype == md.max(n).dtype == np.int64
    assert md.mean(n).dtype == md.var(n).dtype == md.softmax(n).dtype == np.float32
    assert md.sum(n > 2).item() == md.count_nonzero(n - 2).item() - 1 == 2


@pytest.mark.parametrize("op", [md.softmax, md.log_softmax])
def test_softmax_names_itself_in_errors(op):
    with pytest.raises(md.errors.ShapeError, match=f"{op.__name__}: axis"):
        op(md.tensor([1.0, 2.0]), 3)
