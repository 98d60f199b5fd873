"""Upsampling and pixel shuffling beside their definitions, NumPy and PyTorch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.errors import ShapeError
from minidl.ops.resampling import pixel_shuffle_definition, upsample_nearest_definition

sides = st.integers(0, 3)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def value_and_gradient(f, x, device="cpu"):
    leaf = md.tensor(x, requires_grad=True, device=device)
    out = f(leaf)
    weight = md.tensor(normal(*out.shape, seed=1), device=device)
    return out.numpy(), md.grad(out, [leaf], weight)[0].numpy()


def agree(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@given(st.tuples(sides, sides, sides), st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_upsampling_is_its_definition(device, shape, size):
    x = normal(*shape, 2)
    fast = value_and_gradient(lambda x: md.upsample_nearest(x, size), x, device)
    defined = value_and_gradient(lambda x: upsample_nearest_definition(x, size), x, device)
    agree(fast, defined)
    agree(fast[:1], [x.repeat(size[0], 1).repeat(size[1], 2)])


def test_any_number_of_axes_is_upsampled(device):
    for shape in [(2, 3, 4), (2, 3, 2, 2, 4)]:
        x = normal(*shape)
        out = md.upsample_nearest(md.tensor(x, device=device), 3)
        for axis in range(1, x.ndim - 1):
            x = x.repeat(3, axis)
        np.testing.assert_array_equal(out.numpy(), x)


@given(st.tuples(sides, sides, sides), st.integers(1, 3), st.integers(1, 3))
def test_shuffling_is_its_definition(device, shape, factor, channels):
    x = normal(*shape, channels * factor**2)
    fast = value_and_gradient(lambda x: md.pixel_shuffle(x, factor), x, device)
    defined = value_and_gradient(lambda x: pixel_shuffle_definition(x, factor), x, device)
    agree(fast, defined)
    np.testing.assert_array_equal(md.pixel_unshuffle(fast[0], factor), x)


def test_pytorch():
    torch = pytest.importorskip("torch")
    x = normal(2, 6, 4, 18)
    image = torch.tensor(x).permute(0, 3, 1, 2)
    for factor in (1, 2, 3):
        up = torch.nn.functional.interpolate(image, scale_factor=factor).permute(0, 2, 3, 1)
        np.testing.assert_array_equal(md.upsample_nearest(x, factor), up)
    theirs = torch.nn.functional
    shuffled = theirs.pixel_shuffle(image, 3).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(md.pixel_shuffle(x, 3), shuffled)
    unshuffled = theirs.pixel_unshuffle(image, 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(md.pixel_unshuffle(x, 2), unshuffled)


def test_integers_stay_what_they_are(device):
    labels = md.tensor(np.array([[[[2**24 + 1]], [[7]]]]), device=device)
    large = md.upsample_nearest(labels, 2)
    assert large.dtype == labels.dtype and large.numpy()[0, :, 0, 0].tolist() == [
        2**24 + 1, 2**24 + 1, 7, 7
    ]  # fmt: skip


def test_outputs_are_no_views():
    x = normal(1, 2, 2, 4)
    for f in (md.upsample_nearest, md.pixel_shuffle, md.pixel_unshuffle):
        assert not np.shares_memory(f(x, 1), x)
    for f, shape in ((md.pixel_shuffle, (3, 1, 1, 4)), (md.pixel_unshuffle, (3, 2, 2, 1))):
        x = normal(*shape)  # nothing changes places
        assert not np.shares_memory(f(x, 2), x)


def test_errors():
    x = normal(2, 3, 4, 6)
    with pytest.raises(ShapeError, match="a multiple of 4 channels for factor 2, got 6"):
        md.pixel_shuffle(x, 2)
    with pytest.raises(ShapeError, match="height and width to be multiples of 2, got 3 and 4"):
        md.pixel_unshuffle(x, 2)
    with pytest.raises(ShapeError, match="factor: expected 1 or more, got 0"):
        md.pixel_shuffle(x, 0)
    with pytest.raises(ShapeError, match=r"expected \(batch, height, width, channels\), got"):
        md.pixel_shuffle(x[0], 2)
    with pytest.raises(ShapeError, match="upsample_nearest: size: expected a number or 2 of them"):
        md.upsample_nearest(x, (2, 2, 2))
    with pytest.raises(ShapeError, match="upsample_nearest: x: expected"):
        md.upsample_nearest(x[0, 0])
