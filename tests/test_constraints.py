"""Constraints: values, in layers, under optimisers, on the device."""

import copy

import numpy as np
import pytest

import minidl as md
from minidl.constraints import Clip, MaxNorm, NonNeg, UnitNorm, get
from minidl.errors import ShapeError
from minidl.layers import Dense
from minidl.optimizers import SGD, Adam, Lookahead
from minidl.testing import strict

w = np.float32([[3.0, 0.0, -0.3], [4.0, 0.0, 0.4]])


def test_values():
    assert Clip(-1, 0.5)(w).tolist() == [[0.5, 0, np.float32(-0.3)], [0.5, 0, np.float32(0.4)]]
    assert NonNeg()(w).min() == 0 and NonNeg()(w).max() == 4
    np.testing.assert_allclose(MaxNorm(2.0)(w), [[1.2, 0, -0.3], [1.6, 0, 0.4]], rtol=1e-6)
    np.testing.assert_allclose(UnitNorm()(w), [[0.6, 0, -0.6], [0.8, 0, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(UnitNorm([0, 1])(w)), 1, rtol=1e-6)


@pytest.mark.parametrize("constraint", [Clip(-0.5, 0.5), NonNeg(), MaxNorm(1.0), UnitNorm(1)])
def test_what_is_allowed_stays(constraint):
    once = constraint(w)
    assert once.dtype == np.float32
    np.testing.assert_allclose(constraint(once), once, rtol=1e-6)


def test_by_name():
    assert repr(get("clip")) == "Clip(-0.01, 0.01)" and repr(get("non_neg")) == "NonNeg()"
    assert repr(get("max_norm")) == "MaxNorm(2.0, axis=0)"
    assert repr(get("unit_norm")) == "UnitNorm(axis=0)"
    assert get(None) is None and get(md.relu) is md.relu
    with pytest.raises(ValueError, match="'norm' is unknown; expected one of clip, max_norm, non"):
        Dense(2, kernel_constraint="norm", input_size=1)
    with pytest.raises(ValueError, match=r"MaxNorm'> is unknown.* such as .*MaxNorm"):
        get(MaxNorm)  # a class, and no object of it
    with pytest.raises(ValueError, match="expected min_value <= max_value, got 1 and 0"):
        Clip(1, 0)
    with pytest.raises(ValueError, match="MaxNorm: max_value: expected more than 0, got 0"):
        MaxNorm(0)


def step(layer, optimizer, target):
    """One step towards `target`."""
    optimizer.zero_grad()
    x = md.tensor(np.eye(3, dtype=np.float32), device=layer.device)
    md.sum(md.square(layer(x) - target)).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "make", [Adam, SGD, lambda p, rate: Lookahead(SGD(p, rate), k=2, alpha=0.7)]
)
def test_holds_after_every_step_of_any_optimiser(make):
    layer = Dense(2, kernel_constraint=UnitNorm(), bias_constraint=Clip(-0.02, 0.03), input_size=3)
    optimizer = make(layer, 0.1)
    for _ in range(5):
        step(layer, optimizer, np.float32([2.0, -2.0]))
        np.testing.assert_allclose(np.linalg.norm(layer.kernel.numpy(), axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(layer.bias.numpy(), [0.03, -0.02])


def test_a_constraint_must_keep_the_shape():
    layer = Dense(2, input_size=3, kernel_constraint=md.sum)
    with pytest.raises(ShapeError, match=r"of kernel: expected .* shape \(3, 2\), got \(\)"):
        SGD(layer).minimize(md.mean(layer(np.ones((1, 3), np.float32))))


def test_only_what_has_made_a_step_is_constrained():
    layer = Dense(2, kernel_constraint="unit_norm", input_size=3)
    before = layer.kernel.numpy().copy()
    layer.trainable = False
    layer.bias.requires_grad = True
    step(layer, SGD(layer, 0.1), np.float32([2.0, -2.0]))
    np.testing.assert_array_equal(layer.kernel.numpy(), before)
    assert layer.bias.numpy().any()


def test_a_graph_from_before_the_step_is_refused():
    layer = Dense(2, kernel_constraint="clip", input_size=3)
    x = md.tensor(np.ones((1, 3), np.float32), requires_grad=True)
    out = md.sum(layer(x))
    step(layer, SGD(layer, 0.1), np.float32([2.0, -2.0]))
    with pytest.raises(md.errors.GradientError, match="changed in place"):
        out.backward()


def test_a_copy_keeps_it_and_a_parameter_of_ones_own_may_get_one():
    layer = copy.deepcopy(Dense(2, kernel_constraint="clip", input_size=3))
    assert isinstance(layer.kernel.constraint, Clip) and layer.bias.constraint is None
    layer.bias.constraint = lambda b: b - md.mean(b)
    step(layer, SGD(layer, 0.1), np.float32([2.0, -1.0]))
    assert abs(layer.bias.numpy().sum()) < 1e-6 and layer.bias.numpy().any()
    assert np.abs(layer.kernel.numpy()).max() == np.float32(0.01)


@pytest.mark.parametrize("constraint", ["clip", "max_norm", "non_neg", "unit_norm"])
def test_waits_for_nothing_on_the_device(constraint):
    with md.device("strict"):
        layer = Dense(2, kernel_constraint=constraint, input_size=3)
        optimizer = Adam(layer, 0.1)
        target = md.tensor(np.float32([2.0, -2.0]))
        with strict.forbid_sync():
            step(layer, optimizer, target)
