"""Layers of several inputs, and layers that only change shapes."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.layers import (
    Add,
    Average,
    Concatenate,
    Cropping1D,
    Cropping2D,
    Dot,
    Flatten,
    Maximum,
    Minimum,
    Multiply,
    Permute,
    PixelShuffle,
    RepeatVector,
    Reshape,
    Subtract,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)

rng = np.random.default_rng(0)
a, b, c = rng.normal(size=(3, 2, 3, 4))
image = rng.normal(size=(2, 3, 4, 8))


@pytest.mark.parametrize(
    "layer, expected",
    [
        (Add(), a + b + c),
        (Multiply(), a * b * c),
        (Average(), (a + b + c) / 3),
        (Maximum(), np.maximum(np.maximum(a, b), c)),
        (Minimum(), np.minimum(np.minimum(a, b), c)),
        (Concatenate(axis=1), np.concatenate([a, b, c], axis=1)),
    ],
    ids=repr,
)
def test_merging(layer, expected):
    np.testing.assert_allclose(layer([a, b, c]), expected)
    np.testing.assert_allclose(layer((md.tensor(a), b, c)).numpy(), expected)


def test_subtract_takes_two():
    np.testing.assert_array_equal(Subtract()([a, b]), a - b)
    with pytest.raises(ValueError, match="expected two, got 3"):
        Subtract()([a, b, c])


def test_a_list_is_wanted():
    with pytest.raises(TypeError, match=r"expected a list of tensors.*Add\(\)\(\[x, y\]\)"):
        Add()(a)


def test_dot():
    x, y = a, rng.normal(size=(2, 5, 4))
    np.testing.assert_allclose(Dot(2)([x, y]), x @ y.swapaxes(1, 2))
    np.testing.assert_allclose(Dot((1, 2))([x, b.swapaxes(1, 2)]), x.swapaxes(1, 2) @ b)
    np.testing.assert_allclose(Dot(1)([x[:, 0], y[:, 0]]), (x[:, :1] @ y[:, 0, :, None])[:, 0])
    cosine = Dot(-1, normalize=True)([x[:, 0], 3 * x[:, 0]])
    np.testing.assert_allclose(cosine, np.ones((2, 1)))
    with pytest.raises(ShapeError, match="two axes of one length"):
        Dot(1)([x, y])
    with pytest.raises(ShapeError, match="not the batch"):
        Dot(0)([x, x])


@pytest.mark.parametrize(
    "layer, expected",
    [
        (Flatten(), a.reshape(2, 12)),
        (Reshape((-1, 2)), a.reshape(2, 6, 2)),
        (Reshape((12,)), a.reshape(2, 12)),
        (Permute((2, 1)), a.swapaxes(1, 2)),
        (UpSampling1D(3), np.repeat(a, 3, axis=1)),
        (ZeroPadding1D((2, 1)), np.pad(a, ((0, 0), (2, 1), (0, 0)))),
        (ZeroPadding1D(), np.pad(a, ((0, 0), (1, 1), (0, 0)))),
        (Cropping1D((0, 2)), a[:, :1]),
        (Cropping1D(1), a[:, 1:2]),
    ],
    ids=repr,
)
def test_shaping(layer, expected):
    np.testing.assert_array_equal(layer(md.tensor(a)).numpy(), expected)
    assert layer(md.tensor(a[:0])).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize(
    "layer, expected",
    [
        (UpSampling2D(), image.repeat(2, 1).repeat(2, 2)),
        (UpSampling2D((1, 3)), image.repeat(3, 2)),
        (PixelShuffle(2), md.pixel_shuffle(image, 2)),
        (ZeroPadding2D(), np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))),
        (ZeroPadding2D((0, 2)), np.pad(image, ((0, 0), (0, 0), (2, 2), (0, 0)))),
        (ZeroPadding2D(((1, 0), (2, 3))), np.pad(image, ((0, 0), (1, 0), (2, 3), (0, 0)))),
        (Cropping2D(1), image[:, 1:2, 1:3]),
        (Cropping2D((1, 0)), image[:, 1:2]),
        (Cropping2D(((1, 0), (0, 3))), image[:, 1:, :1]),
        (Cropping2D(), image),
    ],
    ids=repr,
)
def test_shaping_of_images(layer, expected):
    np.testing.assert_array_equal(layer(md.tensor(image)).numpy(), expected)
    assert layer(md.tensor(image[:0])).shape == (0, *expected.shape[1:])


def test_repeat_vector():
    out = RepeatVector(3)(md.tensor(a[:, 0])).numpy()
    np.testing.assert_array_equal(out, np.repeat(a[:, :1], 3, axis=1))


def test_errors():
    with pytest.raises(ValueError, match="numbers from 1 to 2"):
        Permute((0, 1))
    with pytest.raises(ShapeError, match="at least 4 steps, got 3"):
        Cropping1D(2)(a)
    with pytest.raises(ShapeError, match="Cropping1D: cropping: expected 0 or more, got -1"):
        Cropping1D((-1, 2))(a)
    with pytest.raises(ShapeError, match="Cropping2D: x: expected at least 5 columns, got 4"):
        Cropping2D(((1, 1), (2, 3)))(image)
    with pytest.raises(ShapeError, match=r"ZeroPadding2D: x: expected .batch, height, width"):
        ZeroPadding2D()(a)
    with pytest.raises(ShapeError, match="size: expected 1 or more, got 0"):
        UpSampling2D(0)(image)
    with pytest.raises(ShapeError, match="ZeroPadding2D: padding: expected a number or two of the"):
        ZeroPadding2D((1, 2, 3))(image)
    with pytest.raises(ShapeError, match="Dot: inputs: expected as many items in both"):
        Dot(1)([a[:1, 0], a[:, 0]])
    with pytest.raises(ShapeError):
        Reshape((5, -1))(md.tensor(a))
