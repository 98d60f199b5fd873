"""Dense, Embedding, Conv1D, Dropout, LayerNormalization, Activation, Sequential: one by one.

Beside PyTorch they are in test_pytorch.py.
"""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.layers import (
    Activation,
    Conv1D,
    Dense,
    Dropout,
    Embedding,
    LayerNormalization,
    Sequential,
    SpatialDropout1D,
)
from minidl.testing import check_gradients

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)


def fill(layer, x):
    """Build on x, then random values everywhere: biases too."""
    layer(md.tensor(x))
    for p in layer.parameters():
        p.assign_(0.5 * normal(*p.shape))
    return layer


class TestDense:
    @pytest.mark.parametrize("options", [{}, {"activation": "tanh"}, {"use_bias": False}])
    @pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3), (3,)])
    def test_gradients(self, options, shape):
        layer = fill(Dense(2, **options), normal(*shape))
        check_gradients(layer, normal(*shape))

    def test_initializers(self):
        layer = Dense(3, kernel_initializer="ones", bias_initializer=[1, 2, 3], input_size=2)
        np.testing.assert_array_equal(layer(np.ones((1, 2), np.float32)).numpy(), [[3, 4, 5]])


class TestEmbedding:
    def test_rows(self):
        layer = Embedding(5, 3)
        ids = np.array([[0, 4], [4, 2]])
        np.testing.assert_array_equal(layer(ids).numpy(), layer.embeddings.numpy()[ids])

    def test_gradients_of_repeated_ids_add_up(self):
        layer = Embedding(5, 3)
        check_gradients(layer, np.array([[0, 4, 4], [4, 2, 0]]))
        md.sum(layer(np.array([1, 1, 3]))).backward()
        assert layer.embeddings.grad.numpy()[:, 0].tolist() == [0, 2, 0, 1, 0]

    def test_out_of_range(self):
        with pytest.raises(IndexError):
            Embedding(5, 3)(np.array([5]))
        with pytest.raises(IndexError, match="-1"):
            Embedding(5, 3)(np.array([-1]))

    def test_no_ids(self):
        assert Embedding(5, 3)(np.zeros((2, 0), np.int64)).shape == (2, 0, 3)


class TestConv1D:
    @pytest.mark.parametrize(
        "options",
        [
            {"padding": "same", "activation": "relu"},
            {"padding": "causal", "dilation_rate": 2, "activation": "tanh"},
            {"groups": 2, "strides": 2, "use_bias": False},
            {"padding": (2, 1)},
        ],
    )
    def test_gradients(self, options):
        x = normal(2, 7, 4)
        check_gradients(fill(Conv1D(6, 3, **options), x), x)

    def test_relu_by_name_and_as_a_function(self):
        x = normal(1, 5, 2)
        one = Conv1D(3, 2, activation="relu", input_size=2)
        other = Conv1D(3, 2, activation=md.relu, input_size=2)
        other.load_state_dict(one.state_dict())
        np.testing.assert_array_equal(one(x).numpy(), other(x).numpy())
        assert (one(x).numpy() >= 0).all()

    def test_groups_must_divide(self):
        with pytest.raises(ShapeError, match="divisor of 5 channels and 4 filters, got 2"):
            Conv1D(4, 3, groups=2, input_size=5)


class TestDropout:
    def test_identity_unless_training(self):
        x = md.tensor(normal(3, 4))
        assert Dropout(0.5).eval()(x) is x and Dropout(0.0)(x) is x

    def test_keeps_the_mean_and_zeroes_a_share(self):
        x = md.tensor(np.ones((400, 500), np.float32))
        out = Dropout(0.2)(x).numpy()
        assert out.dtype == np.float32
        assert set(np.unique(out)) == {0, np.float32(1.25)}
        assert (out == 0).mean() == pytest.approx(0.2, abs=0.005)

    def test_same_mask_forward_and_backward(self):
        x = md.tensor(np.ones((5, 6), np.float32), requires_grad=True)
        out = Dropout(0.5)(x)
        md.sum(out).backward()
        np.testing.assert_array_equal(x.grad.numpy(), out.numpy())

    def test_gradients_with_noise_on(self):
        check_gradients(Sequential([Dense(4, input_size=3), Dropout(0.5)]), normal(5, 3))

    def test_the_seed_decides(self):
        x, layer = md.tensor(np.ones(100, np.float32)), Dropout(0.5)
        md.seed(1)
        first, second = layer(x).numpy().copy(), layer(x).numpy()
        assert (first != second).any()
        md.seed(1)
        np.testing.assert_array_equal(layer(x).numpy(), first)

    def test_whole_channels(self):
        x = md.tensor(np.ones((4, 5, 6), np.float32))
        out = Dropout(0.5, noise_shape=(None, 1, None))(x).numpy()
        assert (out == out[:, :1]).all() and (out == 0).any() and (out == 2).any()
        with pytest.raises(ShapeError, match="x: expected 3 axes"):
            SpatialDropout1D(0.5)(x[0])

    def test_device_and_host_masks(self):
        layer = Dropout(0.5)
        host = md.tensor(np.ones((20, 30), np.float32))
        md.seed(3)
        expected = layer(host).numpy()
        md.seed(3)
        with md.random.draw_on_host():
            np.testing.assert_array_equal(layer(host.to("strict")).numpy(), expected)
        on_device = layer(host.to("strict")).numpy()
        assert set(np.unique(on_device)) == {0, 2}

    def test_rate(self):
        for rate in (1, -0.1, 20):
            with pytest.raises(ValueError, match=r"\[0, 1\)"):
                Dropout(rate)


class TestLayerNormalization:
    @pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}])
    def test_gradients(self, options):
        x = normal(3, 4, 5)
        check_gradients(fill(LayerNormalization(**options), x), x)

    def test_parameters(self):
        assert list(LayerNormalization(input_size=4).state_dict()) == ["gamma", "beta"]
        assert LayerNormalization(center=False, scale=False, input_size=4).parameters() == []


def test_activation():
    check_gradients(Activation("tanh"), normal(3, 4))
    np.testing.assert_array_equal(Activation(np.sign)(np.array([-2.0, 3.0])), [-1, 1])


def test_a_stack_of_all_of_them():
    model = Sequential(
        [
            Embedding(9, 4),
            Conv1D(6, 3, padding="same", activation="relu"),
            Dropout(0.3),
            LayerNormalization(),
            Sequential([Dense(5), Activation("gelu")]),
            Dense(3),
        ]
    )
    ids = rng.integers(0, 9, (2, 6))
    model(ids)
    check_gradients(model, ids, directions=1)


class TestSequentialWithAMask:
    @pytest.mark.parametrize("middle", ["recurrent", "attention", "pooling"])
    def test_padding_changes_nothing(self, middle, device):
        md.seed(2)
        inner = {
            "recurrent": [md.layers.Bidirectional(md.layers.LSTM(3))],
            "attention": [md.layers.MultiHeadAttention(2, 2), md.layers.GlobalMaxPooling1D()],
            "pooling": [md.layers.GlobalAveragePooling1D()],
        }[middle]
        with md.device(device):
            model = Sequential([Embedding(9, 4), *inner, Dense(2), md.layers.Softmax()])
        ids, mask = md.data.pad([[1, 2, 3], [4], [5, 6]])
        ids, mask = md.tensor(ids, device=device), md.tensor(mask, device=device)
        found = model(ids, mask).numpy()
        assert np.allclose(model(md.where(mask, ids, 8), mask).numpy(), found, atol=1e-7)
        assert not np.allclose(model(md.where(mask, ids, 8)).numpy(), found, atol=1e-4)

    def test_trains_on_lists_of_any_length(self):
        md.seed(3)
        model = Sequential([Embedding(9, 8), md.layers.LSTM(8), Dense(1)])
        rows = [[1, 2, 3], [4], [5, 6], [7, 8, 1, 2]]
        labels = np.array([[0.0], [1.0], [1.0], [0.0]], np.float32)
        batches = md.data.Batches(rows, labels, batch_size=4)
        (ids, mask), *_ = next(iter(batches))
        model(ids, mask)
        history = md.fit(
            model, md.losses.BinaryCrossentropy(from_logits=True), md.optimizers.Adam(model, 0.05),
            batches, epochs=40, verbose=False, allocator=False,
        )  # fmt: skip
        assert history["loss"][-1] < 0.1
