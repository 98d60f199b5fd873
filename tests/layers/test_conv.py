"""The convolution layers: shapes, what each computes, options, a whole fit on the stand-in."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.layers import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Flatten,
    SeparableConv2D,
    Sequential,
)
from minidl.testing import check_gradients, strict


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize(
    ("layer", "kernel", "shape"),
    [
        (Conv2D(5, 3), (3, 3, 2, 5), (2, 6, 4, 5)),
        (Conv2D(5, (3, 2), (2, 1), "same"), (3, 2, 2, 5), (2, 4, 6, 5)),
        (Conv2D(4, 2, groups=2, dilation_rate=2), (2, 2, 1, 4), (2, 6, 4, 4)),
        (Conv2DTranspose(5, 3, 2, "same"), (3, 3, 5, 2), (2, 16, 12, 5)),
        (Conv2DTranspose(4, 3, 2, 1, 1, groups=2), (3, 3, 2, 2), (2, 16, 12, 4)),
        (DepthwiseConv2D(3, 2, "same", depth_multiplier=3), (3, 3, 2, 3), (2, 4, 3, 6)),
    ],
)
def test_shapes(layer, kernel, shape):
    out = layer(normal(2, 8, 6, 2))
    assert out.shape == shape
    assert layer.kernel.shape == kernel and layer.bias.shape == shape[-1:]


def test_a_transpose_undoes_the_shape():
    x = normal(2, 15, 3)
    for strides in (1, 2, 3):
        for padding in ("same", "valid"):
            there = Conv1D(4, 3, strides, padding, input_size=3)(x)
            least = Conv1DTranspose(3, 3, strides, padding, 0, input_size=4)(there)
            assert 15 - strides < least.shape[1] <= 15


def test_a_depthwise_convolution_is_one_of_each_channel():
    x, layer = normal(2, 6, 5, 3), DepthwiseConv2D(3, depth_multiplier=2, input_size=3)
    layer.bias.assign_(normal(6).astype(np.float32))
    out = layer(x).numpy()
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    for channel in range(3):
        both = slice(2 * channel, 2 * channel + 2)
        alone = md.conv2d(x[..., channel : channel + 1], kernel[:, :, channel, None], bias[both])
        np.testing.assert_allclose(out[..., both], alone, rtol=1e-5, atol=1e-6)


def test_a_separable_convolution_is_two():
    x = normal(2, 6, 5, 3)
    layer = SeparableConv2D(4, 3, 2, "same", depth_multiplier=2, activation="relu", input_size=3)
    layer.bias.assign_(normal(4).astype(np.float32))
    first = DepthwiseConv2D(3, 2, "same", 2, use_bias=False, input_size=3)
    first.kernel.assign_(layer.depthwise_kernel)
    second = Conv2D(4, 1, activation="relu", input_size=6)
    second.kernel.assign_(layer.pointwise_kernel)
    second.bias.assign_(layer.bias)
    np.testing.assert_array_equal(layer(x).numpy(), second(first(x)).numpy())


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: Conv2D(2, 2, 2, **o),
        lambda **o: Conv2DTranspose(2, 3, 2, "same", **o),
        lambda **o: Conv1DTranspose(2, 2, **o),
        lambda **o: DepthwiseConv2D((1, 2), **o),
        lambda **o: SeparableConv2D(2, 2, **o),
    ],
)
def test_activations_fused_or_not(make):
    x = normal(2, 4, 2) if "1D" in type(make()).__name__ else normal(2, 4, 4, 2)
    one, other = make(activation="relu", input_size=2), make(activation=md.tanh, input_size=2)
    plain = make(input_size=2)
    for layer in (one, other):
        layer.load_state_dict(plain.state_dict())
    np.testing.assert_array_equal(one(x).numpy(), md.relu(plain(x)).numpy())
    np.testing.assert_array_equal(other(x).numpy(), md.tanh(plain(x)).numpy())


def test_a_critic_and_its_gradient_penalty():
    first, second = Conv2D(2, 3, 2, "same", activation="tanh"), Conv2D(3, 2, activation="tanh")
    critic = Sequential([first, second, Flatten(), Dense(1)])
    critic(normal(1, 4, 4, 1))

    def loss(x):
        score = critic(x).sum()
        (slope,) = md.grad(score, [x], create_graph=True)
        return score + ((md.norm(md.reshape(slope, (2, -1)), axis=1) - 1) ** 2).sum()

    check_gradients(loss, normal(2, 4, 4, 1), parameters=critic, directions=1, dtypes=False)


def test_a_whole_fit_on_the_stand_in():
    model = Sequential(
        [
            Conv2D(3, 3, 2, "same", activation="relu"),
            SeparableConv2D(4, 2, activation="relu"),
            Conv2DTranspose(2, 3, 2, "same"),
            Flatten(),
            Dense(2),
        ]
    )
    x, y = normal(8, 6, 6, 1).astype(np.float32), np.arange(8) % 2
    with md.device("strict"):
        model(md.tensor(x[:1]))
    history = md.fit(
        model, md.losses.SparseCategoricalCrossentropy(), md.optimizers.Adam(model, 1e-2),
        [(x[:4], y[:4]), (x[4:], y[4:])], epochs=2, read_every=10, verbose=False,
        callbacks=[strict.ForbidSync()],
    )  # fmt: skip
    assert len(history) == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Conv2D(4, 3, groups=2, input_size=5), "Conv2D: groups: expected a divisor of 5"),
        (lambda: Conv2D(4, (3, 3, 3), input_size=5), "Conv2D: kernel_size: expected a number or 2"),
        (lambda: Conv1DTranspose(4, 0, input_size=5), "Conv1DTranspose: kernel_size: expected 1"),
        (lambda: DepthwiseConv2D(0, input_size=5), "DepthwiseConv2D: kernel_size: expected 1 or"),
    ],
)
def test_errors(make, words):
    with pytest.raises(ShapeError, match=words):
        make()


@pytest.mark.parametrize("layer", [DepthwiseConv2D(3), SeparableConv2D(2, 3)])
def test_other_channels_than_when_it_was_built(layer):
    layer(normal(1, 5, 5, 4))
    with pytest.raises(ShapeError, match="Conv2D: x: expected 4 channels, as when it was built"):
        layer(normal(1, 5, 5, 3))
