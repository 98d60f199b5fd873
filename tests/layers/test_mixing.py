"""ManifoldMixing: any model, mixed at a place."""

import threading

import numpy as np
import pytest

import minidl as md
from minidl.data import Batches
from minidl.layers import (
    LSTM,
    Dense,
    Embedding,
    GlobalAveragePooling1D,
    Layer,
    ManifoldMixing,
    Sequential,
    SpectralNormalization,
)
from minidl.losses import CategoricalCrossentropy
from minidl.testing import check_gradients, strict
from minidl.transforms import ManifoldMixup, Mix, mixed

rng = np.random.default_rng(0)
X = rng.normal(size=(4, 3))
MIX = Mix(np.array([2, 0, 3, 1]), np.array([0.3, 0.6, 1.0, 0.0]))


def network(dtype="float64", device="cpu"):
    with md.default_dtype(dtype), md.device(device):
        return Sequential(
            [Dense(5, "tanh", input_size=3), Dense(4, "tanh", input_size=5)]
            + [Dense(2, input_size=4)]
        )


def at(place):
    return MIX._replace(place=place)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_mixes_what_comes_out_of_the_layer(place):
    model = network()
    mixing = ManifoldMixing(model, ["0", "1"])
    hidden = X
    for layer in model[:place]:
        hidden = layer(hidden)
    hidden = mixed(hidden, MIX)
    for layer in model[place:]:
        hidden = layer(hidden)
    np.testing.assert_allclose(mixing(X, at(place)).numpy(), hidden.numpy(), rtol=1e-12)
    np.testing.assert_array_equal(mixing(X).numpy(), model(X).numpy())  # nothing is left behind


def test_place_0_is_mixup():
    model = network()
    out = ManifoldMixing(model)(X, at(0))
    np.testing.assert_array_equal(out.numpy(), model(mixed(X, MIX)).numpy())


def test_at_the_end_outputs_are_mixed():
    model = network()
    out = ManifoldMixing(model, [""])(X, at(1))
    np.testing.assert_allclose(out.numpy(), mixed(model(X), MIX).numpy())


@pytest.mark.parametrize("place", [0, 1, 2])
def test_gradients(place, device):
    mixing = ManifoldMixing(network(device=device), ["0", "1"])
    mix = Mix(*(md.backend.to_device(a, device) for a in MIX[:2]), place)
    assert check_gradients(lambda x: mixing(x, mix), X, parameters=mixing, order=2, device=device)


def test_any_model():
    class Reader(Layer):
        """Ids with a mask, an inner list of layers, two outputs of a recurrent layer."""

        def __init__(self):
            self.table = Embedding(9, 4)
            self.blocks = [LSTM(3, return_sequences=True, input_size=4)]
            self.pooling = GlobalAveragePooling1D()
            self.score = Dense(2, input_size=3)

        def call(self, ids, mask):
            return self.score(self.pooling(self.blocks[0](self.table(ids), mask), mask))

    ids, mask = rng.integers(0, 9, (4, 6)), rng.uniform(size=(4, 6)) < 0.8
    model = Reader()
    mixing = ManifoldMixing(model, ["blocks.0", "pooling"])
    mix = Mix(MIX.partners, MIX.share.astype(np.float32), 2)
    pooled = model.pooling(model.blocks[0](model.table(ids), mask), mask)
    expected = model.score(mixed(pooled, mix))
    np.testing.assert_allclose(mixing(ids, mask, mix).numpy(), expected.numpy(), rtol=1e-6)
    with pytest.raises(TypeError, match="embed numbers of words"):
        mixing(ids, mask, mix._replace(place=0))
    assert mixing(ids, mask, mix._replace(place=1)).shape == (4, 2)


def test_inside_a_layer_that_gives_it_other_weights():
    with md.default_dtype("float64"):
        normalized = SpectralNormalization(Dense(2, input_size=3))
        normalized.layer.kernel = md.Parameter(5 * normalized.layer.kernel.numpy())
    model = Sequential([normalized.iterate(20)]).eval()
    found = ManifoldMixing(model, ["0.layer"])(X, at(1))
    np.testing.assert_allclose(found, mixed(model(X), MIX))


def test_other_threads_see_the_model_unmixed():
    seen = []

    class Watched(Dense):
        def call(self, x):
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=lambda: seen.append(model(X).numpy()))
                other.start()
                other.join()
            return super().call(x)

    with md.default_dtype("float64"):
        model = Sequential([Watched(4, input_size=3)])
    ManifoldMixing(model, ["0"])(X, at(1))
    np.testing.assert_array_equal(seen[0], model(X).numpy())


def test_refusals():
    model = network()
    with pytest.raises(ValueError, match=r"no layer is named '3'; there are 0, 1, 2"):
        ManifoldMixing(model, ["3"])
    with pytest.raises(ValueError, match="place: expected 0 to 1, got 2"):
        ManifoldMixing(model, ["0"])(X, at(2))
    model.spare = Dense(1, input_size=3)
    mixing = ManifoldMixing(model, ["spare"])
    with pytest.raises(ValueError, match="did not call its layer 'spare'"):
        mixing(X, at(1))
    with pytest.raises(ValueError, match=r"output of 0: expected \(4, ...\), an item first"):
        ManifoldMixing(model, ["0"])(X[:2], at(1))
    assert "call" not in vars(model[0])


def test_learns_without_waiting_for_the_device():
    mixing = ManifoldMixing(network("float32", "strict"), ["0", "1"])
    x = rng.normal(size=(40, 3)).astype(np.float32)
    batches = Batches(
        x, (x.sum(1) > 0).astype(int), batch_size=8,
        transform=ManifoldMixup(mixing.places, 0.5, classes=2),
    )  # fmt: skip
    history = md.fit(
        mixing, CategoricalCrossentropy(from_logits=True), md.optimizers.Adam(mixing, 0.02),
        batches, epochs=12, callbacks=[strict.ForbidSync()],
        metrics=[md.metrics.CategoricalAccuracy()], read_every=1000, verbose=False, allocator=False,
    )  # fmt: skip
    assert history["accuracy"][-1] > 0.8 > history["accuracy"][0]
