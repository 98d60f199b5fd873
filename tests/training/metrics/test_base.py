"""Metrics as such: sums that stay on the device, states, means, errors of numbers."""

import json

import numpy as np
import pytest

import minidl as md
from minidl import metrics
from minidl.errors import DtypeError, ShapeError
from minidl.metrics import Mean, Metric
from minidl.testing import strict

rng = np.random.default_rng(0)
Y = rng.integers(0, 3, (6, 2))
P = rng.uniform(size=(6, 2, 3)).astype(np.float32)
BITS = rng.integers(0, 2, (6, 2))
MASK = rng.uniform(size=(6, 2)) < 0.6

# metric, y_true, y_pred
METRICS = {
    "accuracy": (metrics.SparseCategoricalAccuracy, Y, P),
    "categorical": (metrics.CategoricalAccuracy, rng.dirichlet(np.ones(3), (6, 2)), P),
    "calibration": (lambda: metrics.ExpectedCalibrationError(4, from_logits=True), Y, P),
    "top": (lambda: metrics.SparseTopKCategoricalAccuracy(2), Y, P),
    "binary": (metrics.BinaryAccuracy, BITS, P[..., 0]),
    "precision": (metrics.Precision, BITS, P[..., 0]),
    "recall": (lambda: metrics.Recall("micro"), Y, P),
    "f1": (lambda: metrics.F1Score("macro"), Y, P),
    "f1_each": (lambda: metrics.F1Score(None), Y, P),
    "f1_labels": (lambda: metrics.F1Score("macro", threshold=0.5), np.eye(3, dtype=int)[Y], P),
    "confusion": (lambda: metrics.ConfusionMatrix(3), Y, P),
    "auc": (metrics.AUC, BITS, P[..., 0]),
    "squared": (metrics.MeanSquaredError, P[..., 1], P[..., 0]),
    "absolute": (metrics.MeanAbsoluteError, P[..., 1], P[..., 0]),
    "mean": (lambda: Mean(lambda t, p, *mask: p.mean()), BITS, P),
}
EACH = pytest.mark.parametrize("name", METRICS)


def batches(y, p, device="cpu"):
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        yield tuple(md.tensor(a[rows], device=device) for a in (y, p, MASK))


@EACH
class TestEach:
    def test_batches_are_the_whole(self, name):
        make, y, p = METRICS[name]
        whole, parts = make(), make()
        whole.update_state(y, p)
        for t, q, _ in batches(y, p):
            parts.update_state(t, q)
        np.testing.assert_allclose(parts.result(), whole.result(), rtol=1e-6)
        whole.reset_state()
        assert not np.any(np.nan_to_num(whole.result()))

    def test_what_a_mask_leaves_out_never_matters(self, name):
        make, y, p = METRICS[name]
        if name == "mean":
            return  # the function's own affair
        masked, kept = make(), make()
        for t, q, mask in batches(y, p):
            masked.update_state(t, q, mask)
        q, t = p.copy(), y.copy()
        q[~MASK] = np.nan
        t[~MASK] = -100
        spoiled = make()
        spoiled.update_state(t, q, MASK)
        kept.update_state(y[MASK], p[MASK])
        np.testing.assert_allclose(masked.result(), kept.result(), rtol=1e-12)
        np.testing.assert_allclose(spoiled.result(), kept.result(), rtol=1e-12)

    def test_the_device_is_read_at_the_end_only(self, name):
        make, y, p = METRICS[name]
        here, there = make(), make()
        given = list(batches(y, p, "strict"))
        with strict.forbid_sync():
            for batch in given:
                there.update_state(*batch)
        for batch in batches(y, p):
            here.update_state(*batch)
        with strict.counting() as counts:
            np.testing.assert_allclose(there.result(), here.result(), rtol=1e-6)
        assert counts.synchronisations <= 3

    @pytest.mark.parametrize("device", ["cpu", "strict"])
    def test_a_state_goes_on_with_the_same_bits(self, name, device, tmp_path):
        make, y, p = METRICS[name]
        once, first, second = make(), make(), make()
        given = list(batches(y, p, device))
        for batch in given:
            once.update_state(*batch)
        first.update_state(*given[0])
        first.result()  # when it is read does not matter
        first.update_state(*given[1])
        md.save(tmp_path / "state.npz", metric=first.state_dict())
        second.load_state_dict(md.load(tmp_path / "state.npz")["metric"])
        second.update_state(*given[2])
        np.testing.assert_array_equal(second.result(), once.result())


def test_an_empty_state_is_kept():
    metric = metrics.Precision()
    state = json.loads(json.dumps(metric.state_dict()))
    metric.update_state(BITS, P[..., 0])
    metric.load_state_dict(state)
    assert np.isnan(metric.result())


def test_a_function_is_a_mean_over_items():
    metric = Mean(lambda t, p: p.mean())
    metric.update_state(None, np.full(3, 1.0))
    metric.update_state(None, np.full(1, 5.0))
    assert metric.result() == 2
    assert Mean(md.mean).name == "mean"
    with pytest.raises(TypeError, match="use add"):
        Mean(name="loss").update_state(Y, P)
    with pytest.raises(ShapeError, match="a number a batch"):
        Mean(lambda t, p: p).update_state(Y, P)


def test_a_mean_adds_in_float64():
    metric = Mean(name="loss")
    for _ in range(1000):
        metric.add(np.float32(0.1), 3)
    assert metric.result() == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_errors_of_numbers():
    x, t = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    mask = np.array([True, True, False, False, True])
    for metric, size in (
        (metrics.MeanSquaredError(), np.square), (metrics.MeanAbsoluteError(), np.abs),
    ):  # fmt: skip
        metric.update_state(t, x, mask)
        assert metric.result() == pytest.approx(size(x - t)[mask].mean())
    with pytest.raises(ShapeError, match=r"shape \(5, 3\), got \(5, 1\)"):
        metrics.MeanSquaredError().update_state(t[:, :1], x)
    with pytest.raises(DtypeError, match="mask: expected booleans"):
        metrics.MeanSquaredError().update_state(t, x, mask.astype(int))


def test_ones_own():
    class Largest(Metric):
        def measure(self, y_true, y_pred, mask):
            return y_pred.max(), 1

    metric = Largest("largest")
    metric.update_state(None, np.array([1.0, 4.0]))
    metric.update_state(None, np.array([2.0]))
    assert metric.result() == 3 and repr(metric) == "Largest(name='largest')"
    with pytest.raises(NotImplementedError, match="measure"):
        Metric("x").update_state(Y, P)
