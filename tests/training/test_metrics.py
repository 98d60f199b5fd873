"""Metrics: values, masks, devices, and the state of a half-read one."""

import numpy as np
import pytest

import minidl as md
from minidl.errors import ShapeError
from minidl.metrics import BinaryAccuracy, Mean, Metric, SparseCategoricalAccuracy
from minidl.testing import strict

Y = np.array([[0, 2], [1, 1]])
P = np.eye(3, dtype=np.float32)[np.array([[0, 1], [1, 1]])]  # one of four is wrong


def test_sparse_accuracy():
    metric = SparseCategoricalAccuracy()
    metric.update_state(Y, P)
    assert metric.result() == 0.75
    metric.update_state(Y[:, 1:], P[:, 1:], np.array([[True], [False]]))
    assert metric.result() == pytest.approx(3 / 5)
    metric.reset_state()
    assert np.isnan(metric.result())


def test_binary_accuracy():
    metric = BinaryAccuracy(threshold=0.0)
    metric.update_state(np.array([0.0, 1.0, 1.0]), np.array([-1.0, 2.0, -3.0]))
    assert metric.result() == pytest.approx(2 / 3)


def test_shapes():
    with pytest.raises(ShapeError, match=r"shape \(2, 2\), got \(2, 1\)"):
        SparseCategoricalAccuracy().update_state(Y[:, :1], P)
    with pytest.raises(ShapeError, match="a number a batch"):
        Mean(lambda t, p: p).update_state(Y, P)


def test_a_function_is_a_mean_over_items():
    metric = Mean(lambda t, p: p.mean())
    metric.update_state(None, np.full(3, 1.0))
    metric.update_state(None, np.full(1, 5.0))
    assert metric.result() == 2
    assert Mean(md.mean).name == "mean"
    with pytest.raises(TypeError, match="use add"):
        Mean(name="loss").update_state(Y, P)


def test_the_device_is_read_at_the_end_only():
    metric = SparseCategoricalAccuracy()
    y, p = (md.tensor(a, device="strict") for a in (Y, P))
    with strict.forbid_sync():
        for mask in (None, md.tensor(Y > 0, device="strict")):
            metric.update_state(y, p, mask)
    with strict.counting() as counts:
        assert metric.result() == pytest.approx((3 + 2) / (4 + 3))
    assert counts.synchronisations <= 3


def test_the_sum_does_not_depend_on_when_it_is_read():
    values = np.random.default_rng(0).normal(size=30).astype(np.float32)
    once, often = Mean(name="a"), Mean(name="b")
    for i, value in enumerate(values):
        for metric in (once, often):
            metric.add(value, 3)
        if i % 4 == 0:
            often.result()
    restored = Mean(name="c")
    restored.load_state_dict(often.state_dict())
    assert once.result() == often.result() == restored.result()


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
