"""Certified radii: by hand, and that no input inside one is decided otherwise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import minidl as md
from minidl.lipschitz import certified_radius, upper_bound

LOGITS = np.array([[3.0, 1.0, 0.0], [0.0, 1.0, 1.0], [0.0, 2.0, 6.0]])


def test_by_hand(device):
    radius = np.array([2, 0, 4]) / (math.sqrt(2) * 0.5)
    assert np.allclose(certified_radius(LOGITS, 0.5), radius)
    assert np.allclose(certified_radius(md.tensor(LOGITS, device=device), 0.5), radius)
    right = certified_radius(LOGITS, 0.5, labels=[1, 2, 2])
    assert np.allclose(right, radius * [0, 0, 1])  # a wrong decision has nothing to certify


def test_extreme_bounds():
    assert certified_radius(LOGITS, 0).tolist() == [math.inf, 0, math.inf]
    assert (certified_radius(LOGITS, math.inf) == 0).all()
    assert certified_radius(np.zeros((0, 2)), 1.0).shape == (0,)


def test_the_bound_is_tight():
    """Of a rotation of two classes: a move of exactly the radius makes the logits equal."""
    logits = np.array([[1.0, -1.0]])
    (radius,) = certified_radius(logits, 1.0)
    step = np.array([[-1.0, 1.0]]) / math.sqrt(2)
    assert np.ptp(logits + radius * step) < 1e-12
    assert (logits + 0.99 * radius * step).argmax() == 0


@given(st.integers(0, 10_000))
def test_nothing_inside_is_decided_otherwise(seed):
    draw = np.random.default_rng(seed)
    md.seed(seed)
    layers = [md.layers.Dense(6, "relu"), md.layers.Dense(3)]
    model = md.layers.Sequential(layers)
    report = upper_bound(model, (4,))
    model.astype("float64")
    x = draw.normal(size=(1, 4))
    logits = model(x).numpy()
    (radius,) = certified_radius(logits, report)
    step = draw.normal(size=(50, 4))
    step *= radius * draw.uniform(0.9, 1, (50, 1)) / np.linalg.norm(step, axis=1, keepdims=True)
    assert (model(x + step).numpy().argmax(axis=1) == logits.argmax()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (np.zeros(3), 1.0),
            r"logits: expected \(batch, classes\) of 2 classes or more, got \(3,\)",
        ),
        ((np.zeros((3, 1)), 1.0), r"got \(3, 1\)"),
        ((LOGITS, -1.0), "bound: expected a number >= 0, got -1.0"),
        ((LOGITS, math.nan), "got nan"),
        ((LOGITS, 1.0, [0, 1]), r"labels: expected shape \(3,\), got \(2,\)"),
        (
            (LOGITS, 1.0, [0, 1, -1]),
            "labels: expected integers from 0 to 2, got int64 from -1",
        ),
        ((LOGITS, 1.0, [0.0, 1.0, 2.0]), "labels: expected integers"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        certified_radius(*arguments)
