"""Triplets found in the batch, centres of classes: against loops, ties, masks, refusals."""

import math

import numpy as np
import pytest

import minidl as md
from minidl import functional
from minidl.errors import DtypeError, ShapeError
from minidl.functional.losses.metric_learning import _MINERS, batch_triplet_count
from minidl.testing import check_gradients, strict

rng = np.random.default_rng(0)
X = rng.normal(size=(9, 3))
LABELS = np.array([7, -2, 7, 0, 0, -2, 7, 0, 5])  # 5 has no positive
EACH = pytest.mark.parametrize("mining", _MINERS)


def excesses(x, labels, mining, squared=False):
    """d(anchor, positive) - d(anchor, negative) of what is mined, by loops."""
    items = range(len(x))
    d = [[math.dist(x[i], x[j]) ** (1 + squared) for j in items] for i in items]
    for a in items:
        positives = [d[a][p] for p in items if labels[p] == labels[a] and p != a]
        negatives = [d[a][n] for n in items if labels[n] != labels[a]]
        if not positives or not negatives:
            continue
        if mining == "batch-hard":
            yield max(positives) - min(negatives)
        for p in positives:
            if mining == "batch-all":
                yield from (p - n for n in negatives)
            if mining == "semi-hard":
                yield p - min((n for n in negatives if n > p), default=max(negatives))


def mean_by_loops(x, labels, mining, margin, squared=False):
    found = list(excesses(x, labels, mining, squared))
    if margin == "soft":
        losses = [math.log1p(math.exp(e)) for e in found]
    else:
        losses = [max(0.0, e + margin) for e in found]
    if mining == "batch-all":
        losses = [loss for loss in losses if loss > 0]
    return sum(losses) / max(1, len(losses)), len(losses)


@EACH
class TestTriplets:
    @pytest.mark.parametrize("margin", [0.2, 2.0, "soft"])
    @pytest.mark.parametrize("squared", [False, True])
    @pytest.mark.parametrize("n, classes", [(0, 1), (1, 1), (3, 2), (5, 2), (8, 3), (9, 2)])
    def test_against_loops(self, mining, n, classes, margin, squared):
        draw = np.random.default_rng(n)
        x, labels = draw.normal(size=(n, 2)), draw.integers(0, classes, n)
        expected, count = mean_by_loops(x, labels, mining, margin, squared)
        options = {"margin": margin, "mining": mining, "squared": squared}
        assert float(functional.batch_triplet(x, labels, **options)) == pytest.approx(expected)
        assert batch_triplet_count(x, labels, None, **options) == max(1, count)
        each = functional.batch_triplet(x, labels, reduction="none", **options)
        assert each.shape == (n,) and float(np.sum(each)) == pytest.approx(expected * count)

    def test_gradients_to_second_order(self, mining, device):
        for margin in (1.0, "soft"):
            check_gradients(
                lambda x, margin=margin: functional.batch_triplet(
                    x, LABELS.tolist(), margin=margin, mining=mining
                ),
                X,
                device=device,
            )

    def test_what_a_mask_leaves_out_is_not_there(self, mining):
        kept = np.array([0, 1, 3, 4, 6, 7])
        mask = np.isin(np.arange(9), kept)
        spoiled = md.tensor(np.where(mask[:, None], X, np.nan), requires_grad=True)
        labels = np.where(mask, LABELS, 7)
        value = functional.batch_triplet(spoiled, labels, mask, margin=1.0, mining=mining)
        value.backward()
        alone = md.tensor(X[kept], requires_grad=True)
        expected = functional.batch_triplet(alone, LABELS[kept], margin=1.0, mining=mining)
        expected.backward()
        assert float(value) == pytest.approx(float(expected)) and float(value) > 0
        np.testing.assert_allclose(spoiled.grad.numpy()[kept], alone.grad.numpy())
        assert not spoiled.grad.numpy()[~mask].any()

    @pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]], ids=["one class", "no pairs"])
    def test_no_triplet(self, mining, labels):
        x = md.tensor(X[:3], requires_grad=True)
        value = functional.batch_triplet(x, labels, margin="soft", mining=mining)
        value.backward()
        assert float(value) == 0 and not x.grad.numpy().any()

    def test_all_in_one_point(self, mining):
        x = md.tensor(np.ones((4, 3)), requires_grad=True)
        value = functional.batch_triplet(x, [0, 0, 1, 1], mining=mining, margin=0.5)
        value.backward()
        assert float(value) == 0.5 and not x.grad.numpy().any()

    def test_on_the_device_without_waiting(self, mining):
        x = md.tensor(X.astype(np.float32), requires_grad=True, device="strict")
        labels, mask = (md.tensor(a, device="strict") for a in (LABELS, LABELS < 7))
        loss = md.losses.BatchTriplet(1.0, mining)
        with strict.forbid_sync():
            value, count = loss(labels, x, mask), loss.count(labels, x, mask)
            value.backward()
        kept = LABELS < 7
        expected = mean_by_loops(X[kept], LABELS[kept], mining, 1.0)
        assert (float(value), int(count)) == pytest.approx(expected, rel=1e-5)

    def test_float16_is_computed_in_float32(self, mining):
        half = X.astype(np.float16)
        found = functional.batch_triplet(half, LABELS, mining=mining, margin=1.0)
        wide = functional.batch_triplet(half.astype(np.float32), LABELS, mining=mining, margin=1.0)
        assert found.dtype == np.float16 and float(found) == np.float16(float(wide))


def test_ties_share_the_gradient():
    """Two nearest negatives at one distance, and two farthest positives."""
    line = np.array([[0.0], [1.0], [-1.0], [0.5], [-0.5]])
    x = md.tensor(line, requires_grad=True)
    losses = functional.batch_triplet(
        x, [0, 0, 0, 1, 1], margin=1.0, mining="batch-hard", reduction="none"
    )
    losses[0].backward()  # 1 + 1 - 0.5, for the anchor at 0
    assert losses.tolist()[0] == 1.5
    assert x.grad.numpy()[:, 0].tolist() == [0, 0.5, -0.5, -0.5, 0.5]


def test_what_is_refused():
    with pytest.raises(ShapeError, match=r"labels: expected shape \(9,\), got \(9, 1\)"):
        functional.batch_triplet(X, LABELS[:, None])
    with pytest.raises(ShapeError, match=r"embeddings: expected \(items, size\), got \(9,\)"):
        functional.batch_triplet(X[:, 0], LABELS)
    with pytest.raises(DtypeError, match="labels: expected integers"):
        functional.batch_triplet(X, LABELS * 1.0)
    with pytest.raises(ValueError, match="mining: expected one of batch-all, batch-hard, semi-"):
        functional.batch_triplet(X, LABELS, mining="hard")
    with pytest.raises(ValueError, match="margin: expected a number or 'soft'"):
        functional.batch_triplet(X, LABELS, margin="hard")
    with pytest.raises(ShapeError, match="make the last sides equal"):
        functional.pairwise_distances(X, X[:, :2])


def test_distances_of_near_points_keep_their_digits():
    x = np.array([[1000.0, 1000.0], [1000.0, 1000.25]], np.float32)
    assert functional.pairwise_distances(x).tolist() == [[0, 0.25], [0.25, 0]]


class TestCenters:
    labels = np.array([2, 0, 2, 1])
    centers = rng.normal(size=(3, 3))

    def test_by_hand(self):
        found = functional.center_loss(X[:4], self.labels, self.centers, reduction="none")
        expected = 0.5 * ((X[:4] - self.centers[self.labels]) ** 2).sum(-1)
        np.testing.assert_allclose(found, expected)
        mask = np.array([True, False, True, True])
        mean = functional.center_loss(X[:4], self.labels, self.centers, mask)
        assert float(mean) == pytest.approx(expected[mask].mean())

    def test_gradients_of_both(self, device):
        check_gradients(
            lambda x, c: functional.center_loss(x, self.labels.tolist(), c),
            X[:4],
            self.centers,
            device=device,
        )

    def test_what_is_refused(self):
        with pytest.raises(ValueError, match="labels: expected 0 to 1, got 0 to 2"):
            functional.center_loss(X[:4], self.labels, self.centers[:2])
        with pytest.raises(ShapeError, match=r"centers: expected \(classes, 3\), got \(3, 2\)"):
            functional.center_loss(X[:4], self.labels, self.centers[:, :2])
        with pytest.raises(ShapeError, match=r"labels: expected shape \(4,\)"):
            functional.center_loss(X[:4], self.labels[:2], self.centers)
