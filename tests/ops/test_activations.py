"""Activations: values, range, kinks. Gradients: test_registry."""

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.ops.activations import gate

FAR = np.array([-1000.0, -100.0, -20.0, 0.0, 20.0, 100.0, 1000.0])


def gradient(f, x):
    x = md.tensor(np.asarray(x), requires_grad=True)
    out = f(x)
    return md.grad(out, [x], md.ones_like(out))[0].numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sigmoid_far_out(dtype):
    x = FAR.astype(dtype)
    with np.errstate(all="raise"):
        out = md.sigmoid(md.tensor(x)).numpy()
        slope = gradient(md.sigmoid, x)
    np.testing.assert_allclose(out, scipy.special.expit(x), rtol=1e-6, atol=1.2e-37)
    np.testing.assert_allclose(slope[[0, 3, 6]], [0, 0.25, 0], atol=1.2e-37)
    assert np.all(out > 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_far_out(dtype):
    x = FAR.astype(dtype)
    with np.errstate(all="raise"):
        out = md.softplus(md.tensor(x)).numpy()
        slope = gradient(md.softplus, x)
    np.testing.assert_allclose(out, np.logaddexp(0, FAR), rtol=1e-6, atol=1.2e-37)
    np.testing.assert_allclose(slope[[0, 3, 6]], [0, 0.5, 1], atol=1.2e-37)


@pytest.mark.parametrize("op", [md.sigmoid, md.softplus])
def test_infinities(op):
    out = op(md.tensor(np.array([-np.inf, np.nan, np.inf]))).numpy()
    expected = [0, np.nan, np.inf if op is md.softplus else 1]
    np.testing.assert_allclose(out, expected, atol=1e-300)


def test_relu_has_gradient_0_at_0():
    np.testing.assert_array_equal(gradient(md.relu, [-1.0, 0.0, 2.0]), [0, 0, 1])
    np.testing.assert_array_equal(md.relu(md.tensor([-1.0, 0.0, 2.0])).numpy(), [0, 0, 2])


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.01, 1.0, 3.0])
def test_leaky_relu(slope):
    x = np.array([-2.0, 0.0, 3.0])
    out = md.leaky_relu(md.tensor(x), slope).numpy()
    np.testing.assert_array_equal(out, np.where(x > 0, x, slope * x))
    np.testing.assert_array_equal(gradient(lambda x: md.leaky_relu(x, slope), x), [slope, slope, 1])


@pytest.mark.parametrize("size", [10, 5000])
def test_relu_of_few_and_of_many(size, device):
    """Large arrays take another way on NumPy."""
    x = np.random.default_rng(0).normal(size=size).astype(np.float32)
    x[:4] = [np.nan, np.inf, -np.inf, 0]
    before = x.copy()
    out = md.relu(md.tensor(x, device=device)).numpy()
    np.testing.assert_array_equal(out, np.where(np.isnan(x), x, np.where(x > 0, x, 0)))
    np.testing.assert_array_equal(x, before)
    assert md.relu(np.full(size, -3)).dtype.kind == "i"


@given(st.floats(-2, 3, width=32), st.integers(0, 1000))
def test_gradient_of_leaky_relu_is_exact(slope, seed):
    """The gradient itself where x > 0, up to rounding: of any slope up to 1, to the bit."""
    g = np.random.default_rng(seed).normal(size=50).astype(np.float32)
    x = np.random.default_rng(seed + 1).normal(size=50).astype(np.float32)
    found = gate(g, x, slope)
    np.testing.assert_allclose(found, np.where(x > 0, g, np.float32(slope) * g), rtol=4e-7)
    if 0 <= slope <= 1:
        np.testing.assert_array_equal(found[x > 0], g[x > 0])


def test_a_gradient_of_a_gradient_stays_fused():
    x = md.tensor(np.array([-1.0, 2.0]), requires_grad=True)
    w = md.tensor(np.array([3.0, 4.0]), requires_grad=True)
    (g,) = md.grad(md.leaky_relu(x, 0.5), [x], w, create_graph=True)
    assert g.tolist() == [1.5, 4] and g._node.op is gate and g._node.parents == (w._node,)
    assert md.grad(g, [w], md.ones_like(g))[0].tolist() == [0.5, 1]


def test_leaky_relu_of_slope_0_keeps_infinity():
    assert md.leaky_relu(np.array([np.inf, 2.0]), 0.0).tolist() == [np.inf, 2]


def test_elu():
    x = np.array([-1000.0, -1.0, 0.0, 3.0])
    with np.errstate(all="raise"):
        out = md.elu(md.tensor(x), 0.5).numpy()
    np.testing.assert_allclose(out, [-0.5, 0.5 * np.expm1(-1), 0, 3])
    np.testing.assert_allclose(gradient(lambda x: md.elu(x, 0.5), x), [0, 0.5 * np.exp(-1), 0.5, 1])


def test_gelu_and_its_approximation():
    x = np.linspace(-4, 4, 41)
    exact = md.gelu(md.tensor(x)).numpy()
    np.testing.assert_allclose(exact, x * scipy.special.ndtr(x), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(md.gelu(md.tensor(x), "tanh").numpy(), exact, atol=6e-4)
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    np.testing.assert_allclose(md.gelu(md.tensor(x), "tanh").numpy(), x * (1 + np.tanh(u)) / 2)
    with pytest.raises(ValueError, match="gelu: approximate: expected None or 'tanh', got 'fast'"):
        md.gelu(md.tensor(x), "fast")


def test_silu():
    x = np.linspace(-4, 4, 9)
    np.testing.assert_allclose(md.silu(md.tensor(x)).numpy(), x * scipy.special.expit(x))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(
    "op", [md.relu, md.leaky_relu, md.elu, md.gelu, md.silu, md.sigmoid, md.softplus]
)
def test_dtype_is_kept(op, dtype):
    x = md.tensor(np.linspace(-2, 2, 5).astype(dtype), requires_grad=True)
    assert op(x).dtype == dtype
    assert md.grad(op(x).sum(), [x])[0].dtype == dtype


@pytest.mark.parametrize("f", [md.elu, md.leaky_relu])
def test_numpy_scalars_as_options_keep_float32(f):
    x = md.tensor([-1.0, 2.0], requires_grad=True)
    assert f(x, np.float64(0.5)).dtype == np.float32
    (g,) = md.grad(f(x, np.float64(0.5)).sum(), [x], create_graph=True)
    assert g.dtype == np.float32
