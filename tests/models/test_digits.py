"""The classifier of digits: gradients, and the identities that must hold for it."""

import numpy as np
import pytest

import minidl as md
from minidl.layers import ManifoldMixing
from minidl.losses import CategoricalCrossentropy, SparseCategoricalCrossentropy
from minidl.testing import check_gradients, strict
from minidl.transforms import ManifoldMixup, Mixup
from models import digits
from models.digits import DigitClassifier

LOSS = SparseCategoricalCrossentropy(from_logits=True)


def make(dtype="float64", device="cpu", **options):
    """A small network, its weights random and not small."""
    md.seed(3)
    sizes = {"classes": 3, "filters": (2, 3), "size": 4, "side": 7}
    with md.device(device), md.default_dtype(dtype):
        model = DigitClassifier(**sizes | options)
        for parameter in model.parameters():
            parameter.assign_(md.random.generator().normal(parameter.shape, dtype) * 0.5)
    return model


def images(count=4, side=7, channels=1, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).uniform(size=(count, side, side, channels)).astype(dtype)


def test_shapes_and_parts(device):
    model = make("float32", device)
    x = md.tensor(images(5, dtype=np.float32), device=device)
    assert model(x).shape == (5, 3) and model.features(x).shape == (5, 4)
    md.seed(0)
    usual = DigitClassifier()
    assert sum(p.size for p in usual.parameters()) == 1_199_882
    assert usual.features(np.zeros((1, 28, 28, 1), np.float32)).shape == (1, 128)


@pytest.mark.parametrize(("side", "channels"), [(6, 1), (7, 2), (8, 1)])
def test_gradients_to_second_order(side, channels, device):
    model = make(device=device, side=side, channels=channels)
    x, y = md.tensor(images(2, side, channels), device=device), [0, 2]
    check_gradients(
        lambda: LOSS(y, model(x)), parameters=model, order=2, dtypes=False, device=device
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_gradients_through_manifold_mixup(place):
    model = ManifoldMixing(make(), ["pooling", "hidden"])
    x, y = images(3), np.array([0, 2, 1])
    with md.default_dtype("float64"):
        (x, mix), y, _ = ManifoldMixup([place], 1.0, 3)(md.data.Batch(x, y))
    loss = CategoricalCrossentropy(from_logits=True)
    check_gradients(lambda: loss(y, model(x, mix)), parameters=model, order=2, dtypes=False)


def test_the_batch_is_its_images(device):
    model = make(device=device, dropout=0.5)
    x = images()
    together = model.probabilities(x)
    np.testing.assert_allclose(together.sum(1), 1)
    alone = np.concatenate([model.probabilities(x[i : i + 1]) for i in range(len(x))])
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert model.training  # as before
    assert model.probabilities(x[:0]).shape == (0, 3)


def test_more_images_than_go_through_at_once(monkeypatch):
    model = make("float32")
    x = images(7, dtype=np.float32)
    features = model.embed(x)
    monkeypatch.setattr(DigitClassifier, "BATCH", 3)
    np.testing.assert_allclose(model.embed(x), features, rtol=1e-5, atol=1e-6)


def test_overfits_a_handful(device):
    with md.device(device):
        model = DigitClassifier(3, (4, 4), 16, side=7)
    x, y = images(6, dtype=np.float32), np.arange(6) % 3
    adam = md.optimizers.Adam(model, 0.02)
    md.fit(model, LOSS, adam, [(x, y)], epochs=40, verbose=False, allocator=False)
    assert (model.probabilities(x).argmax(1) == y).all()


def test_the_whole_fit_loop_never_waits_for_the_device():
    model = make("float32", "strict", dropout=0.2)
    x, y = images(8, dtype=np.float32), np.arange(8) % 3
    batches = md.data.Batches(x, y, batch_size=4, transform=Mixup(0.4, 3))
    history = md.fit(
        model, CategoricalCrossentropy(from_logits=True), md.optimizers.Adam(model), batches,
        epochs=2, callbacks=[strict.ForbidSync()], metrics=[md.metrics.CategoricalAccuracy()],
        read_every=100, verbose=False, allocator=False,
    )  # fmt: skip
    assert np.isfinite(history["loss"]).all()


def test_saved_and_loaded(tmp_path):
    model = make("float32", dropout=0.1)
    x = images(dtype=np.float32)
    model.save(tmp_path / "digits.npz")
    again = digits.load(tmp_path / "digits.npz")
    assert not again.training and again.filters == (2, 3) and again.dropout == 0.1
    np.testing.assert_array_equal(again.probabilities(x), model.probabilities(x))
    md.save(tmp_path / "other.npz", step=1)
    with pytest.raises(md.errors.SerializationError, match=r"what DigitClassifier\.save"):
        digits.load(tmp_path / "other.npz")
