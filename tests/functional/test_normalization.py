"""Layer normalization against its formula, its definition and PyTorch."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.functional import layer_normalization
from minidl.testing import check_gradients

rng = np.random.default_rng(0)


def test_rows_have_mean_0_and_variance_1():
    out = layer_normalization(rng.normal(3, 5, (4, 6, 50)), epsilon=1e-12)
    np.testing.assert_allclose(out.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(-1), 1, rtol=1e-9)


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (4, 1), (0, 5)])
@pytest.mark.parametrize("vectors", [(), ("gamma",), ("beta",), ("gamma", "beta")])
def test_gradients(shape, vectors):
    names = {name: rng.normal(size=shape[-1:]) for name in vectors}

    def f(x, *values):
        return layer_normalization(x, **dict(zip(names, values, strict=True)), epsilon=0.01)

    check_gradients(f, rng.normal(size=shape), *names.values())


@pytest.mark.parametrize("shape", [(3, 7), (700, 300)])
def test_pytorch(shape):
    torch = pytest.importorskip("torch")
    arrays = [rng.normal(size=s).astype(np.float32) for s in (shape, shape[-1:], shape[-1:])]
    weight = rng.normal(size=shape).astype(np.float32)
    ours = [md.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    with md.threads(2):
        out = layer_normalization(*ours, epsilon=1e-5)
        out.backward(md.tensor(weight))
    expected = torch.nn.functional.layer_norm(theirs[0], shape[-1:], *theirs[1:], eps=1e-5)
    expected.backward(torch.tensor(weight))
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-3, atol=3e-4)


def test_blocks_and_threads_do_not_change_a_bit():
    x = rng.normal(size=(1100, 128)).astype(np.float32)
    gamma = rng.normal(size=128).astype(np.float32)
    results = []
    for threads in (1, 2):
        with md.threads(threads):
            ours = [md.tensor(a, requires_grad=True) for a in (x, gamma)]
            out = layer_normalization(*ours)
            md.sum(out * out).backward()
            results.append([a.grad.numpy().copy() for a in ours] + [out.numpy().copy()])
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_large_mean_costs_no_precision():
    x = rng.normal(size=(4, 64))
    near = layer_normalization((x + 1000).astype(np.float32))
    np.testing.assert_allclose(near, layer_normalization(x), atol=2e-3)


def test_float16_is_computed_in_float32():
    x = (rng.normal(size=(3, 64)) * 200).astype(np.float16)  # the squares overflow float16
    out = layer_normalization(x)
    assert out.dtype == np.float16
    exact = layer_normalization(x.astype(float))
    np.testing.assert_allclose(out.astype(float), exact, atol=5e-3)


def test_shapes():
    x = np.ones((2, 3))
    with pytest.raises(ShapeError, match=r"gamma: expected shape \(3,\), got \(2,\)"):
        layer_normalization(x, np.ones(2))
    with pytest.raises(ShapeError, match="got a scalar"):
        layer_normalization(1.0)
