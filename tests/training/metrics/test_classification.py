"""Metrics of classes against counting by hand and against scikit-learn, where it is installed."""

import numpy as np
import pytest

from minidl import metrics
from minidl.errors import DtypeError, ShapeError

rng = np.random.default_rng(0)
CLASSES = 5
Y = rng.integers(0, CLASSES - 1, 60)  # the last class never is there
SCORES = rng.normal(size=(60, CLASSES)) - np.array([0, 0, 0, 0, 0.5])
FOUND = SCORES.argmax(-1)
BITS = rng.integers(0, 2, 60)
P = np.clip(rng.normal(0.5, 0.3, 60) + 0.2 * (BITS - 0.5), 0, 1).round(2)


def result(metric, y_true, y_pred, mask=None):
    metric.update_state(y_true, y_pred, mask)
    return metric.result()


def test_accuracy():
    found, y = SCORES[:4].argmax(-1), Y[:4]
    assert result(metrics.SparseCategoricalAccuracy(), y, SCORES[:4]) == (found == y).mean()
    assert result(
        metrics.BinaryAccuracy(threshold=0.0), np.array([0.0, 1.0, 1.0]), np.array([-1.0, 2, -3])
    ) == pytest.approx(2 / 3)
    with pytest.raises(ShapeError, match=r"shape \(60,\), got \(60, 1\)"):
        result(metrics.SparseCategoricalAccuracy(), Y[:, None], SCORES)


def test_top_k():
    order = np.argsort(-SCORES, axis=-1)
    for k in (1, 3, CLASSES):
        expected = (order[:, :k] == Y[:, None]).any(-1).mean()
        metric = metrics.SparseTopKCategoricalAccuracy(k)
        assert result(metric, Y, SCORES) == expected and metric.name == f"top_{k}_accuracy"
    assert result(metrics.SparseTopKCategoricalAccuracy(1), Y, np.zeros((60, 2 + CLASSES))) == 1
    assert result(metrics.SparseTopKCategoricalAccuracy(1), Y, np.full((60, CLASSES), np.nan)) == 0
    with pytest.raises(ValueError, match="y_true: expected 0 to 2"):
        result(metrics.SparseTopKCategoricalAccuracy(1), Y, np.zeros((60, 3)))


def by_hand(y, found):
    """(precision, recall, F1) of the items where y and found are 1."""
    hits = (y & found).sum()
    precision, recall = hits / max(1, found.sum()), hits / max(1, y.sum())
    return precision, recall, 2 * precision * recall / ((precision + recall) or 1)


THREE = (metrics.Precision, metrics.Recall, metrics.F1Score)


@pytest.mark.parametrize("which", range(3), ids=["precision", "recall", "f1"])
class TestRetrieval:
    def test_binary(self, which):
        kind = THREE[which]
        for threshold in (0.5, 0.7, 1.5):
            expected = by_hand(BITS > 0, threshold < P)[which]
            assert result(kind(threshold=threshold), BITS, P) == pytest.approx(expected)
        assert result(kind(), BITS, P) == pytest.approx(by_hand(BITS > 0, P > 0.5)[which])

    def test_classes(self, which):
        kind = THREE[which]
        each = np.array([by_hand(c == Y, c == FOUND)[which] for c in range(CLASSES)])
        np.testing.assert_allclose(result(kind(None), Y, SCORES), each)
        assert result(kind("macro"), Y, SCORES) == pytest.approx(each.mean())
        assert result(kind("micro"), Y, SCORES) == pytest.approx((FOUND == Y).mean())
        wide = np.concatenate([SCORES, np.full((60, 3), -99.0)], axis=1)  # never found nor there
        assert result(kind("macro"), Y, wide) == pytest.approx(each.mean())

    def test_labels(self, which):
        kind = THREE[which]
        y, p = rng.integers(0, 2, (20, 3)), rng.uniform(size=(20, 3))
        each = [by_hand(y[:, c] > 0, p[:, c] > 0.4)[which] for c in range(3)]
        np.testing.assert_allclose(result(kind(None, threshold=0.4), y, p), each)
        pooled = by_hand(y.ravel() > 0, p.ravel() > 0.4)[which]
        assert result(kind("micro", threshold=0.4), y, p) == pytest.approx(pooled)

    def test_scikit_learn(self, which):
        sklearn = pytest.importorskip("sklearn.metrics")
        name = ("precision_score", "recall_score", "f1_score")[which]
        for average in ("micro", "macro", None):
            expected = getattr(sklearn, name)(Y, FOUND, average=average, zero_division=0)
            np.testing.assert_allclose(result(THREE[which](average), Y, SCORES), expected)

    def test_refusals(self, which):
        with pytest.raises(ValueError, match="average: expected one of"):
            THREE[which]("weighted")
        with pytest.raises(ShapeError):
            result(THREE[which](), BITS[:, None], P)
        with pytest.raises(DtypeError, match="y_true: expected integers"):
            result(THREE[which]("macro"), Y * 1.0, SCORES)


class TestConfusionMatrix:
    def test_counts(self):
        expected = np.zeros((CLASSES, CLASSES), int)
        for i, j in zip(Y, FOUND, strict=True):
            expected[i, j] += 1
        for given in (SCORES, FOUND):
            found = result(metrics.ConfusionMatrix(CLASSES), Y, given)
            assert found.dtype == np.int64 and (found == expected).all()
        assert not metrics.ConfusionMatrix(2).result().any()

    def test_refusals(self):
        with pytest.raises(ValueError, match="expected 0 to 1"):
            result(metrics.ConfusionMatrix(2), np.array([0, 2]), np.array([0, 1]))
        with pytest.raises(ValueError, match="y_pred: expected 0 to 1"):
            result(metrics.ConfusionMatrix(2), np.array([0, 1]), np.array([0, -1]))


class TestAUC:
    def test_pairs(self):
        ones, zeros = P[BITS > 0][:, None], P[BITS == 0]
        expected = ((ones > zeros) + 0.5 * (ones == zeros)).mean()
        assert result(metrics.AUC(), BITS, P) == pytest.approx(expected, abs=1e-12)

    def test_scikit_learn(self):
        sklearn = pytest.importorskip("sklearn.metrics")
        p = rng.uniform(size=60)
        expected = sklearn.roc_auc_score(BITS, p)
        assert result(metrics.AUC(), BITS, p) == pytest.approx(expected, abs=1e-3)

    def test_more_bins_than_float16_counts_to(self):
        p = np.array([0.75, 0.25], np.float16)
        assert result(metrics.AUC(bins=100_000), np.array([1, 0]), p) == 1

    def test_corners(self):
        assert np.isnan(result(metrics.AUC(), np.ones(3), np.ones(3)))
        assert result(metrics.AUC(), np.array([0, 1]), np.array([0.0, 1.0])) == 1
        with pytest.raises(ValueError, match=r"use md.sigmoid"):
            result(metrics.AUC(), BITS, SCORES[:, 0] * 9)
