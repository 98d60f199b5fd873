"""Regularizers: values, in layers, in a model's losses, under an optimiser."""

import copy

import numpy as np
import pytest

import minidl as md
from minidl.layers import Conv1D, Dense, Embedding, PReLU, Sequential
from minidl.regularizers import L1, L1L2, L2, SpectralNorm, get
from minidl.testing import check_gradients

x = np.float32([[1.0, -2.0], [0.0, 3.0]])


def losses(model):
    return [float(value) for value in model.losses()]


def test_values():
    assert float(L1(0.5)(x)) == 3 and float(L2(0.5)(x)) == 7
    assert float(L1L2(0.5, 0.5)(x)) == 10 and float(L1L2()(x)) == 0
    assert float(L1()(x)) == pytest.approx(0.06) and float(L2()(x)) == pytest.approx(0.14)


def test_by_name():
    assert repr(get("l1")) == "L1(l1=0.01)" and repr(get("l2")) == "L2(l2=0.01)"
    assert repr(get("l1_l2")) == "L1L2(l1=0.01, l2=0.01)"
    assert get(None) is None and get(md.sum) is md.sum
    with pytest.raises(ValueError, match="'l3' is unknown; expected one of l1, l2"):
        Dense(2, kernel_regularizer="l3", input_size=1)
    with pytest.raises(ValueError, match="L2: l2: expected a number >= 0, got -1"):
        L2(-1)


def test_gradients():
    check_gradients(L1L2(0.3, 0.2), np.array([[1.0, -2.0], [0.5, 3.0]]))


@pytest.mark.parametrize(
    "make, weights",
    [
        (lambda r: Dense(2, kernel_regularizer=r, bias_regularizer=r), ["kernel", "bias"]),
        (lambda r: Conv1D(2, 1, kernel_regularizer=r, bias_regularizer=r), ["kernel", "bias"]),
        (lambda r: PReLU("ones", alpha_regularizer=r), ["alpha"]),
        (lambda r: Embedding(3, 2, embeddings_regularizer=r), ["embeddings"]),
    ],
)
def test_of_weights(make, weights):
    layer = make(L2(0.5))
    layer(np.ones((2, 3), int) if weights == ["embeddings"] else np.ones((1, 2, 3), np.float32))
    expected = [0.5 * np.sum(getattr(layer, name).numpy() ** 2) for name in weights]
    assert losses(layer) == pytest.approx(expected)
    assert losses(layer) == pytest.approx(expected)  # not forgotten: they are not of a call


@pytest.mark.parametrize("kind, sizes", [(Dense, (2,)), (Conv1D, (2, 1)), (Embedding, (3, 2))])
def test_of_outputs_is_a_mean_over_items(kind, sizes):
    layer = kind(*sizes, activity_regularizer=L2(0.5))
    inputs = np.ones((4, 3), int) if isinstance(layer, Embedding) else np.ones((4, 3, 2), "f")
    out = layer(inputs)
    assert losses(layer) == pytest.approx([0.5 * np.sum(out.numpy() ** 2) / 4])
    assert losses(layer) == []


def test_once_however_often_used_and_not_while_frozen():
    first = Dense(2, kernel_regularizer="l2", input_size=2)
    second = Dense(2, kernel_regularizer="l1", input_size=2)
    second.kernel = first.kernel  # and what second had is gone, with its penalty
    model = Sequential([first, first, second])
    model(x)
    assert losses(model) == pytest.approx([0.01 * np.sum(first.kernel.numpy() ** 2)])
    first.trainable = False
    assert model.losses() == []


def test_a_copy_and_a_moved_model_keep_theirs():
    model = Sequential([Dense(2, kernel_regularizer="l2", input_size=2)])
    for other in (copy.deepcopy(model), model.astype("float64"), model.to("strict")):
        assert len(other.losses()) == 1
        assert other.losses()[0].device == other.device


def test_of_a_layer_of_ones_own():
    class Scale(md.layers.Layer):
        def build(self, input_shape):
            self.scale = self.add_weight(input_shape[-1:], "ones", regularizer=lambda w: md.sum(w))

        def call(self, x):
            return x * self.scale

    layer = Scale()
    layer(x)
    assert losses(layer) == [2]


def test_of_any_parameter():
    layer = md.layers.LayerNormalization(input_size=3)
    layer.gamma.regularizer = md.sum
    assert losses(Sequential([layer])) == [3]
    layer.gamma.regularizer = None
    assert losses(layer) == []


def test_fit_and_evaluate_count_it():
    model = Sequential([Dense(1, use_bias=False, kernel_regularizer=L2(0.5), input_size=2)])
    before = model[0].kernel.numpy().copy()
    data = [(np.zeros((4, 2), np.float32), np.zeros((4, 1), np.float32))]
    loss = md.losses.MeanSquaredError()
    expected = 0.5 * np.sum(before**2)
    assert md.evaluate(model, loss, data)["loss"] == pytest.approx(expected)
    sgd = md.optimizers.SGD(model, 0.25)
    history = md.fit(model, loss, sgd, data, verbose=False, threads=1, allocator=False)
    assert history["loss"] == pytest.approx([expected])
    np.testing.assert_allclose(model[0].kernel.numpy(), 0.75 * before, rtol=1e-6)


class TestSpectralNorm:
    w = np.random.default_rng(0).normal(size=(3, 4, 5)) + 0.5

    def test_value_and_gradient(self):
        u, s, vh = np.linalg.svd(self.w.reshape(12, 5))
        x = md.tensor(self.w, requires_grad=True)
        penalty = SpectralNorm(0.3, power_iterations=200)(x)
        assert penalty.item() == pytest.approx(0.15 * s[0] ** 2)
        (g,) = md.grad(penalty, [x])
        expected = 0.3 * s[0] * np.outer(u[:, 0], vh[0]).reshape(3, 4, 5)
        np.testing.assert_allclose(g.numpy(), expected, atol=1e-9)
        check_gradients(SpectralNorm(0.3, 200), self.w, order=1, directions=1, dtypes=False)

    def test_a_few_iterations_come_near_from_below(self):
        exact = 0.005 * np.linalg.svd(self.w.reshape(12, 5))[1][0] ** 2
        values = [float(SpectralNorm(power_iterations=n)(self.w)) for n in (1, 2, 10)]
        assert values == sorted(values) and 0.99 * exact < values[-1] <= exact

    def test_depends_on_the_kernel_alone(self):
        penalty = SpectralNorm(0.1, 1)
        first, _ = float(penalty(self.w)), penalty(np.ones((2, 2)))
        assert float(penalty(self.w)) == first == float(copy.deepcopy(penalty)(self.w))

    def test_in_a_layer(self):
        with md.device("strict"):
            layer = Conv1D(4, 3, kernel_regularizer=SpectralNorm(1e-3), input_size=2)
        with md.testing.strict.forbid_sync():
            (penalty,) = layer.losses()
            penalty.backward()
        assert np.linalg.matrix_rank(layer.kernel.grad.numpy().reshape(6, 4)) == 1
        layer.kernel.assign_(np.zeros(layer.kernel.shape))
        assert losses(layer) == [0]

    def test_refusals(self):
        assert repr(SpectralNorm(0.5)) == "SpectralNorm(factor=0.5, power_iterations=10)"
        with pytest.raises(
            ValueError, match="SpectralNorm: factor: expected a number >= 0, got -1"
        ):
            SpectralNorm(-1)
        with pytest.raises(ValueError, match="power_iterations: expected 1 or more, got 0"):
            SpectralNorm(power_iterations=0)
