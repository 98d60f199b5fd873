"""Soft F1: the score itself where probabilities are 0 and 1, masks, missing classes, gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl import functional
from minidl.errors import DtypeError, ShapeError
from minidl.testing import check_gradients, strict

rng = np.random.default_rng(0)
CLASSES = 4


def drawn(rows, classes=CLASSES):
    return rng.normal(size=(rows, classes)), rng.integers(0, classes, rows)


def by_hand(x, t):
    """1 - F1 of each class that a target has."""
    p = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    one_hot = np.eye(x.shape[-1])[t]
    scores = 2 * (p * one_hot).sum(0) / (p + one_hot).sum(0)
    return (1 - scores)[np.unique(t)]


@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 999))
def test_certain_predictions_have_the_macro_f1_score(rows, classes, seed):
    generator = np.random.default_rng(seed)
    targets, found = generator.integers(0, classes, (2, rows))
    logits = 1e3 * np.eye(classes, dtype=np.float32)[found]
    metric = md.metrics.F1Score(average=None)
    metric.update_state(targets, logits)
    expected = np.mean(metric.result()[: targets.max() + 1][np.unique(targets)])
    assert 1 - float(functional.soft_f1(logits, targets)) == pytest.approx(expected, abs=1e-6)


def test_values_by_hand_and_reductions():
    x, _ = drawn(9)
    t = rng.integers(0, CLASSES - 1, 9)  # nothing is of the last class
    each = np.asarray(functional.soft_f1(x, t, reduction="none"))
    assert each.shape == (CLASSES,) and each[-1] == 0
    np.testing.assert_allclose(each[np.unique(t)], by_hand(x, t), rtol=1e-6)
    assert float(functional.soft_f1(x, t)) == pytest.approx(by_hand(x, t).mean())
    assert float(functional.soft_f1(x, t, reduction="sum")) == pytest.approx(by_hand(x, t).sum())
    one_hot = np.eye(CLASSES)[t]
    assert float(functional.soft_f1(x, one_hot)) == pytest.approx(by_hand(x, t).mean())
    axes = functional.soft_f1(x.reshape(3, 3, CLASSES), t.reshape(3, 3))
    assert float(axes) == pytest.approx(by_hand(x, t).mean())


@pytest.mark.parametrize("hot", [False, True])
def test_what_a_mask_leaves_out_never_matters(hot):
    x, t = drawn(9)
    mask = np.arange(9) % 3 > 0
    expected = by_hand(x[mask], t[mask]).mean()
    targets = np.eye(CLASSES)[t] if hot else t.copy()
    targets[~mask] = np.nan if hot else -7
    x[~mask] = np.inf
    tensor = md.tensor(x, requires_grad=True)
    value = functional.soft_f1(tensor, targets, mask)
    value.backward()
    assert float(value) == pytest.approx(expected)
    assert np.isfinite(tensor.grad.numpy()).all() and not tensor.grad.numpy()[~mask].any()
    assert float(functional.soft_f1(x, targets, np.zeros(9, bool))) == 0


def test_gradients():
    x, t = drawn(5, 3)
    mask = np.array([True, True, False, True, True])
    for targets in (t, np.eye(3)[t] * 0.8 + 0.1):
        for kept in (None, mask):
            check_gradients(lambda x, a=(targets, kept): functional.soft_f1(x, *a), x, order=2)


def test_descent_raises_the_score():
    x, t = drawn(40)
    logits = md.tensor(x, requires_grad=True)
    first = float(functional.soft_f1(logits, t))
    for _ in range(100):
        (g,) = md.grad(functional.soft_f1(logits, t), [logits])
        logits = (logits - 20 * g).detach()
        logits.requires_grad = True
    assert float(functional.soft_f1(logits, t)) < 0.1 * first


def test_float16_empty_batches_and_far_logits():
    x, t = drawn(6)
    half = functional.soft_f1(x.astype(np.float16), t)
    assert half.dtype == np.float16
    assert float(half) == pytest.approx(by_hand(x, t).mean(), abs=2e-3)
    assert float(functional.soft_f1(x[:0], t[:0])) == 0
    far = md.tensor(1e4 * x, requires_grad=True)
    functional.soft_f1(far, t).backward()
    assert np.isfinite(far.grad.numpy()).all()


def test_what_is_refused():
    x, t = drawn(4)
    with pytest.raises(ShapeError, match="do not broadcast"):
        functional.soft_f1(x, t[:3])
    with pytest.raises(ShapeError, match="do not broadcast"):
        functional.soft_f1(x, np.ones((4, 3)))
    with pytest.raises(DtypeError, match="expected integers"):
        functional.soft_f1(x, t.astype(float))
    with pytest.raises(ValueError, match="expected 0 to 3"):
        functional.soft_f1(x, t + 4)
    with pytest.raises(ValueError, match="'mean', 'sum' or 'none'"):
        functional.soft_f1(x, t, reduction="avg")


def test_on_the_device_without_waiting():
    x, t = drawn(6)
    mask = np.arange(6) > 1
    expected = float(functional.soft_f1(x, t, mask))
    arguments = [md.tensor(a, device="strict") for a in (x, t, mask)]
    arguments[0].requires_grad = True
    with strict.forbid_sync():
        value = functional.soft_f1(*arguments)
        value.backward()
    assert float(value) == pytest.approx(expected)
