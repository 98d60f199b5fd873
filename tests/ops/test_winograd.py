"""Winograd's convolution and its two gradients against the sums that they are."""

import numpy as np
import pytest

from minidl.ops import convolution, windows, winograd
from minidl.ops.convolution import convolution_definition
from minidl.ops.geometry import Axis, Geometry
from minidl.ops.winograd import Winograd, suits

rng = np.random.default_rng(0)


def parts(dtype, lengths, axes, channels=5, filters=4, items=3):
    kernel = rng.normal(size=(*(3,) * len(axes), channels, filters)).astype(dtype)
    x = rng.normal(size=(items, *lengths, channels)).astype(dtype)
    return x, kernel, Winograd(kernel, Geometry(tuple(axes)), tuple(lengths))


def definition(x, kernel, axes):
    padding = [axis[1:3] for axis in axes]
    return convolution_definition(
        x, kernel, padding=padding if len(axes) > 1 else padding[0],
        dilation=[axis.dilation for axis in axes],
    )  # fmt: skip


def axis(left, right, dilation=1):
    return Axis(1, left, right, dilation)


CASES = [
    ((8,), [axis(1, 1)]),
    ((7,), [axis(2, 0)]),
    ((12,), [axis(3, 3, 3)]),
    ((13,), [axis(6, 0, 3)]),
    ((1,), [axis(2, 2, 2)]),
    ((10,), [axis(16, 16, 16)]),
    ((9,), [axis(0, 0)]),
    ((9,), [axis(4, 3)]),
    ((6, 4), [axis(1, 1), axis(1, 1)]),
    ((6, 7), [axis(0, 0), axis(0, 0)]),
    ((3, 8), [axis(0, 3), axis(2, 1, 2)]),
    ((1, 1), [axis(1, 1), axis(5, 2)]),
]
EACH = pytest.mark.parametrize("lengths, axes", CASES)


@EACH
def test_forward(lengths, axes):
    x, kernel, way = parts(np.float64, lengths, axes)
    out = np.concatenate([way.forward(inputs) for _, inputs in way.blocks(x, 0, 3)])
    np.testing.assert_allclose(out, definition(x, kernel, axes), atol=1e-12)


@EACH
def test_the_gradients_are_the_transposes(lengths, axes):
    """<g, conv(x, k)> is <dx, x> and <dk, k>: for all g, x, k that says what dx and dk are."""
    x, kernel, way = parts(np.float64, lengths, axes)
    ((_, inputs),) = way.blocks(x, 0, 3)
    out = way.forward(inputs)
    g = rng.normal(size=out.shape)
    upstream = way.map_gradient(g)
    dx = way.input_gradient(upstream)
    dk = way.finish(way.kernel_gradient(inputs, upstream))
    assert dx.shape == x.shape and dk.shape == kernel.shape
    np.testing.assert_allclose([(dx * x).sum(), (dk * kernel).sum()], (g * out).sum())


@pytest.mark.parametrize("axes", [[axis(2, 2, 2)], [axis(1, 1), axis(1, 1)]])
def test_rounding_is_that_of_the_plain_sums(axes):
    x, kernel, way = parts(np.float32, (16,) * len(axes), axes, channels=128, filters=64)
    exact, plain = (
        definition(x.astype(t), kernel.astype(t), axes) for t in (np.float64, np.float32)
    )
    out = np.concatenate([way.forward(inputs) for _, inputs in way.blocks(x, 0, 3)])
    off, plain_off = (np.abs(y - exact).max() / np.abs(exact).max() for y in (out, plain))
    assert off < max(1e-6, 2 * plain_off)


def test_where_it_serves():
    x, wide, plain = np.zeros((32, 60, 128), np.float32), (3, 128, 256), axis(1, 1)
    assert suits(x, wide, Geometry((plain,)))
    assert not suits(x.astype(np.float16), wide, Geometry((plain,)))
    assert not suits(x, (5, 128, 256), Geometry((plain,)))
    assert not suits(x, wide, Geometry((plain._replace(stride=2),)))
    assert not suits(x, wide, Geometry((plain,), groups=2))
    assert not suits(x[:, :1], wide, Geometry((plain,)))
    assert not suits(x, wide, Geometry((axis(25, 25, 25),)))  # 60 steps in tiles of 50
    images = np.zeros((8, 24, 24, 32), np.float32)
    assert suits(images, (3, 3, 32, 64), Geometry((plain, plain)))
    assert not suits(images, (3, 2, 32, 64), Geometry((plain, plain)))
    assert not suits(images, (3, 3, 16, 16), Geometry((plain, plain)))


def test_integers_go_another_way():
    x, geometry = np.zeros((4, 64, 128), np.float32), Geometry((axis(1, 1),))
    assert suits(x, (3, 128, 128), geometry)
    assert not suits(x.astype(np.uint32), (3, 128, 128), geometry)  # they differ by no negatives


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_conv2d_takes_this_way(padding, monkeypatch):
    x, kernel = rng.normal(size=(3, 8, 9, 4)), rng.normal(size=(3, 3, 4, 5))
    plain = convolution.conv2d(x, kernel, padding=padding)
    geometry = Geometry((axis(0, 0),) * 2 if padding == "valid" else (axis(1, 1),) * 2)
    y = rng.normal(size=plain.shape)
    plain = plain, windows.correlate(x, y, (3, 3), geometry)
    calls = []
    monkeypatch.setattr(winograd, "LEAST", {2: 1})
    monkeypatch.setattr(winograd, "WORTH", 1)
    monkeypatch.setattr(winograd, "BLOCK", 1)
    monkeypatch.setattr(
        winograd, "_map_input", lambda *a, f=winograd._map_input: calls.append(1) or f(*a)
    )
    found = (
        convolution.conv2d(x, kernel, padding=padding),
        windows.correlate(x, y, (3, 3), geometry),
    )
    assert len(calls) == 12  # two products, three items, two axes
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)
