"""Winograd's convolution and its two gradients against the sums that they are."""

import numpy as np
import pytest

from minidl.ops.convolution import Geometry, conv1d_definition
from minidl.ops.winograd import Winograd, suits

rng = np.random.default_rng(0)


def parts(dtype, time, dilation, left, channels=5, filters=4, items=3):
    kernel = rng.normal(size=(3, channels, filters)).astype(dtype)
    x = rng.normal(size=(items, time, channels)).astype(dtype)
    geometry = Geometry(1, left, 2 * dilation - left, dilation, 1)
    return x, kernel, geometry, Winograd(kernel, geometry, time)


CASES = [(8, 1, 1), (7, 1, 2), (12, 3, 3), (13, 3, 6), (1, 2, 2), (10, 16, 16)]


@pytest.mark.parametrize("time, dilation, left", CASES)
def test_forward(time, dilation, left):
    x, kernel, geometry, way = parts(np.float64, time, dilation, left)
    expected = conv1d_definition(x, kernel, padding=geometry[1:3], dilation=dilation)
    out = np.concatenate([way.forward(inputs) for _, inputs in way.blocks(x, 0, 3)])
    np.testing.assert_allclose(out, expected, atol=1e-12)


@pytest.mark.parametrize("time, dilation, left", CASES)
def test_the_gradients_are_the_transposes(time, dilation, left):
    """<g, conv(x, k)> is <dx, x> and <dk, k>: for all g, x, k that says what dx and dk are."""
    x, kernel, _, way = parts(np.float64, time, dilation, left)
    ((_, inputs),) = way.blocks(x, 0, 3)
    out = way.forward(inputs)
    g = rng.normal(size=out.shape)
    upstream = way.map_gradient(g)
    dx = way.input_gradient(upstream)
    dk = way.finish(way.kernel_gradient(inputs, upstream))
    assert dx.shape == x.shape and dk.shape == kernel.shape
    np.testing.assert_allclose([(dx * x).sum(), (dk * kernel).sum()], (g * out).sum())


def test_rounding_is_that_of_the_plain_sums():
    x, kernel, geometry, way = parts(np.float32, 64, 2, 2, channels=128, filters=64)
    exact, plain = (
        conv1d_definition(x.astype(t), kernel.astype(t), padding=geometry[1:3], dilation=2)
        for t in (np.float64, np.float32)
    )
    out = np.concatenate([way.forward(inputs) for _, inputs in way.blocks(x, 0, 3)])
    off, plain_off = (np.abs(y - exact).max() / np.abs(exact).max() for y in (out, plain))
    assert off < max(1e-6, 2 * plain_off)


def test_where_it_serves():
    x, wide = np.zeros((32, 60, 128), np.float32), (3, 128, 256)
    geometry = Geometry(1, 1, 1, 1, 1)
    assert suits(x, wide, geometry)
    assert not suits(x.astype(np.float16), wide, geometry)
    assert not suits(x, (5, 128, 256), geometry)
    assert not suits(x, wide, geometry._replace(stride=2))
    assert not suits(x, wide, geometry._replace(groups=2))
    assert not suits(x, wide, Geometry(1, 30, 30, 25, 1)) and not suits(x[:, :1], wide, geometry)
    assert not suits(x, wide, Geometry(1, 25, 25, 25, 1))  # 60 steps in tiles of 50


def test_integers_go_another_way():
    geometry = Geometry(1, 1, 1, 1, 1)
    x = np.zeros((4, 64, 128), np.float32)
    assert suits(x, (3, 128, 128), geometry)
    assert not suits(x.astype(np.uint32), (3, 128, 128), geometry)  # they differ by no negatives
