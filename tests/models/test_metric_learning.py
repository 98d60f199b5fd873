"""The embeddings: gradients, training without waiting, what is learned; and the figures."""

import numpy as np
import pytest

import minidl as md
from minidl.testing import check_gradients, strict
from models import metric_learning
from models.metric_learning import NETWORKS, CenterEmbedder, ranking, retrieval

EACH = pytest.mark.parametrize("name", NETWORKS)
SIDE = 10  # of the images here: the smallest that is left with an entry
QUIET = {"verbose": False, "allocator": False}


def make(name, dtype="float64", device="cpu", size=3, filters=(2, 3)):
    """A small network, its weights random and not small."""
    md.seed(3)
    with md.device(device), md.default_dtype(dtype):
        model = NETWORKS[name](3, size, filters=filters, side=SIDE)
        for p in model.parameters():
            p.assign_(md.random.generator().normal(p.shape, dtype) * 0.6)
    return model


def some(n=6, seed=0, dtype=np.float64):
    draw = np.random.default_rng(seed)
    return draw.uniform(size=(n, SIDE, SIDE, 1)).astype(dtype), np.arange(n) % 3


def objective(model, images, labels):
    """The loss that `fit` minimises, as a function of nothing."""
    (batch,) = model.batches(images, labels, batch_size=len(labels), shuffle=False)
    inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
    weights = model.loss_weights or {}

    def loss():
        outputs = model(*inputs)
        terms = [
            weights.get(key, 1.0) * one(batch.targets.get(key), outputs[key])
            for key, one in model.loss.items()
        ]
        return sum(terms[1:], terms[0])

    return loss


def train(model, images, labels, loss_weights):
    batches = model.batches(images, labels, batch_size=len(labels))
    optimizer = md.optimizers.Adam(model, 1e-2)
    options = {"loss_weights": loss_weights, **QUIET}
    return md.fit(model, model.loss, optimizer, batches, epochs=120, **options)


@EACH
class TestNetworks:
    @pytest.mark.parametrize("seed", range(3))
    def test_gradients_to_second_order(self, name, seed):
        model = make(name, size=2)
        loss = objective(model, *some(4 + seed, seed))
        check_gradients(loss, parameters=model.parameters(), order=2, directions=1, dtypes=False)

    def test_overfits_a_handful(self, name, device):
        model = make(name, "float32", device, size=8, filters=(8, 16))
        images, labels = some(9, dtype=np.float32)
        history = train(model, images, labels, model.loss_weights)
        losses = history[f"{next(iter(model.loss))}_loss"]  # without the centres'
        assert losses[-1] < 0.05 * losses[0]
        assert retrieval(metric_learning.vectors(model, images), labels).precision_at_1 == 1

    def test_the_batch_is_its_images(self, name, device):
        model = make(name, device=device).eval()
        images, _ = some()
        together = metric_learning.vectors(model, images)
        np.testing.assert_allclose(metric_learning.vectors(model, images, batch=1), together)
        np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1)

    def test_fits_without_waiting_for_the_device(self, name):
        model = make(name, "float32", "strict")
        batches = model.batches(*some(dtype=np.float32), batch_size=4)
        average = md.callbacks.ExponentialMovingAverage(0.9)
        history = md.fit(
            model, model.loss, md.optimizers.Adam(model, 1e-2), batches, batches, epochs=2,
            loss_weights=model.loss_weights, callbacks=[strict.ForbidSync(), average], **QUIET,
        )  # fmt: skip
        assert len(history) == 2 and np.isfinite(history["val_loss"]).all()

    def test_saved_and_loaded(self, name, tmp_path):
        model = make(name, "float32")
        model.save(tmp_path / "model.npz")
        again = metric_learning.load(tmp_path / "model.npz")
        images, _ = some(dtype=np.float32)
        assert type(again) is NETWORKS[name] and not again.training
        found = [metric_learning.vectors(m, images) for m in (model, again)]
        assert (found[0] == found[1]).all()


def test_another_file_is_refused(tmp_path):
    md.save(tmp_path / "other.npz", model=md.layers.Dense(1, input_size=1))
    with pytest.raises(md.errors.SerializationError, match=r"expected what Embedder\.save wrote"):
        metric_learning.load(tmp_path / "other.npz")


def test_centres_are_drawn_to_and_not_trained():
    model = make("center", "float32", size=8, filters=(8, 16))
    assert isinstance(model, CenterEmbedder)
    assert not any("center" in name for name, _ in model.named_parameters())
    assert "center.centers" in model.state_dict()
    images, labels = some(9, dtype=np.float32)

    def spread(weight):
        """Of the variance, how much is within the classes."""
        model = make("center", "float32", size=8, filters=(8, 16))
        train(model, images, labels, {"center": weight})
        x = model.embed(images).numpy()
        own = np.stack([x[labels == c].mean(0) for c in range(3)])
        return np.square(x - own[labels]).sum() / np.square(x - x.mean(0)).sum()

    assert spread(0.1) < 0.5 * spread(0.0)


# --- Retrieval ------------------------------------------------------------------------------------


def test_retrieval_by_hand():
    """On a line: 0 a, 1 b, 3 a, 3.5 a, 9 b, 30 c (alone)."""
    x = np.array([0, 1, 3, 3.5, 9, 30.0])[:, None]
    labels = np.array([0, 1, 0, 0, 1, 2])
    assert ranking(x)[0].tolist() == [1, 2, 3, 4, 5]
    found = retrieval(x, labels)
    # a at 0: b a a: 0, 1/2, (1/2 + 2/3)/2; at 3: a b a (0.5, 2, 3): 1, 1/2, (1 + 2/3)/2;
    # at 3.5: a b a: the same; b at 1: a a a b: 0, 0, 1/4; at 9: a a b: 0, 0, 1/3
    assert found.precision_at_1 == 2 / 5
    assert found.r_precision == pytest.approx(1.5 / 5)
    expected = (7 / 12 + 5 / 6 + 5 / 6 + 1 / 4 + 1 / 3) / 5
    assert found.mean_average_precision == pytest.approx(expected)
    with pytest.raises(ValueError, match="two items of a label"):
        retrieval(x[:2], np.array([0, 1]))


def test_retrieval_by_loops():
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(30, 2)), draw.integers(0, 4, 30)
    averages, first, share = [], [], []
    for i in range(30):
        others = sorted((j for j in range(30) if j != i), key=lambda j: np.hypot(*(x[j] - x[i])))
        right = [labels[j] == labels[i] for j in others]
        averages.append(np.mean([np.mean(right[: k + 1]) for k in range(29) if right[k]]))
        first.append(right[0])
        share.append(np.mean(right[: sum(right)]))
    found = retrieval(x, labels)
    assert found.mean_average_precision == pytest.approx(np.mean(averages))
    assert found.precision_at_1 == np.mean(first)
    assert found.r_precision == pytest.approx(np.mean(share))


def test_plane():
    x = np.random.default_rng(0).normal(size=(50, 4)) * [1, 5, 0.1, 2] + 7
    points = metric_learning.plane(x)
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
    assert abs(np.corrcoef(points[:, 0], x[:, 1])[0, 1]) > 0.9
    assert abs(np.corrcoef(points[:, 1], x[:, 3])[0, 1]) > 0.9
    turned = points @ np.array([[0.6, 0.8], [0.8, -0.6]])  # and mirrored
    np.testing.assert_allclose(metric_learning.plane(x, turned), turned, atol=1e-12)


def test_turned_digits_are_classes_of_their_own():
    images, labels = some(9)
    found, kinds = metric_learning.turned(images, labels, classes=3, turns=2)
    assert (kinds // 2 == labels).all() and np.bincount(kinds).tolist() == [2, 1] * 3
    for image, kind, before in zip(found, kinds, images, strict=True):
        assert (np.rot90(image, -(kind % 2)) == before).all()
    same, kinds = metric_learning.turned(images, labels, classes=3, turns=1)
    assert (same == images).all() and (kinds == labels).all()
