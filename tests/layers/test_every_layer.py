"""What holds for every layer, at drawn sizes and masks. One that is not in CASES fails a test."""

# ruff: noqa: F403, F405

import numpy as np
import pytest

import minidl as md
from minidl import backend, layers
from minidl.graph import Tensor
from minidl.layers import *
from minidl.samples import Draw
from minidl.testing import check_gradients, strict

# --- How to make and call each --------------------------------------------------------------------


def sequence(draw, channels=None, **limits):
    """(batch, time, channels)."""
    batch, time = draw.integer(1, 3), draw.integer(1, 5)
    return draw.array((batch, time, channels or draw.integer(1, 4)), **limits)


def masked(draw, channels=None, **limits):
    """A sequence and its mask, which may leave rows empty, but not all."""
    x = sequence(draw, channels, **limits)
    mask = draw.mask(x.shape[:2])
    mask[draw.integer(0, len(x) - 1), draw.integer(0, x.shape[1] - 1)] = True
    return x, mask


def several(draw, number, **limits):
    """A list of arrays of one shape."""
    shape = (draw.integer(1, 3), draw.integer(1, 4))
    values = draw.array((number, *shape), -4.0, 4.0, distinct=True, **limits)
    return list(values)


def crf(draw):
    tags = draw.integer(1, 3)
    x, mask = masked(draw, tags)
    return CRF(tags), x, draw.integers(x.shape[:2], 0, tags - 1), mask


def center_loss(draw):
    x, mask = masked(draw)
    return CenterLoss(3), x, draw.integers(x.shape[:2], 0, 2), mask


def recurrent(kind):
    def make(draw):
        layer = kind(
            draw.integer(1, 3), draw.boolean(), draw.boolean(), draw.boolean(), draw.boolean()
        )
        return layer, *masked(draw)

    return make


def bidirectional(draw):
    merge = draw.choice(["concat", "sum", "mul", "ave", None])
    return Bidirectional(GRU(2, return_sequences=draw.boolean()), merge), *masked(draw)


def gated(draw):
    n, skip = draw.integer(1, 3), draw.boolean()
    layer = GatedConv1D(n if skip else 2, 3, draw.integer(1, 2), draw.choice([0.0, 0.3]), skip)
    return layer, *masked(draw, n)


def conditional(draw):
    x = sequence(draw, draw.integer(2, 4))
    return ConditionalLayerNormalization(), x, draw.array((len(x), 2))


def dot(draw):
    b, i, j, n = (draw.integer(1, 3) for _ in range(4))
    normalize = draw.boolean()
    if draw.boolean():
        return Dot(-1, normalize), [draw.array((b, n), 0.5), draw.array((b, n), 0.5)]
    return Dot((2, 1), normalize), [draw.array((b, i, n), 0.5), draw.array((b, n, j), 0.5)]


def attention(draw):
    heads, dropout = draw.integer(1, 2), draw.choice([0.0, 0.3])
    x, mask = masked(draw)
    return MultiHeadAttention(heads, draw.integer(1, 3), dropout=dropout), x, mask


def encoder(draw):
    options = {"activation": "tanh", "normalize_first": draw.boolean(), "epsilon": 0.1}
    return TransformerEncoderBlock(3, 2, dropout=0.2, **options), *masked(draw, 4)


def decoder(draw):
    x, mask = masked(draw, 4)
    memory = draw.array((len(x), draw.integer(1, 3), 3))
    layer = TransformerDecoderBlock(3, 2, activation="tanh", epsilon=0.1, memory_size=3)
    return layer, x, memory, mask, draw.mask(memory.shape[:2])


def batch_norm(draw):
    x = draw.array((draw.integer(2, 4), draw.integer(2, 4), draw.integer(1, 3)))
    return BatchNormalization(epsilon=0.1), x, draw.mask(x.shape[:2])


def spectral(layer, draw):
    """Its state begins with the kernel's singular vectors: one kernel in all cases."""
    layer._kernel = ("ones", *layer._kernel[1:])
    method = draw.choice(["reshaped", "operator"])
    return SpectralNormalization(layer, method=method), sequence(draw)


def long(draw):
    return draw.array((draw.integer(1, 2), draw.integer(3, 6), 2), -4.0, 4.0, distinct=True)


def image(draw, channels=None):
    """(batch, height, width, channels), no two entries equal."""
    sides = draw.integer(2, 4), draw.integer(2, 3)
    shape = (draw.integer(1, 2), *sides, channels or draw.integer(1, 2))
    return draw.array(shape, -4.0, 4.0, distinct=True)


CASES = {
    "Activation": lambda d: (Activation(d.choice(["tanh", "gelu", "mish"])), sequence(d)),
    "ActivityRegularization": lambda d: (ActivityRegularization(0.1, 0.2), sequence(d)),
    "Add": lambda d: (Add(), several(d, d.integer(1, 3))),
    "AlphaDropout": lambda d: (AlphaDropout(0.3), sequence(d)),
    "AttentionPooling": lambda d: (AttentionPooling(d.choice([None, 2])), *masked(d)),
    "Average": lambda d: (Average(), several(d, d.integer(1, 3))),
    "AveragePooling1D": lambda d: (AveragePooling1D(d.integer(1, 3), d.integer(1, 3)), long(d)),
    "AveragePooling2D": lambda d: (
        AveragePooling2D(d.integer(1, 2), d.integer(1, 2), d.choice(["valid", "same"])), image(d)
    ),
    "BatchNormalization": batch_norm,
    "Bidirectional": bidirectional,
    "CRF": crf,
    "CenterLoss": center_loss,
    "Concatenate": lambda d: (Concatenate(), several(d, d.integer(1, 3))),
    "ConditionalLayerNormalization": conditional,
    "Conv1D": lambda d: (
        Conv1D(2, d.integer(1, 3), padding="same", dilation_rate=d.integer(1, 2)), sequence(d)
    ),
    "Conv1DTranspose": lambda d: (
        Conv1DTranspose(2, d.integer(1, 3), d.integer(1, 3), d.choice(["valid", "same"])),
        sequence(d),
    ),
    "Conv2D": lambda d: (
        Conv2D(2, d.integer(1, 3), d.integer(1, 3), "same", activation=d.choice([None, "tanh"])),
        image(d),
    ),
    "Conv2DTranspose": lambda d: (
        Conv2DTranspose(2, d.integer(1, 3), (2, d.integer(1, 3)), d.choice(["valid", "same"])),
        image(d),
    ),
    "Cropping1D": lambda d: (Cropping1D((d.integer(0, 1), d.integer(0, 2))), long(d)),
    "Cropping2D": lambda d: (Cropping2D((d.integer(0, 1), (d.integer(0, 1), 1))), image(d)),
    "Dense": lambda d: (
        Dense(d.integer(1, 3), d.choice([None, "tanh"]), d.boolean()), sequence(d)
    ),
    "DepthwiseConv2D": lambda d: (
        DepthwiseConv2D(2, d.integer(1, 2), "same", depth_multiplier=d.integer(1, 2)), image(d)
    ),
    "Dot": dot,
    "Dropout": lambda d: (Dropout(0.4), sequence(d)),
    "ELU": lambda d: (ELU(d.choice([1.0, 0.5])), sequence(d, away=(0.0,))),
    "Embedding": lambda d: (Embedding(5, 2), d.integers((2, d.integer(0, 4)), 0, 4)),
    "Flatten": lambda d: (Flatten(), sequence(d)),
    "GRU": recurrent(GRU),
    "GatedConv1D": gated,
    "GaussianDropout": lambda d: (GaussianDropout(0.3), sequence(d)),
    "GaussianNoise": lambda d: (GaussianNoise(0.3), sequence(d)),
    "GlobalAveragePooling1D": lambda d: (GlobalAveragePooling1D(), *masked(d)),
    "GlobalAveragePooling2D": lambda d: (GlobalAveragePooling2D(d.boolean()), image(d)),
    "GlobalMaxPooling1D": lambda d: (
        GlobalMaxPooling1D(), *masked(d, low=-6.0, high=6.0, distinct=True)
    ),
    "GlobalMaxPooling2D": lambda d: (GlobalMaxPooling2D(d.boolean()), image(d)),
    "GroupNormalization": lambda d: (
        GroupNormalization(d.choice([-1, 2])), *masked(d, d.choice([2, 4]))
    ),
    "Identity": lambda d: (Identity(), sequence(d)),
    "LSTM": recurrent(LSTM),
    "Lambda": lambda d: (Lambda(lambda x: x * md.tanh(x)), sequence(d)),
    "LayerNormalization": lambda d: (LayerNormalization(), sequence(d, d.integer(2, 4))),
    "LeakyReLU": lambda d: (LeakyReLU(), sequence(d, away=(0.0,))),
    "LearnedPositions": lambda d: (LearnedPositions(6), sequence(d)),
    "ManifoldMixing": lambda d: (ManifoldMixing(Sequential([Dense(2)]), ["0"]), sequence(d)),
    "MaxPooling1D": lambda d: (
        MaxPooling1D(d.integer(1, 3), d.integer(1, 3), d.choice(["valid", "same"])), long(d)
    ),
    "MaxPooling2D": lambda d: (
        MaxPooling2D((d.integer(1, 2), d.integer(1, 3)), padding="same"), image(d)
    ),
    "Maximum": lambda d: (Maximum(), several(d, d.integer(1, 3))),
    "Minimum": lambda d: (Minimum(), several(d, d.integer(1, 3))),
    "MultiHeadAttention": attention,
    "Multiply": lambda d: (Multiply(), several(d, d.integer(1, 3))),
    "PReLU": lambda d: (
        PReLU(shared_axes=(1,)) if d.boolean() else PReLU(), sequence(d, away=(0.0,))
    ),
    "Permute": lambda d: (Permute((2, 1)), sequence(d)),
    "PixelShuffle": lambda d: (PixelShuffle(2), image(d, 4)),
    "ReLU": lambda d: (
        ReLU(d.choice([None, 1.0]), d.choice([0.0, 0.1]), d.choice([0.0, 0.5])),
        sequence(d, away=(0.0, 0.5, 1.0)),
    ),
    "RepeatVector": lambda d: (RepeatVector(d.integer(0, 3)), d.array((2, d.integer(1, 3)))),
    "Reshape": lambda d: (Reshape((2, -1)), d.array((d.integer(1, 3), 3, 4))),
    "RotaryPositions": lambda d: (RotaryPositions(), sequence(d, 2 * d.integer(1, 2))),
    "ScaleShift": lambda d: (ScaleShift(), sequence(d)),
    "SeparableConv2D": lambda d: (
        SeparableConv2D(2, (1, 2), depth_multiplier=d.integer(1, 2), activation="tanh"), image(d)
    ),
    "Sequential": lambda d: (Sequential([Dense(3), Dropout(0.3), Dense(2)]), sequence(d)),
    "SimpleRNN": recurrent(SimpleRNN),
    "SinusoidalPositions": lambda d: (SinusoidalPositions(), sequence(d, 2 * d.integer(1, 2))),
    "Softmax": lambda d: (Softmax(), x := d.array((2, d.integer(1, 4))), d.mask(x.shape)),
    "SpatialDropout1D": lambda d: (SpatialDropout1D(0.4), sequence(d)),
    "SpatialDropout2D": lambda d: (SpatialDropout2D(0.4), image(d)),
    "SpectralNorm": lambda d: spectral(Conv1D(2, d.integer(1, 3), padding="same"), d),
    "SpectralNormalization": lambda d: spectral(Dense(d.integer(1, 3), "tanh"), d),
    "StackedRNN": lambda d: (
        StackedRNN([Bidirectional(LSTM(2, return_sequences=True)), SimpleRNN(2)]), *masked(d)
    ),
    "Subtract": lambda d: (Subtract(), several(d, 2)),
    "TransformerDecoderBlock": decoder,
    "TransformerEncoderBlock": encoder,
    "UpSampling1D": lambda d: (UpSampling1D(d.integer(1, 3)), sequence(d)),
    "UpSampling2D": lambda d: (UpSampling2D((d.integer(1, 3), d.integer(1, 2))), image(d)),
    "ZeroPadding1D": lambda d: (ZeroPadding1D((d.integer(0, 2), 1)), sequence(d)),
    "ZeroPadding2D": lambda d: (ZeroPadding2D((d.integer(0, 1), (1, d.integer(0, 2)))), image(d)),
}  # fmt: skip
CALLS = {  # how a layer is called, where it is not layer(*inputs)
    "CRF": lambda layer: layer.loss,
    "CenterLoss": lambda layer: lambda x, t, m: layer(x, t, m, reduction="none"),
    "MultiHeadAttention": lambda layer: lambda x, m: layer(x, query_mask=m, value_mask=m),
}
EACH = pytest.mark.parametrize("name", CASES)
AT = pytest.mark.parametrize("seed", range(3))


def test_every_layer_has_a_case():
    assert set(layers.__all__) - {"Layer", "Parameter"} == set(CASES)


# --- What holds -----------------------------------------------------------------------------------


class Case:
    """A layer with random values in its parameters, and the arguments of a call."""

    def __init__(self, name, seed=0, dtype="float64", device="cpu"):
        with md.default_dtype(dtype), md.device(device):
            self.layer, *inputs = CASES[name](Draw(seed))
            self.inputs = tree(inputs, lambda x: place(x, dtype, device))
            self.function = CALLS.get(name, lambda layer: layer)(self.layer)
            self.value()
        self.layer.forget_losses()
        rng = np.random.default_rng(seed)
        for p in self.layer.parameters():
            p.assign_(backend.to_device(0.5 * rng.normal(size=p.shape), device))

    def value(self):
        return self.function(*self.inputs)


def tree(value, change):
    """`change` applied to all arrays and Tensors inside lists and tuples."""
    if isinstance(value, (list, tuple)):
        return type(value)(tree(item, change) for item in value)
    return change(value)


def place(x, dtype, device):
    x = x.astype(dtype) if x.dtype.kind == "f" else x
    x = backend.to_device(np.ascontiguousarray(x), device)
    return md.tensor(x, requires_grad=True) if x.dtype.kind == "f" else x


def flat(output):
    """The Tensors of an output."""
    if isinstance(output, (list, tuple)):
        return [y for item in output for y in flat(item)]
    return [output]


def host(output):
    return [y.numpy() if isinstance(y, Tensor) else backend.to_host(y) for y in flat(output)]


def same(one, other, rtol=0.0):
    for a, b in zip(host(one), host(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def total(output):
    """A scalar that all outputs bear on, each in its own way."""
    terms = [md.sum(md.sin(y + i)) for i, y in enumerate(flat(output))]
    return sum(terms[1:], terms[0])


@EACH
@AT
def test_gradients(name, seed, device):
    case = Case(name, seed, device=device)
    inputs = tree(case.inputs, lambda x: x.numpy() if isinstance(x, Tensor) else x)
    check_gradients(
        case.function, *inputs, parameters=case.layer, directions=1, dtypes=False, device=device
    )


@EACH
@AT
def test_a_batch_is_its_items(name, seed):
    case = Case(name, seed)
    case.layer.eval()
    inputs, call = case.inputs, case.function
    if name == "CRF":  # its paths
        inputs, call = inputs[:1] + inputs[2:], case.layer
    for i in range(len(flat(inputs)[0])):
        item = call(*tree(inputs, lambda x: x[i : i + 1]))  # noqa: B023
        same(item, [y[i : i + 1] for y in flat(call(*inputs))], rtol=1e-9)


@EACH
def test_evaluation_is_deterministic(name):
    case = Case(name)
    case.layer.eval()
    before = {k: v.copy() for k, v in case.layer.state_dict().items()}
    same(case.value(), case.value())
    for key, value in case.layer.state_dict().items():
        np.testing.assert_array_equal(value, before[key])


@EACH
def test_the_state_makes_another_the_same(name):
    case, other = Case(name), Case(name)
    for p in other.layer.parameters():
        p.assign_(np.zeros(p.shape))
    assert other.layer.load_state_dict(case.layer.state_dict()) == ([], [])
    case.layer.eval(), other.layer.eval()
    same(case.value(), other.value())


@EACH
def test_every_weight_is_a_parameter(name, monkeypatch):
    made, add_weight = [], Layer.add_weight

    def noting(self, *args, **kwargs):
        made.append(add_weight(self, *args, **kwargs))
        return made[-1]

    monkeypatch.setattr(Layer, "add_weight", noting)
    found = Case(name).layer.parameters()
    assert {id(p) for p in made} == {id(p) for p in found}


@EACH
def test_looking(name):
    case = Case(name)
    assert repr(case.layer).startswith(name)
    count = sum(p.size for p in case.layer.parameters())
    lines = case.layer.summary().splitlines()
    assert lines[2].startswith(name) and lines[-1].startswith(f"{count:,} parameters")


@EACH
def test_float32_stays(name):
    case = Case(name, dtype="float32")
    output = case.value()
    assert {y.dtype for y in flat(output)} == {np.dtype(np.float32)}
    total(output).backward()
    for p in case.layer.parameters():
        assert p.dtype == np.float32 and p.grad.dtype == np.float32


@EACH
def test_on_the_strict_device(name):
    """Training, without waiting for the device; in evaluation mode, the host's results."""
    case, other = Case(name, 1), Case(name, 1, device="strict")
    case.value()  # which may move averages
    with strict.forbid_sync():
        total(other.value()).backward()
    case.layer.eval(), other.layer.eval()
    same(case.value(), other.value(), rtol=1e-9)
