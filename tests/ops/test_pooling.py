"""Pooling in windows beside its definition and PyTorch, of sequences and of images."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import minidl as md
from minidl import backend
from minidl.errors import ShapeError
from minidl.ops import pooling
from minidl.testing import check_gradients

POOLS = {1: (md.max_pool1d, md.average_pool1d), 2: (md.max_pool2d, md.average_pool2d)}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def value_and_gradient(f, x, device="cpu"):
    """f(x), and the gradient of a weighted sum of it."""
    leaf = md.tensor(x, requires_grad=True, device=device)
    out = f(leaf)
    weight = backend.to_device(normal(*out.shape, seed=1).astype(x.dtype), device)
    return out.numpy(), md.grad(out, [leaf], md.tensor(weight))[0].numpy()


def agree(one, other, tolerance=1e-12):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@st.composite
def geometries(draw):
    """(axes, shape of x, size, stride, padding), all windows fitting."""
    axes, padding = draw(st.integers(1, 2)), draw(st.sampled_from(["valid", "same"]))
    sides, size, stride = (
        tuple(draw(st.integers(low, high)) for _ in range(axes))
        for low, high in ((0, 7), (1, 4), (1, 4))
    )
    assume(padding == "same" or all(n == 0 or n >= k for n, k in zip(sides, size, strict=True)))
    shape = (draw(st.integers(0, 2)), *sides, draw(st.integers(1, 2)))
    return axes, shape, size, draw(st.sampled_from([None, stride])), padding


@given(geometries(), st.booleans(), st.integers(0, 2**16))
def test_the_definition(device, geometry, ties, seed):
    axes, shape, size, stride, padding = geometry
    x = normal(*shape, seed=seed)
    x = np.round(x) if ties else x
    windows = pooling._windows("op", axes, x, size, stride, padding)
    ours, theirs = POOLS[axes]
    agree(
        value_and_gradient(lambda x: ours(x, size, stride, padding), x, device),
        value_and_gradient(
            lambda x: pooling.pool_definition(x, windows, md.max, -np.inf), x, device
        ),
    )
    counts = pooling.pool_definition(np.ones(shape), windows, md.sum, 0.0)
    agree(
        value_and_gradient(lambda x: theirs(x, size, stride, padding), x, device),
        value_and_gradient(
            lambda x: (
                pooling.pool_definition(x, windows, md.sum, 0.0) / backend.to_device(counts, device)
            ),
            x,
            device,
        ),
    )


@pytest.mark.parametrize("size, stride", [(2, 2), ((3, 2), (2, 1)), (1, (2, 3)), (3, 3)])
def test_pytorch(size, stride):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    x = normal(3, 7, 8, 5).astype(np.float32)
    for ours, theirs in zip(POOLS[2], (functional.max_pool2d, functional.avg_pool2d), strict=True):
        out, by_x = value_and_gradient(lambda x, f=ours: f(x, size, stride), x)
        leaf = torch.tensor(x, requires_grad=True)
        expected = theirs(leaf.permute(0, 3, 1, 2), size, stride).permute(0, 2, 3, 1)
        weight = torch.tensor(normal(*out.shape, seed=1).astype(np.float32))
        (by_leaf,) = torch.autograd.grad(expected, leaf, weight)
        agree((out, by_x), (expected.detach().numpy(), by_leaf.numpy()), 1e-5)


def test_pytorch_same_with_odd_windows():
    """There "same" is a padding of size // 2, and padding does not count."""
    torch = pytest.importorskip("torch")
    x = normal(2, 6, 5, 3).astype(np.float32)
    image = torch.tensor(x).permute(0, 3, 1, 2)
    largest = torch.nn.functional.max_pool2d(image, 3, 1, 1).permute(0, 2, 3, 1)
    mean = torch.nn.functional.avg_pool2d(image, 3, 1, 1, count_include_pad=False)
    agree([md.max_pool2d(x, 3, 1, "same")], [largest.numpy()], 1e-5)
    agree([md.average_pool2d(x, 3, 1, "same")], [mean.permute(0, 2, 3, 1).numpy()], 1e-5)


class TestTies:
    def gradient(self, x, device, **options):
        leaf = md.tensor(np.array(x, float)[None, :, :, None], requires_grad=True, device=device)
        md.sum(md.max_pool2d(leaf, **options)).backward()
        return leaf.grad.numpy()[0, :, :, 0].tolist()

    def test_all_entries_of_a_window_share_equally(self, device):
        third = 1 / 3
        found = self.gradient([[1, 1, 5, 0], [1, 0, 5, 5]], device)
        assert np.allclose(found, [[third, third, third, 0], [third, 0, third, third]])

    def test_in_overlapping_windows(self, device):
        found = self.gradient([[2, 1, 2], [0, 1, 0]], device, size=2, stride=1)
        assert found == [[1, 0, 1], [0, 0, 0]]
        found = self.gradient([[1, 2, 1], [0, 0, 0]], device, size=2, stride=1)
        assert found == [[0, 2, 0], [0, 0, 0]]

    def test_minus_infinity(self, device):
        found = self.gradient([[-np.inf, -np.inf], [-np.inf, -np.inf]], device)
        assert found == [[0.25, 0.25], [0.25, 0.25]]


@pytest.mark.parametrize("pool", [md.max_pool2d, md.average_pool2d])
@pytest.mark.parametrize("size, stride, padding", [(2, 2, "valid"), ((2, 3), 1, "same")])
def test_second_order(pool, size, stride, padding, device):
    """A gradient penalty through pooling, of third order in places."""
    weight = normal(2, 2)

    def penalty(x, w):
        x = md.tensor(x, requires_grad=True) if not x.requires_grad else x
        score = md.sum(md.square(pool(md.tanh(x @ w), size, stride, padding)))
        (g,) = md.grad(score, [x], create_graph=True)
        return md.sum(md.square(g))

    check_gradients(penalty, normal(2, 4, 3, 2), weight, device=device)


def test_gradients_of_a_gradient_stay_fused():
    """No part of a graph of the gradient is made of slices."""
    x = md.tensor(normal(2, 4, 4, 2), requires_grad=True)
    w = md.tensor(normal(2, 2, 2, 2), requires_grad=True)
    (g,) = md.grad(md.max_pool2d(x), [x], w, create_graph=True)
    assert g._node.op.__name__ == "_max_spread"
    (h,) = md.grad(g, [w], g.detach(), create_graph=True)
    largest = x.numpy().reshape(2, 2, 2, 2, 2, 2).max((2, 4))
    agree([h.numpy()], [w.numpy()])  # of a gradient back at its maxima
    agree([md.max_pool2d(x).numpy()], [largest])


def test_large_inputs_go_in_two_halves_and_in_blocks():
    x, weight = normal(7, 50, 60, 40, seed=2).astype(np.float32), normal(7, 25, 30, 40, seed=3)

    def run(x, weight):
        leaf = md.tensor(x, requires_grad=True)
        out = md.max_pool2d(leaf)
        out.backward(md.tensor(weight.astype(np.float32)))
        return out.numpy(), leaf.grad.numpy()

    with md.threads(2):
        whole = run(x, weight)
    for i in range(7):
        for all_items, item in zip(whole, run(x[i : i + 1], weight[i : i + 1]), strict=True):
            np.testing.assert_array_equal(all_items[i : i + 1], item)


@pytest.mark.parametrize("f", [md.max_pool2d, md.average_pool2d])
@pytest.mark.parametrize("shape", [(0, 4, 4, 2), (2, 0, 4, 2), (2, 4, 0, 2), (2, 4, 4, 0)])
def test_empty(f, shape, device):
    for padding in ("valid", "same"):
        out, by_x = value_and_gradient(lambda x, p=padding: f(x, 2, 2, p), np.zeros(shape), device)
        assert out.shape == (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
        assert by_x.shape == shape


def test_errors():
    x = normal(1, 2, 4, 1)
    with pytest.raises(ShapeError, match="at least 3 rows for a window of size 3, got 2"):
        md.max_pool2d(x, 3)
    with pytest.raises(ShapeError, match="at least 5 columns for a window of size 5, got 4"):
        md.average_pool2d(x, (1, 5))
    with pytest.raises(ShapeError, match=r"x: expected \(batch, height, width, channels\), got"):
        md.max_pool2d(x[0])
    with pytest.raises(ShapeError, match=r"size: expected a number or 2 of them, got \(1, 2, 3\)"):
        md.max_pool2d(x, (1, 2, 3))
    with pytest.raises(ShapeError, match="stride: expected 1 or more, got 0"):
        md.max_pool2d(x, 2, (1, 0))
    with pytest.raises(ValueError, match="max_pool2d: padding: expected 'valid' or 'same', got 1"):
        md.max_pool2d(x, 2, padding=1)
