"""Layers with PyTorch's weights: the same outputs and all the same gradients."""

import re
from pathlib import Path

import numpy as np
import pytest

import minidl as md
from minidl import conversion
from minidl.conversion import from_pytorch, to_pytorch
from minidl.errors import BuildError, SerializationError
from minidl.layers import (
    GRU,
    LSTM,
    Activation,
    BatchNormalization,
    Bidirectional,
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Embedding,
    GroupNormalization,
    LayerNormalization,
    MultiHeadAttention,
    PReLU,
    SeparableConv2D,
    Sequential,
    SimpleRNN,
    StackedRNN,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)

torch = pytest.importorskip("torch")
nn = torch.nn
rng = np.random.default_rng(0)
KEPT = np.arange(7) < np.array([7, 4, 1])[:, None]


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def channels_first(module):
    """`module`, of (batch, channels, time), on (batch, time, channels)."""
    return lambda x: module(x.mT).mT


def conv(options, **theirs):
    def make():
        ours = Conv1D(6, 3, input_size=4, **options)
        module = nn.Conv1d(4, 6, 3, bias=options.get("use_bias", True), **theirs)
        whole = nn.Sequential(module, nn.ReLU()) if "activation" in options else module
        return ours, module, channels_first(whole), [normal(3, 11, 4)]

    return make


def of_images(ours, *theirs):
    """Pairs of layers on images of four channels; PyTorch's modules in a row."""

    def make():
        module = theirs[0]() if len(theirs) == 1 else nn.Sequential(*(make() for make in theirs))
        return ours(), module, images_first(module), [normal(2, 7, 6, 4)]

    return make


def images_first(module):
    """`module`, of (batch, channels, height, width), on (batch, height, width, channels)."""
    return lambda x: module(x.movedim(-1, 1)).movedim(1, -1)


def conv_transpose(theirs, **options):
    def make():
        ours = Conv1DTranspose(6, 3, input_size=4, **options)
        module = nn.ConvTranspose1d(4, 6, 3, **theirs)
        return ours, module, channels_first(module), [normal(3, 5, 4)]

    return make


def recurrent(kind, module, **options):
    def make():
        ours = kind(5, return_sequences=True, input_size=4, **options)
        theirs = module(4, 5, batch_first=True, bias=options.get("use_bias", True))
        return ours, theirs, lambda x: theirs(x)[0], [normal(3, 7, 4)]

    return make


def stacked(kind, module, depth, both=False):
    def make():
        stack = [kind(5, return_sequences=True) for _ in range(depth)]
        ours = StackedRNN([Bidirectional(layer) for layer in stack] if both else stack)
        theirs = module(4, 5, depth, batch_first=True, bidirectional=both)

        def run(x):
            packed = nn.utils.rnn.pack_padded_sequence(
                x, KEPT.sum(1), batch_first=True, enforce_sorted=False
            )
            return nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)[0]

        ours(normal(3, 7, 4))
        return ours, theirs, run, [normal(3, 7, 4), KEPT]

    return make


def attention(**options):
    def make():
        ours = MultiHeadAttention(2, 3, input_size=6, **options)
        theirs = nn.MultiheadAttention(6, 2, batch_first=True, bias=options.get("use_bias", True))
        padded = torch.tensor(~KEPT)
        return (
            ours, theirs, lambda x: theirs(x, x, x, key_padding_mask=padded)[0],
            [normal(3, 7, 6), {"value_mask": KEPT}],
        )  # fmt: skip

    return make


def cross_attention():
    ours = MultiHeadAttention(2, 3, input_size=(6, 4, 5))
    theirs = nn.MultiheadAttention(6, 2, kdim=5, vdim=4, batch_first=True)
    inputs = [normal(3, 7, 6), normal(3, 8, 4), normal(3, 8, 5)]
    return ours, theirs, lambda q, v, k: theirs(q, k, v)[0], inputs


def dense(**options):
    def make():
        theirs = nn.Linear(4, 3, bias=options.get("use_bias", True))
        return Dense(3, input_size=4, **options), theirs, theirs, [normal(2, 5, 4)]

    return make


def embedding():
    theirs = nn.Embedding(9, 4)
    return Embedding(9, 4), theirs, theirs, [rng.integers(0, 9, (3, 6))]


def layer_norm():
    theirs = nn.LayerNorm(4, eps=1e-3)
    return LayerNormalization(input_size=4), theirs, theirs, [normal(3, 5, 4)]


def batch_norm():
    theirs = nn.BatchNorm1d(4, eps=1e-3)
    return BatchNormalization(momentum=0.9, input_size=4), theirs, theirs, [normal(8, 4)]


def batch_norm_of_images():
    theirs = nn.BatchNorm2d(4, eps=1e-3)
    ours = BatchNormalization(momentum=0.9, input_size=4)
    return ours, theirs, images_first(theirs), [normal(3, 5, 6, 4)]


def group_norm():
    theirs = nn.GroupNorm(2, 6, eps=1e-3)
    ours = GroupNormalization(2, input_size=6)
    return ours, theirs, channels_first(theirs), [normal(3, 5, 6)]


def prelu():
    theirs = nn.PReLU(4)
    ours = PReLU(shared_axes=(1,), input_size=4)
    return ours, theirs, channels_first(theirs), [normal(3, 5, 4)]


def encoder(first):
    def make():
        ours = TransformerEncoderBlock(7, 2, normalize_first=first, input_size=6)
        theirs = nn.TransformerEncoderLayer(
            6, 2, 7, dropout=0.0, batch_first=True, norm_first=first
        )
        return ours, theirs, theirs, [normal(3, 5, 6)]

    return make


def decoder():
    ours = TransformerDecoderBlock(7, 2, input_size=6)
    theirs = nn.TransformerDecoderLayer(6, 2, 7, dropout=0.0, batch_first=True, norm_first=True)
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    inputs = [normal(3, 5, 6), normal(3, 7, 6)]
    return ours, theirs, lambda x, memory: theirs(x, memory, tgt_mask=causal), inputs


def network():
    ours = Sequential([Dense(5, input_size=4), Activation("tanh"), Dense(2, input_size=5)])
    theirs = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))
    return ours, theirs, theirs, [normal(3, 4)]


PAIRS = {
    "Linear": dense(),
    "Linear without bias": dense(use_bias=False),
    "Conv1d": conv({}),
    "Conv1d padded": conv({"padding": "same"}, padding="same"),
    "Conv1d and ReLU": conv({"padding": "same", "activation": "relu"}, padding="same"),
    "Conv1d stride": conv({"strides": 2, "padding": 1}, stride=2, padding=1),
    "Conv1d dilation": conv({"dilation_rate": 3, "use_bias": False}, dilation=3),
    "Conv1d groups": conv({"groups": 2}, groups=2),
    "Conv1d all": conv(
        {"strides": 2, "dilation_rate": 2, "groups": 2, "padding": 3},
        stride=2, dilation=2, groups=2, padding=3,
    ),
    "Conv2d": of_images(
        lambda: Conv2D(6, (3, 2), input_size=4), lambda: nn.Conv2d(4, 6, (3, 2))
    ),
    "Conv2d all": of_images(
        lambda: Conv2D(
            6, 3, (2, 1), (2, 1), (1, 2), groups=2, use_bias=False, input_size=4
        ),
        lambda: nn.Conv2d(4, 6, 3, (2, 1), (2, 1), (1, 2), groups=2, bias=False),
    ),
    "Conv2d same": of_images(
        lambda: Conv2D(6, (3, 5), padding="same", input_size=4),
        lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    ),
    "Conv2d of each channel": of_images(
        lambda: DepthwiseConv2D((3, 2), 2, 1, depth_multiplier=3, input_size=4),
        lambda: nn.Conv2d(4, 12, (3, 2), 2, 1, groups=4),
    ),
    "Conv2d of each channel, then of size 1": of_images(
        lambda: SeparableConv2D(5, 3, padding=1, depth_multiplier=2, input_size=4),
        lambda: nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False),
        lambda: nn.Conv2d(8, 5, 1),
    ),
    "ConvTranspose1d": conv_transpose({}),
    "ConvTranspose1d all": conv_transpose(
        {"stride": 3, "padding": 2, "output_padding": 1, "dilation": 2, "groups": 2},
        strides=3, padding=2, output_padding=1, dilation_rate=2, groups=2,
    ),
    "ConvTranspose2d": of_images(
        lambda: Conv2DTranspose(6, 4, 2, 1, input_size=4), lambda: nn.ConvTranspose2d(4, 6, 4, 2, 1)
    ),
    "ConvTranspose2d all": of_images(
        lambda: Conv2DTranspose(6, 3, 2, 1, (1, 0), (1, 2), 2, use_bias=False, input_size=4),
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, (1, 0), 2, False, (1, 2)),
    ),
    "Embedding": embedding,
    "LayerNorm": layer_norm,
    "BatchNorm1d": batch_norm,
    "BatchNorm2d": batch_norm_of_images,
    "GroupNorm": group_norm,
    "PReLU": prelu,
    "RNN": recurrent(SimpleRNN, nn.RNN),
    "GRU": recurrent(GRU, nn.GRU),
    "LSTM": recurrent(LSTM, nn.LSTM),
    "LSTM without bias": recurrent(LSTM, nn.LSTM, use_bias=False),
    "RNN, two layers": stacked(SimpleRNN, nn.RNN, 2),
    "GRU, two layers, both ways": stacked(GRU, nn.GRU, 2, both=True),
    "LSTM, two layers, both ways": stacked(LSTM, nn.LSTM, 2, both=True),
    "MultiheadAttention": attention(),
    "MultiheadAttention without bias": attention(use_bias=False),
    "MultiheadAttention, three sizes": cross_attention,
    "TransformerEncoderLayer": encoder(False),
    "TransformerEncoderLayer, norm first": encoder(True),
    "TransformerDecoderLayer": decoder,
    "Sequential": network,
}  # fmt: skip
EACH = pytest.mark.parametrize("name", PAIRS)


def pair(name):
    """Both layers with PyTorch's random weights, and the inputs."""
    torch.manual_seed(0)
    ours, theirs, run, inputs = PAIRS[name]()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.tensor(0.5 * normal(*p.shape)))
        for buffer in theirs.buffers():
            if buffer.ndim:
                buffer.copy_(torch.tensor(1 + 0.5 * rng.uniform(size=buffer.shape)))
    from_pytorch(ours, theirs.state_dict())
    return ours, theirs, run, inputs


def close(one, other, what):
    """To 1e-5 of the largest entry."""
    assert one.shape == other.shape, what
    assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max() + 1e-7, what


@EACH
@pytest.mark.parametrize("training", [True, False])
def test_outputs_and_all_gradients(name, training):
    ours, theirs, run, inputs = pair(name)
    ours.train(training), theirs.train(training)
    options = inputs.pop() if isinstance(inputs[-1], dict) else {}
    mine = [md.tensor(x, requires_grad=x.dtype == np.float32) for x in inputs]
    yours = [torch.tensor(x, requires_grad=x.dtype == np.float32) for x in inputs]
    outputs = ours(*mine, **options), run(*(y for y in yours if y.dtype != torch.bool))
    close(outputs[0].numpy(), outputs[1].detach().numpy(), "output")
    weight = normal(*outputs[0].shape)
    outputs[0].backward(md.tensor(weight))
    outputs[1].backward(torch.tensor(weight))
    for i, (x, y) in enumerate(zip(mine, yours, strict=True)):
        if x.requires_grad:
            close(x.grad.numpy(), y.grad.numpy(), f"inputs[{i}]")
    compare_gradients(ours, theirs, PAIRS[name])
    if "running_mean" in theirs.state_dict():  # the variances differ by n / (n - 1)
        close(ours.moving_mean.numpy(), theirs.running_mean.numpy(), "running_mean")


def compare_gradients(ours, theirs, make):
    """PyTorch's gradients, converted as if they were weights, are ours."""
    twin = make()[0]
    state = theirs.state_dict()
    state |= {key: p.grad for key, p in theirs.named_parameters()}
    from_pytorch(twin, state)
    expected = dict(twin.named_parameters())
    for key, p in ours.named_parameters():
        value = expected[key].numpy()
        if key.endswith("bias") and isinstance(theirs, (nn.RNN, nn.LSTM)):
            value = value / 2  # it is the sum of two biases there, each with this gradient
        if key.endswith(
            "key_bias"
        ):  # softmax does not see a shift of all scores: rounding, no more
            assert np.abs(p.grad.numpy() - value).max() < 1e-5
            continue
        close(p.grad.numpy(), value, key)


@EACH
def test_there_and_back(name):
    ours, theirs, *_ = pair(name)
    back = {key: torch.from_numpy(value) for key, value in to_pytorch(ours).items()}
    fresh = PAIRS[name]()[0]
    from_pytorch(fresh, back)
    for key, value in fresh.state_dict().items():
        np.testing.assert_array_equal(value, ours.state_dict()[key])
    theirs.load_state_dict(back)  # strictly: every name and shape


class TestErrors:
    state = {"weight": np.ones((3, 4)), "bias": np.ones(3)}  # noqa: RUF012

    def layer(self):
        return Dense(3, input_size=4)

    def test_prefix(self):
        layer = self.layer()
        state = {f"head.{key}": value for key, value in self.state.items()}
        from_pytorch(layer, state | {"body.weight": np.ones(1)}, prefix="head")
        assert (layer.bias.numpy() == 1).all() and layer.bias.dtype == np.float32
        assert list(to_pytorch(layer, "head.")) == ["head.weight", "head.bias"]

    def test_missing_and_unexpected_names(self):
        layer = self.layer()
        before = layer.state_dict()
        with pytest.raises(SerializationError, match=r"missing: bias; unexpected: gain\. Check"):
            from_pytorch(layer, {"weight": np.ones((3, 4)), "gain": np.ones(3)})
        np.testing.assert_array_equal(layer.kernel.numpy(), before["kernel"])

    def test_shapes(self):
        with pytest.raises(SerializationError, match=r"kernel: expected \(4, 3\), got \(5, 3\)"):
            from_pytorch(self.layer(), {"weight": np.ones((3, 5)), "bias": np.ones(3)})

    def test_unbuilt(self):
        with pytest.raises(BuildError, match="Dense"):
            from_pytorch(Dense(3), self.state)

    def test_no_counterpart(self):
        with pytest.raises(TypeError, match=r"1 \(CRF\): PyTorch has no counterpart for"):
            to_pytorch(Sequential([Dense(3, input_size=2), md.layers.CRF(3)]))
        with pytest.raises(TypeError, match="go_backwards"):
            to_pytorch(LSTM(3, go_backwards=True, input_size=2))

    def test_an_activation_with_parameters_is_not_left_out(self):
        layer = Dense(3, activation=md.layers.PReLU(input_size=3), input_size=4)
        assert "activation.weight" in to_pytorch(layer)
        with pytest.raises(SerializationError, match=r"missing: activation\.weight"):
            from_pytorch(layer, self.state)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_other_dtypes(dtype):
    theirs = nn.Linear(4, 3).to(getattr(torch, dtype))
    ours = Dense(3, input_size=4)
    from_pytorch(ours, theirs.state_dict())
    assert ours.kernel.dtype == np.float32
    expected = theirs.weight.detach().float().numpy().T
    np.testing.assert_array_equal(ours.kernel.numpy(), expected)


def test_pytorch_is_not_imported():
    source = Path(conversion.__file__).read_text("utf-8")
    assert not re.search(r"^\s*(import|from) torch", source, re.M)
