"""Each layer's constant: against its Jacobian, against pairs of points, and where it is exact."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import layers
from minidl.functional.activations import _NAMES
from minidl.lipschitz import activation_constant, upper_bound

# (layer, shape of an item, whether the bound is reached by some pair of inputs)
CASES = [
    (layers.Dense(4), (6,), True),
    (layers.Dense(4, "sigmoid"), (3, 6), False),
    (layers.Dense(4, "softmax"), (2,), False),
    (layers.Conv1D(4, 3, padding="causal", dilation_rate=2, activation="tanh"), (7, 2), False),
    (layers.Conv1D(4, 3, strides=2, groups=2, padding="same"), (7, 2), False),
    (layers.Conv1D(3, 2, strides=3, padding=(5, 1)), (4, 2), False),
    (layers.Conv2D(3, (2, 3), (1, 2), "same", dilation_rate=(2, 1)), (4, 5, 2), False),
    (layers.Conv2D(4, 3, padding=((0, 1), (2, 0)), groups=2, activation="relu"), (4, 3, 2), False),
    (layers.Conv1DTranspose(2, 3, 2, "same", activation="tanh"), (4, 3), False),
    (layers.Conv2DTranspose(2, (3, 2), (2, 1), groups=2), (3, 3, 4), False),
    (layers.Conv2DTranspose(2, 3, 3, padding=1, output_padding=2), (2, 2, 3), False),
    (layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2), (4, 4, 2), False),
    (layers.SeparableConv2D(3, 2, activation="relu"), (4, 4, 2), False),
    (layers.SpectralNormalization(layers.Dense(3, "relu"), coefficient=2.0), (4,), False),
    (layers.SpectralNormalization(layers.Conv2D(3, 3, padding="same")), (4, 4, 2), False),
    (layers.SpectralNormalization(layers.Conv1D(3, 3), method="operator"), (6, 2), False),
    (layers.BatchNormalization(), (5, 3), True),
    (layers.BatchNormalization(scale=False), (3,), True),
    (layers.LayerNormalization(epsilon=0.1), (4,), False),
    (layers.GroupNormalization(2, epsilon=0.1), (3, 4), False),
    (layers.ScaleShift(), (3,), True),
    (layers.Activation("gelu"), (3,), False),
    (layers.Activation("log_softmax"), (3,), False),
    (layers.Softmax(), (3,), False),
    (layers.ReLU(), (3,), False),
    (layers.ReLU(max_value=1.0, negative_slope=1.5), (3,), False),
    (layers.LeakyReLU(2.0), (3,), False),
    (layers.ELU(1.5), (3,), False),
    (layers.PReLU(-1.5), (3,), False),
    (layers.Dropout(0.5), (3,), True),
    (layers.SpatialDropout1D(0.5), (2, 3), True),
    (layers.GaussianNoise(1.0), (3,), True),
    (layers.Identity(), (3,), True),
    (layers.ManifoldMixing(layers.Dense(3, "relu")), (4,), False),
    (layers.Flatten(), (2, 3), True),
    (layers.Reshape((3, 2)), (2, 3), True),
    (layers.Permute((2, 1)), (2, 3), True),
    (layers.ZeroPadding1D(2), (2, 3), True),
    (layers.Cropping1D(1), (3, 2), True),
    (layers.UpSampling1D(3), (2, 2), True),
    (layers.RepeatVector(3), (2,), True),
    (layers.PixelShuffle(2), (2, 2, 4), True),
    (layers.ZeroPadding2D(1), (2, 2, 1), True),
    (layers.Cropping2D(1), (3, 3, 1), True),
    (layers.UpSampling2D(2), (2, 2, 1), True),
    (layers.MaxPooling2D(2), (4, 4, 1), False),
    (layers.MaxPooling2D((3, 2), 1, "same"), (4, 4, 1), False),
    (layers.AveragePooling2D(2), (4, 4, 2), True),
    (layers.AveragePooling2D(3, (1, 2), "same"), (4, 5, 1), False),
    (layers.GlobalMaxPooling2D(), (3, 2, 2), False),
    (layers.GlobalAveragePooling2D(), (3, 2, 2), True),
    (layers.MaxPooling1D(2), (4, 2), False),
    (layers.MaxPooling1D(3, 2, "same"), (5, 2), False),
    (layers.AveragePooling1D(2), (4, 2), True),
    (layers.AveragePooling1D(3, 1, "same"), (5, 2), False),
    (layers.GlobalMaxPooling1D(), (4, 2), False),
    (layers.GlobalAveragePooling1D(), (4, 2), True),
    (
        layers.Sequential([layers.Dense(5, "relu"), layers.Sequential([layers.Dense(2)])]),
        (3,),
        False,
    ),
]
MERGING = [
    (layers.Add(), True),
    (layers.Subtract(), True),
    (layers.Average(), True),
    (layers.Maximum(), False),
    (layers.Minimum(), False),
    (layers.Concatenate(), True),
]


WITHOUT = set(
    """AttentionPooling Bidirectional CRF CenterLoss ConditionalLayerNormalization Dot Embedding GRU
    GatedConv1D LSTM Lambda Layer LearnedPositions MultiHeadAttention Multiply Parameter
    RotaryPositions SimpleRNN SinusoidalPositions StackedRNN TransformerDecoderBlock
    TransformerEncoderBlock""".split()
)  # they read ids, multiply what depends on the input, or have no constant that is of use


def named(case):
    return type(case).__name__ if isinstance(case, layers.Layer) else ""


def prepared(layer, shape, device="cpu"):
    """`layer` built in float64, with weights unlike those that it begins with."""
    with md.default_dtype("float64"), md.device(device):
        layer.eval()(md.tensor(np.zeros((1, *shape))))
    draw = np.random.default_rng(1)
    for name, p in layer.named_parameters():
        p.assign_(draw.uniform(0.5, 2.0, p.shape) if "gamma" in name else draw.normal(size=p.shape))
    if isinstance(layer, layers.BatchNormalization):
        layer.moving_variance = md.tensor(
            draw.uniform(0.2, 2, layer.moving_variance.shape), device=device
        )
    return layer


def slopes(f, shape, count=40, device="cpu"):
    """Of pairs of points near and far, of all sizes."""
    draw = np.random.default_rng(2)
    size = 10 ** draw.uniform(-1.5, 1, (count, *(1 for _ in shape)))
    x = draw.normal(size=(count, *shape)) * size
    y = x + draw.normal(size=x.shape) * 10 ** draw.uniform(-3, 1, size.shape)
    with md.no_grad():
        out = [f(md.tensor(z, device=device)).numpy().reshape(count, -1) for z in (x, y)]
    return np.linalg.norm(out[0] - out[1], axis=1) / np.linalg.norm(
        (x - y).reshape(count, -1), axis=1
    )


@pytest.mark.parametrize(("layer", "shape", "exact"), CASES, ids=named)
def test_no_pair_is_above_and_exact_ones_are_reached(layer, shape, exact, device):
    layer = prepared(layer, shape, device)
    bound = upper_bound(layer, shape).product
    assert slopes(layer, shape, device=device).max() <= bound * (1 + 1e-12)
    x = md.tensor(np.random.default_rng(3).normal(size=(2, *shape)), device=device)
    found = md.lipschitz.lower_bound(layer, x, 3)
    assert found <= bound * (1 + 1e-9)
    if exact:
        assert math.isclose(found, bound, rel_tol=1e-3)


@pytest.mark.parametrize(("layer", "exact"), MERGING, ids=named)
def test_merging_layers_see_their_inputs_as_one_vector(layer, exact):
    bound = upper_bound(layer, [(3,), (3,)]).product
    found = md.lipschitz.lower_bound(
        lambda x: layer([x[:, :3], x[:, 3:]]), np.random.default_rng(0).normal(size=(4, 6)), 30
    )
    assert found <= bound * (1 + 1e-9)
    assert not exact or math.isclose(found, bound, rel_tol=1e-3)


def test_every_layer_has_a_case_or_none_to_give():
    seen = {type(case[0]).__name__ for case in (*CASES, *MERGING)}
    of_dropout = {"AlphaDropout", "GaussianDropout", "SpatialDropout2D"}
    same = {"ActivityRegularization", "SpectralNorm", *of_dropout}
    assert set(layers.__all__) == seen | same | WITHOUT
    for name in of_dropout:
        assert upper_bound(getattr(layers, name)(0.5), (2, 2, 3)).product == 1
    for name in ("MultiHeadAttention", "Lambda", "GatedConv1D"):
        with pytest.raises(TypeError, match=f"{name} has no rule"):
            arguments = {"Lambda": [abs], "GatedConv1D": [3]}.get(name, [2, 2])
            upper_bound(getattr(layers, name)(*arguments), (3,))


def test_inputs_that_broadcast_have_no_constant():
    assert upper_bound(layers.Add(), [(3, 2), (1, 2)]).product == math.inf


@pytest.mark.parametrize("name", [*_NAMES, "linear"])
def test_activations_have_their_largest_slope(name):
    function, constant = md.functional.activation(name), activation_constant(name, 4)
    if math.isinf(constant):
        return
    draw = np.random.default_rng(0)
    if name in ("softmax", "log_softmax"):
        x = draw.normal(size=(300, 4)) * np.array([[0.3], [3.0], [30.0]] * 100)
        x[0] = [0, 0, -99, -99]  # where softmax reaches it; log_softmax does as x grows
        found = md.lipschitz.local_slopes(function, x, 30).max()
    else:
        x = md.tensor(np.linspace(-20, 20, 200_001), requires_grad=True)
        (slope,) = md.grad(md.sum(function(x)), [x])
        found = np.abs(slope.numpy()).max()
    assert constant * (1 - 1e-4) <= found <= constant * (1 + 1e-9)


def test_activations_of_ones_own():
    def stretch(x):
        return 3 * x

    layer = layers.Dense(2, stretch, input_size=2, kernel_initializer=np.eye(2))
    with pytest.raises(ValueError, match=r"activation stretch.*register_activation\(stretch, "):
        upper_bound(layer, (2,))
    md.lipschitz.register_activation(stretch, 3)
    assert math.isclose(upper_bound(layer, (2,)).product, 3, rel_tol=1e-9)
    assert upper_bound(layers.Activation(stretch), (2,)).product == 3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (layers.Dense(2, input_size=3), (3,)),
        (layers.Conv1D(2, 3, input_size=3), (5, 3)),
        (layers.Conv2DTranspose(2, 3, input_size=3), (5, 5, 3)),
        (layers.SeparableConv2D(2, 3, input_size=3), (5, 5, 3)),
        (layers.PReLU(input_size=3), (3,)),
        (layers.BatchNormalization(input_size=3), (3,)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_weights_that_are_no_numbers_are_refused(layer, shape):
    state = {name: np.array(value) for name, value in layer.state_dict().items()}
    next(iter(state.values())).flat[0] = np.nan
    layer.load_state_dict(state)
    with pytest.raises(ValueError, match="got nan; look for NaN in the weights"):
        upper_bound(layer, shape)


def test_what_has_no_constant_has_an_infinite_one():
    with np.errstate(all="ignore"):  # of zeros, which find the shape
        assert upper_bound(layers.LayerNormalization(epsilon=0.0), (2,)).product == math.inf
    assert upper_bound(layers.Activation("exp"), (2,)).product == math.inf
    assert upper_bound(layers.ReLU(threshold=1.0), (2,)).product == math.inf


@given(st.data())
def test_convolutions_with_zeros_around_are_below_and_near(data):
    draw = lambda low, high: data.draw(st.integers(low, high))  # noqa: E731
    groups, size, dilation = draw(1, 2), draw(1, 3), draw(1, 2)
    time = draw(dilation * (size - 1) + 1, 7)
    padding = data.draw(st.sampled_from(["valid", "same", "causal", 4, (0, 3), (2, 0)]))
    layer = layers.Conv1D(
        groups * draw(1, 2), size, draw(1, 3), padding, dilation, groups, use_bias=False
    )
    shape = (time, groups * draw(1, 2))
    layer = prepared(layer, shape)
    matrix = md.jacobian(layer, np.zeros((1, *shape))).numpy().reshape(-1, math.prod(shape))
    exact = np.linalg.svd(matrix, compute_uv=False)[0]
    bound = upper_bound(layer, shape).product
    assert exact <= bound <= 3 * exact  # of lengths as small as these


def test_zero_padding_is_more_than_going_round():
    """Of one step both taps see it, apart; going round, they would cancel."""
    kernel = np.array([1.0, -1.0]).reshape(2, 1, 1)
    layer = layers.Conv1D(1, 2, padding=1, kernel_initializer=kernel)
    assert md.sum(layer(np.ones((1, 1, 1))) ** 2).item() == 2
    assert math.sqrt(2) <= upper_bound(layer, (1, 1)).product <= 2 * (1 + 1e-9)


def test_evaluation_counts_whatever_the_mode():
    layer = layers.Sequential([layers.BatchNormalization(), layers.Dropout(0.9)])
    bound = upper_bound(layer, (3,)).product
    assert math.isclose(bound, 1 / math.sqrt(1.001), rel_tol=1e-9)
    assert layer.training and layer.layers[0].training
    assert (layer.layers[0].moving_mean.numpy() == 0).all()
