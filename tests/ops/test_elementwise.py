"""Elementwise ops: values, conventions at kinks and poles, dtypes. Gradients: test_registry."""

import numpy as np
import pytest
import scipy.special

import minidl as md
from minidl.testing import check_gradients


def gradients(f, *arrays):
    """The gradients of the sum of f at float64 tensors of `arrays`, as arrays."""
    xs = [md.tensor(np.array(a, np.float64), requires_grad=True) for a in arrays]
    out = f(*xs)
    return [g.numpy() for g in md.grad(out, xs, md.ones_like(out))]


UNARY = "negative absolute square sqrt exp expm1 log log1p sin cos tan arctan sinh cosh tanh sign"
UNARY += " reciprocal floor ceil isnan isinf isfinite logical_not"
BINARY = "add subtract multiply divide mod floor_divide power maximum minimum logaddexp equal"
BINARY += " not_equal less less_equal greater greater_equal logical_and logical_or"


@pytest.mark.parametrize("name", UNARY.split())
def test_unary_values_are_numpys(name):
    x = np.linspace(0.1, 3.0, 7)
    np.testing.assert_array_equal(getattr(md, name)(md.tensor(x)).numpy(), getattr(np, name)(x))


@pytest.mark.parametrize("name", BINARY.split())
def test_binary_values_are_numpys(name):
    x, y = np.linspace(0.5, 2.0, 4)[:, None], np.linspace(0.5, 3.0, 6)
    expected = getattr(np, name)(x, y)
    np.testing.assert_array_equal(getattr(md, name)(md.tensor(x), md.tensor(y)).numpy(), expected)


@pytest.mark.parametrize("name", ["arcsin", "arccos"])
def test_inverse_functions(name):
    x = np.linspace(-0.9, 0.9, 7)
    np.testing.assert_array_equal(getattr(md, name)(md.tensor(x)).numpy(), getattr(np, name)(x))


def test_erf_is_scipys():
    x = np.linspace(-3, 3, 13)
    np.testing.assert_array_equal(md.erf(md.tensor(x)).numpy(), scipy.special.erf(x))


def test_round_goes_to_even():
    x = md.tensor(np.array([0.5, 1.5, -2.5, 1.25]))
    np.testing.assert_array_equal(md.round(x).numpy(), [0, 2, -2, 1])
    np.testing.assert_array_equal(md.round(x, 1).numpy(), [0.5, 1.5, -2.5, 1.2])


# --- Conventions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [md.maximum, md.minimum])
def test_ties_share_equally(op):
    np.testing.assert_array_equal(gradients(op, [1.0, 2.0], [1.0, 2.0]), 0.5 * np.ones((2, 2)))
    (g,) = gradients(lambda x: op(x, 0.0), [0.0])
    assert g == 0.5


def test_clip_ties_share_equally_with_the_bounds():
    x, lo, hi = gradients(md.clip, [-1.0, 0.0, 0.5, 1.0, 2.0], 0.0, 1.0)
    np.testing.assert_array_equal(x, [0, 0.5, 1, 0.5, 0])
    assert lo == 1.5
    assert hi == 1.5


def test_clip_without_bounds():
    x = md.tensor([-1.0, 5.0])
    np.testing.assert_array_equal(md.clip(x).numpy(), [-1, 5])
    np.testing.assert_array_equal(md.clip(x, 0.0).numpy(), [0, 5])
    np.testing.assert_array_equal(md.clip(x, None, 0.0).numpy(), [-1, 0])


def test_absolute_has_gradient_0_at_0():
    np.testing.assert_array_equal(gradients(md.abs, [-2.0, 0.0, 3.0])[0], [-1, 0, 1])


@pytest.mark.parametrize("op", [md.floor, md.ceil, md.round, md.sign])
def test_steps_have_gradient_0(op):
    np.testing.assert_array_equal(gradients(op, [0.2, 1.7])[0], [0, 0])


def test_mod_follows_the_divisor():
    x, y = gradients(md.mod, [5.5, -5.5], [2.0, 2.0])
    np.testing.assert_array_equal(x, [1, 1])
    np.testing.assert_array_equal(y, [-2, 3])
    np.testing.assert_array_equal(gradients(md.floor_divide, [5.5], [2.0]), [[0], [0]])


# --- Powers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, 5, 0.5, -0.5, -1, -2, -3, 1.7])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_by_a_number(exponent, dtype):
    x = np.linspace(0.5, 3, 9).astype(dtype)
    out = md.power(md.tensor(x), exponent)
    assert out.dtype == dtype
    np.testing.assert_allclose(out.numpy(), x**exponent, rtol=4 * np.finfo(dtype).eps)


def test_power_of_integers():
    x = md.tensor(np.array([1, 2, 3]))
    np.testing.assert_array_equal((x**3).numpy(), [1, 8, 27])
    with pytest.raises(ValueError):
        x**-2


@pytest.mark.parametrize("exponent, slope", [(0, 0), (1, 1), (2, 0), (3, 0), (1.5, 0)])
def test_power_at_base_0(exponent, slope):
    """No 0 * inf, whether the exponent is a number or a tensor."""
    with np.errstate(all="raise"):
        assert gradients(lambda x: x**exponent, [0.0])[0] == slope
        by_x, by_y = gradients(md.power, [0.0], [float(exponent)])
    assert by_x == slope
    assert by_y == 0


def test_power_0_to_0_is_1():
    assert md.power(md.tensor(0.0), md.tensor(0.0)).item() == 1


def test_power_of_exponent_0_has_right_mixed_derivative():
    """d2/dxdy of x ** y at y = 0 is 1 / x."""
    x = md.tensor(np.array(2.0), requires_grad=True)
    y = md.tensor(np.array(0.0), requires_grad=True)
    (by_x,) = md.grad(x**y, [x], create_graph=True)
    assert by_x.item() == 0
    assert md.grad(by_x, [y])[0].item() == pytest.approx(0.5)


def test_power_of_negative_base():
    check_gradients(lambda x: x**3 + x**2, np.array([-1.5, 0.0, 2.0]))
    np.testing.assert_array_equal(gradients(lambda x: x ** md.tensor(3.0), [-2.0])[0], [12])


def test_number_to_a_power():
    check_gradients(lambda y: 2**y + 0.5**y, np.array([-1.5, 0.0, 2.0]))
    assert gradients(lambda y: 0**y, [2.0])[0] == 0


# --- Range ----------------------------------------------------------------------------------------


def test_logaddexp_of_infinities():
    inf = np.inf
    x, y = [-inf, -inf, inf, 1000.0], [-inf, 1.0, 1.0, 1000.0]
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        out = md.logaddexp(md.tensor(np.array(x)), md.tensor(np.array(y)))
        by_x, by_y = gradients(md.logaddexp, x, y)
    np.testing.assert_allclose(out.numpy(), [-inf, 1, inf, 1000 + np.log(2)])
    np.testing.assert_allclose(by_x, [0, 0, 1, 0.5])
    np.testing.assert_allclose(by_y, [0, 1, 0, 0.5])


def test_where_keeps_the_other_sides_gradient_at_0():
    mask = np.array([True, False])
    x, y = gradients(lambda x, y: md.where(mask, x, y), [1.0, 2.0], [3.0, 4.0])
    np.testing.assert_array_equal(x, [1, 0])
    np.testing.assert_array_equal(y, [0, 1])


# --- Dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: 1 - 2.0 * x / 3 + x**2,
        lambda x: 2.5**x,
        lambda x: x**1.7,
        lambda x: md.maximum(x, 0.1),
        lambda x: md.clip(x, 0.1, 1.5),
        lambda x: md.where(x > 1, x, 0.0),
        lambda x: md.logaddexp(x, 0.5),
        lambda x: x % 0.7 + x // 0.7,
        lambda x: md.erf(x) * md.sin(x) + md.tan(x),
        lambda x: md.full_like(x, 2.5) * md.ones_like(x) + md.zeros_like(x) + x,
    ],
)
def test_numbers_do_not_change_the_dtype(f, dtype):
    x = md.tensor(np.linspace(0.2, 2.0, 5).astype(dtype), requires_grad=True)
    out = f(x)
    assert out.dtype == dtype
    assert md.grad(out.sum(), [x])[0].dtype == dtype


def test_integers_become_default_floats():
    n = md.tensor(np.array([1, 2, 3]))
    assert (n + n).dtype == np.int64
    assert (n / n).dtype == np.float32
    assert md.exp(n).dtype == np.float32
    assert (n * md.tensor(np.ones(3, np.float32))).dtype == np.float32
    assert md.where(n > 1, 0.0, 1.0).dtype == np.float32
    assert md.where(n > 1, 0, 1).dtype == np.int64
    with md.default_dtype(np.float64):
        assert md.sqrt(n).dtype == np.float64
        assert md.where(n > 1, 0.0, 1.0).dtype == np.float64


def test_astype_casts_back():
    x = md.tensor(np.ones(3, np.float32), requires_grad=True)
    y = md.astype(x, np.float64)
    assert y.dtype == np.float64
    assert md.grad(y.sum(), [x])[0].dtype == np.float32
    assert not md.astype(x, np.int64).requires_grad


# --- Large arrays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [md.exp, md.tanh, md.erf, md.sigmoid, md.softplus])
def test_halves_give_the_whole(op):
    x = np.random.default_rng(0).normal(size=(301, 400)).astype(np.float32)[:, ::-1]
    rows = np.stack([op(md.tensor(row)).numpy() for row in x])
    whole = op(md.tensor(x)).numpy()
    np.testing.assert_allclose(whole, rows, rtol=3e-7)
    with md.threads(2):
        np.testing.assert_array_equal(op(md.tensor(x)).numpy(), whole)


def test_astype_refuses_complex():
    with pytest.raises(md.errors.DtypeError, match="astype: dtype: expected real"):
        md.tensor([1.0]).astype("complex64")
