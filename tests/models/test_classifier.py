"""The classifiers: gradients, and the identities that must hold for them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.testing import check_gradients, strict
from models import classifier
from models.classifier import PATTERNS, AttentionClassifier, PairClassifier
from models.text import Vocabulary

TEXTS = ["很好", "好极了好极了", "坏", "很坏很坏。"]
LABELS = np.array([1, 1, 0, 0], np.float32)
NETWORKS = [AttentionClassifier, PairClassifier]


def make(network=AttentionClassifier, dtype="float64", device="cpu", **options):
    """A small network for the texts above, its weights random and not small."""
    md.seed(3)
    vocabulary = Vocabulary.of(TEXTS, 1, 1 if network is PairClassifier else None)
    with md.device(device), md.default_dtype(dtype):
        model = network(vocabulary, **{"size": 8, "heads": 2, **options})
        for parameter in model.parameters():
            parameter.assign_(md.random.generator().normal(parameter.shape, dtype) * 0.5)
    return model


def batch(model, texts=TEXTS, extra=0):
    rows = [model.encode(text) for text in texts]
    ids, mask = md.data.pad(rows, length=max(map(len, rows)) + extra)
    return tuple(md.tensor(array, device=model.device) for array in (ids, mask))


@pytest.mark.parametrize("network", NETWORKS)
class TestNetworks:
    @pytest.mark.parametrize("attention", list(PATTERNS))
    def test_padding_changes_nothing(self, network, attention, device):
        model = make(network, device=device, attention=attention).eval()
        logits = model(*batch(model)).numpy()
        ids, mask = batch(model, extra=5)
        assert np.allclose(model(ids, mask).numpy(), logits, atol=1e-12)
        real = mask if ids.ndim == 2 else mask[:, :, None]
        assert np.allclose(model(md.where(real, ids, 2), mask).numpy(), logits, atol=1e-12)

    def test_the_batch_is_its_texts(self, network, device):
        model = make(network, device=device).eval()
        together = model(*batch(model)).numpy()
        alone = [model(*batch(model, [text])).numpy()[0] for text in TEXTS]
        assert np.allclose(together, alone, atol=1e-12)

    def test_order_matters(self, network):
        model = make(network).eval()
        forward, backward = model.probabilities(["很好坏", "坏好很"])
        assert abs(forward - backward) > 1e-6

    @given(st.lists(st.text("很好坏", max_size=4), min_size=1, max_size=3))
    def test_gradients_to_second_order(self, network, texts):
        model = make(network, size=4).eval()
        ids, mask = batch(model, [*texts, "好"])
        labels = np.arange(len(texts) + 1) % 2.0

        def loss():
            return model.loss(labels, model(ids, mask))

        check_gradients(loss, parameters=model.parameters(), order=2)

    def test_overfits_four_texts(self, network, device):
        model = make(network, "float32", device)
        data = [md.data.Batch(tuple(x.numpy() for x in batch(model)), LABELS)]
        optimizer = md.optimizers.Adam(model, 1e-2)
        md.fit(model, model.loss, optimizer, data, epochs=60, verbose=False, allocator=False)
        assert ((model.probabilities(TEXTS) > 0.5) == LABELS).all()

    def test_saved_and_loaded(self, network, tmp_path):
        model = make(network, "float32", attention="sparse")
        model.save(tmp_path / "model.npz")
        again = classifier.load(tmp_path / "model.npz")
        assert type(again) is network and again.attention == "sparse" and not again.training
        assert (again.probabilities(TEXTS) == model.probabilities(TEXTS)).all()

    def test_any_text(self, network, device, monkeypatch):
        model = make(network, "float32", device)
        texts = ["", "好", "从未见过𠀀😀", "A1 b", "坏" * 5000]
        found = model.probabilities(texts)
        assert ((found > 0) & (found < 1)).all() and model.training
        assert model.probabilities([]).shape == (0,)
        monkeypatch.setattr(AttentionClassifier, "POSITIONS", 4)
        assert np.allclose(model.probabilities(texts), found, atol=1e-6)

    def test_explain(self, network):
        weights = make(network).explain("很好很好")
        assert weights.shape == (2, 4, 4) and np.allclose(weights.sum(-1), 1)

    @pytest.mark.parametrize("attention", list(PATTERNS))
    def test_the_whole_fit_loop_never_waits_for_the_device(self, network, attention):
        model = make(network, "float32", "strict", attention=attention)
        rows = [model.encode(text) for text in TEXTS]
        batches = md.data.Batches(rows, LABELS, batch_size=2)
        optimizer = md.optimizers.Adam(model, md.schedules.OneCycle(1e-3, 4))
        average = md.callbacks.ExponentialMovingAverage(0.9)
        history = md.fit(
            model,
            model.loss,
            optimizer,
            batches,
            epochs=2,
            callbacks=[strict.ForbidSync(), average],
            verbose=False,
            allocator=False,
        )
        assert np.isfinite(history["loss"]).all() and optimizer.iterations == 4


def test_half_of_the_pairs_are_dropped_as_a_whole():
    model = make(PairClassifier, size=64, heads=2)
    ids, _ = batch(model, ["好" * 100])
    character = np.abs(model.forget(model.embedding(ids[:, :, 0])).numpy()[0])
    dropped = (character == 0).all(axis=1)
    assert 25 < dropped.sum() < 75 and (character[~dropped] != 0).all()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="expected pairs"):
        PairClassifier(Vocabulary.of(TEXTS))
    with pytest.raises(ValueError, match="attention: expected one of full, local"):
        make(attention="diagonal")
