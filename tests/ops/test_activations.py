"""Activations: values, range, kinks. Gradients: test_registry."""

import numpy as np
import pytest
import scipy.special

import minidl as md

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
