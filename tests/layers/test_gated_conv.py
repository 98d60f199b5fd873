"""GatedConv1D and AttentionPooling: what they compute, their modes, a whole fit on the stand-in."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.layers import AttentionPooling, Dense, Embedding, GatedConv1D, Layer
from minidl.testing import check_gradients
from minidl.testing.strict import forbid_sync

rng = np.random.default_rng(0)
MASK = np.arange(5) < np.array([[5], [2], [0]])


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


class TestGatedConv1D:
    @pytest.mark.parametrize(
        "options",
        [{}, {"dilation_rate": 2, "dropout": 0.3}, {"skip": False}, {"padding": "causal"},
         {"use_bias": False, "kernel_size": 2}],
    )  # fmt: skip
    def test_gradients(self, options):
        layer = GatedConv1D(4, input_size=4, **options)
        check_gradients(lambda x: layer(x, MASK), normal(3, 5, 4))

    def test_it_is_a_mixture_of_input_and_value(self):
        x = normal(2, 7, 4)
        layer = GatedConv1D(4, 3, input_size=4, bias_initializer="normal")
        value, score = np.split(
            md.conv1d(x, layer.kernel, layer.bias, padding="same").numpy(), 2, axis=-1
        )
        gate = 1 / (1 + np.exp(-score))
        np.testing.assert_allclose(layer(x), x * (1 - gate) + value * gate, atol=1e-6)
        layer.skip = False
        np.testing.assert_allclose(layer(x), value * gate, atol=1e-6)

    def test_a_dropped_score_is_a_half_open_gate(self):
        x = normal(20, 30, 1)
        layer = GatedConv1D(1, 1, dropout=0.4, input_size=1)
        layer.kernel.assign_([[[3.0, 50.0]]])  # v = 3 x; the gate is at 0 or 1 unless dropped
        out = layer(x).numpy()
        share = np.isclose(out, 2 * x).mean()  # (x + 3 x) / 2
        assert share == pytest.approx(0.4, abs=0.06)
        layer.eval()
        assert not np.isclose(layer(x).numpy(), 2 * x, rtol=1e-3).mean() > 0.05

    def test_the_seed_decides(self):
        x, layer = normal(2, 5, 4), GatedConv1D(4, dropout=0.5, input_size=4)
        md.seed(1)
        first, second = layer(x).numpy(), layer(x).numpy()
        md.seed(1)
        np.testing.assert_array_equal(layer(x).numpy(), first)
        assert (first != second).any()

    def test_errors(self):
        with pytest.raises(ShapeError, match="expected 3, as many as there are channels, got 4"):
            GatedConv1D(4, input_size=3)
        assert GatedConv1D(4, skip=False)(normal(1, 5, 3)).shape == (1, 5, 4)
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            GatedConv1D(4, dropout=1.0)


class TestAttentionPooling:
    @pytest.mark.parametrize("units", [None, 2])
    @pytest.mark.parametrize("mask", [None, MASK])
    def test_gradients(self, units, mask):
        layer = AttentionPooling(units, input_size=4)
        check_gradients(lambda x: layer(x, mask), normal(3, 5, 4))

    def test_what_it_computes(self):
        layer, x = AttentionPooling(3, input_size=4), normal(2, 5, 4)
        scores = np.tanh(x @ layer.kernel.numpy()) @ layer.context.numpy()
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(layer(x), (weights * x).sum(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(layer.weights(x), weights[:, :, 0], rtol=1e-5)

    def test_empty_rows_and_padding(self):
        layer, x = AttentionPooling(input_size=4), normal(3, 5, 4)
        dirty = md.tensor(np.where(MASK[:, :, None], x, np.float32(np.nan)), requires_grad=True)
        out = layer(dirty, MASK)
        np.testing.assert_array_equal(out.numpy()[2], 0)
        np.testing.assert_allclose(out.numpy()[1:2], layer(x[1:2, :2]), rtol=1e-5, atol=1e-6)
        (g,) = md.grad(out.sum(), [dirty])
        assert not g.numpy()[~MASK].any()

    def test_one_step_is_itself(self):
        x = normal(2, 1, 4)
        np.testing.assert_allclose(AttentionPooling()(x), x[:, 0], rtol=1e-6)

    def test_names(self):
        state = AttentionPooling(3, input_size=4).state_dict()
        assert {n: v.shape for n, v in state.items()} == {"kernel": (4, 3), "context": (3, 1)}


class Reader(Layer):
    def __init__(self):
        self.embedding = Embedding(9, 8)
        self.blocks = [GatedConv1D(8, 3, rate, 0.1, input_size=8) for rate in (1, 2)]
        self.pooling = AttentionPooling(input_size=8)
        self.dense = Dense(2, input_size=8)

    def call(self, ids, mask):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, mask)
        return self.dense(self.pooling(x, mask))


def test_a_whole_fit_on_the_stand_in_without_waiting():
    with md.device("strict"):
        model = Reader()
    ids, targets = rng.integers(0, 9, (8, 6)), rng.integers(0, 2, 8)
    mask = np.arange(6) < rng.integers(0, 7, (8, 1))
    batches = [((ids, mask), targets)]
    optimizer = md.optimizers.Adam(model, 1e-2)
    loss = md.losses.SparseCategoricalCrossentropy()
    md.fit(model, loss, optimizer, batches, epochs=1, verbose=False)
    data = [md.tensor(a, device="strict") for a in (ids, mask, targets)]
    with forbid_sync():
        loss(data[2], model(*data[:2])).backward()
        optimizer.step()
