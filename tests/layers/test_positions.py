import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.functional.attention import rotary, sinusoidal_positions
from minidl.layers import LearnedPositions, RotaryPositions, SinusoidalPositions
from minidl.testing import check_gradients


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_sinusoidal(dtype, device):
    layer, x = SinusoidalPositions(), normal(2, 7, 4, dtype=dtype)
    with md.default_dtype(dtype):
        table = sinusoidal_positions(12, 4).numpy()
    out = layer(md.tensor(x, device=device))
    assert out.dtype == dtype and out.device == device
    np.testing.assert_array_equal(out.numpy(), x + table[:7])
    later = layer(md.tensor(x, device=device), offset=5)
    np.testing.assert_array_equal(later.numpy(), x + table[5:])
    np.testing.assert_array_equal(layer(md.tensor(x[..., :2])).shape, (2, 7, 2))


def test_sinusoidal_may_be_quieter():
    x = normal(2, 7, 4)
    out = SinusoidalPositions(scale=0.5)(x).numpy()
    np.testing.assert_allclose(out, x + 0.5 * sinusoidal_positions(7, 4).numpy(), rtol=1e-6)


def test_learned():
    layer, x = LearnedPositions(8), normal(2, 7, 4)
    np.testing.assert_array_equal(layer(x).numpy(), x + layer.embeddings.numpy()[:7])
    part = layer(x[:, 5:], offset=5).numpy()
    np.testing.assert_array_equal(part, layer(x).numpy()[:, 5:])
    with pytest.raises(ShapeError, match="at most 8 steps, got 9 with offset 2"):
        layer(x, offset=2)


@pytest.mark.parametrize(
    "layer",
    [SinusoidalPositions(), LearnedPositions(9, input_size=4), RotaryPositions()],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("time", [0, 1, 5])
def test_gradients(layer, time):
    check_gradients(lambda x: layer(x, offset=2), normal(2, time, 4), parameters=layer)


def test_rotary():
    x = normal(2, 3, 5, 4)
    np.testing.assert_array_equal(RotaryPositions()(x, offset=3), rotary(x, 3))


@pytest.mark.parametrize("layer", [SinusoidalPositions(), LearnedPositions(9, input_size=4)])
def test_no_position_before_the_first(layer):
    with pytest.raises(ShapeError, match="offset"):
        layer(np.zeros((1, 5, 4), np.float32), offset=-2)
