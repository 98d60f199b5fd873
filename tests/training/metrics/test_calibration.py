"""Calibration error against the definition, computed bin by bin, and where it must be 0 or 1."""

import numpy as np
import pytest

from minidl.metrics import CategoricalAccuracy, ExpectedCalibrationError

rng = np.random.default_rng(0)
LOGITS = rng.normal(size=(200, 4)) * 2
P = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
Y = rng.integers(0, 4, 200)


def result(metric, *batch):
    metric.update_state(*batch)
    return metric.result()


def by_hand(p, y, bins):
    """Guo et al. 2017, eq. 3, a bin at a time: those with confidence in (low, high]."""
    confidence, right, error = p.max(1), p.argmax(1) == y, 0.0
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_against_the_definition(bins):
    assert result(ExpectedCalibrationError(bins), Y, P) == pytest.approx(by_hand(P, Y, bins))
    soft = np.eye(4)[Y] * 0.7 + 0.3 / 4
    metric = ExpectedCalibrationError(bins, from_logits=True)
    assert result(metric, soft, LOGITS) == pytest.approx(by_hand(P, Y, bins))


def test_sure_and_right_sure_and_wrong():
    sure = np.eye(4)
    assert result(ExpectedCalibrationError(), np.arange(4), sure) == 0
    assert result(ExpectedCalibrationError(), (np.arange(4) + 1) % 4, sure) == 1
    assert result(ExpectedCalibrationError(), np.arange(4), np.full((4, 4), 0.25)) == 0


def test_what_is_drawn_from_its_own_probabilities_is_calibrated():
    p = rng.dirichlet(np.ones(3), 20_000)
    y = (p.cumsum(1) < rng.uniform(size=(20_000, 1))).sum(1)
    assert result(ExpectedCalibrationError(10), y, p) < 0.02


def test_reliability():
    metric = ExpectedCalibrationError(4)
    assert not metric.reliability().counts.any()
    p = np.array([[0.5, 0.5], [0.6, 0.4], [0.7, 0.3], [0.1, 0.9]])
    metric.update_state(np.array([0, 0, 1, 1]), p)
    confidence, accuracy, count = metric.reliability()
    assert count.tolist() == [0, 1, 2, 1]  # a half falls into (1/4, 1/2]
    np.testing.assert_allclose(confidence, [np.nan, 0.5, 0.65, 0.9])
    np.testing.assert_allclose(accuracy, [np.nan, 1, 0.5, 1])
    assert metric.result() == pytest.approx((0.5 + 2 * 0.15 + 0.1) / 4)


def test_of_nan_it_is_nan():
    spoiled = np.where(np.arange(len(LOGITS))[:, None] == 0, np.nan, LOGITS)
    assert np.isnan(result(ExpectedCalibrationError(from_logits=True), Y, spoiled))


def test_refusals():
    with pytest.raises(ValueError, match="expected probabilities, got -"):
        result(ExpectedCalibrationError(), Y, LOGITS)
    with pytest.raises(ValueError, match="bins: expected 1 or more, got 0"):
        ExpectedCalibrationError(0)
    with pytest.raises(ValueError, match="expected targets and mask of shape"):
        result(CategoricalAccuracy(), Y, P)


def test_of_a_mixed_target_the_heavier_label_counts():
    mixed = np.array([[0.7, 0.3, 0], [0.4, 0, 0.6], [0, 1, 0]])
    scores = np.array([[3.0, 2, 1], [3, 2, 1], [1, 2, 0]])
    assert result(CategoricalAccuracy(), mixed, scores) == pytest.approx(2 / 3)
