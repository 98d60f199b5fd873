"""Noise: identity in evaluation, the right moments in training, the same after a resume."""

import numpy as np
import pytest

import minidl as md
from minidl.layers import (
    AlphaDropout,
    Dense,
    GaussianDropout,
    GaussianNoise,
    Sequential,
    SpatialDropout1D,
    SpatialDropout2D,
)
from minidl.testing import strict

KINDS = [AlphaDropout, GaussianDropout, GaussianNoise, SpatialDropout1D]
EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
def test_identity_unless_training(kind):
    x = md.tensor(np.ones((2, 3, 4), np.float32))
    assert kind(0.3).eval()(x) is x and kind(0.0)(x) is x


@pytest.mark.parametrize(
    "layer, deviation",
    [
        (GaussianNoise(0.3), np.sqrt(1 + 0.09)),
        (GaussianDropout(0.2), np.sqrt(1 + 0.25)),
        (AlphaDropout(0.2), 1.0),
        (SpatialDropout1D(0.2), np.sqrt(1.25)),
    ],
    ids=repr,
)
def test_moments(layer, deviation):
    x = np.random.default_rng(1).normal(size=(200, 5, 200)).astype(np.float32)
    out = layer(md.tensor(x)).numpy()
    assert out.dtype == np.float32
    assert out.mean() == pytest.approx(0, abs=0.01)
    assert out.std() == pytest.approx(deviation, rel=0.01)


@EACH
def test_integers_become_floats(kind):
    images = np.full((2, 3, 4), 200, np.uint8)
    noisy = kind(0.3)(images)
    assert noisy.dtype == np.float32 and np.ptp(noisy.numpy()) > 0


def test_whole_channels():
    out = SpatialDropout1D(0.5)(md.tensor(np.ones((4, 5, 6), np.float32))).numpy()
    assert (out == out[:, :1]).all() and set(np.unique(out)) == {0, 2}
    out = SpatialDropout2D(0.5)(md.tensor(np.ones((4, 3, 2, 6), np.float32))).numpy()
    assert (out == out[:, :1, :1]).all() and set(np.unique(out)) == {0, 2}
    assert len(np.unique(out[:, 0, 0], axis=0)) > 1  # each item drops channels of its own


@EACH
def test_the_seed_decides_on_every_device(kind):
    x = np.ones((4, 5, 6), np.float32)
    md.seed(1)
    first, second = (kind(0.3)(md.tensor(x)).numpy() for _ in range(2))
    assert (first != second).any()
    md.seed(1)
    with md.random.draw_on_host(), strict.forbid_sync():
        other = kind(0.3)(md.tensor(x, device="strict"))
    np.testing.assert_allclose(other.numpy(), first, rtol=1e-6)


@EACH
def test_a_resumed_run_is_the_same(kind, tmp_path):
    rng = np.random.default_rng(0)
    data = [(rng.normal(size=(8, 3)), rng.normal(size=(8, 1))) for _ in range(4)]

    def train(epochs, **options):
        md.seed(0)
        model = Sequential([Dense(5, input_size=3)])
        noisy = [md.layers.RepeatVector(2), kind(0.3), md.layers.Flatten(), Dense(1, input_size=10)]
        for layer in noisy:
            model.add(layer)
        loss, adam = md.losses.MeanSquaredError(), md.optimizers.Adam(model)
        md.fit(
            model, loss, adam, data, epochs=epochs, verbose=False, threads=1, allocator=False,
            **options,
        )  # fmt: skip
        return model.state_dict()

    path = tmp_path / "half.npz"
    whole = train(2)
    train(1, callbacks=[md.callbacks.Checkpoint(path)])
    for name, value in train(2, resume=path).items():
        np.testing.assert_array_equal(value, whole[name])


@EACH
def test_errors(kind):
    with pytest.raises(ValueError, match="expected a number"):
        kind(-0.1)
