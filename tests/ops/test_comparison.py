"""Comparisons: operators of tensors, numbers on either side, no gradient."""

import numpy as np
import pytest

import minidl as md


@pytest.mark.parametrize("name", ["equal", "less", "logical_and", "isnan", "isfinite"])
def test_results_are_constants(name):
    x = md.tensor([1.0, 2.0], requires_grad=True)
    op = getattr(md, name)
    out = op(x) if name.startswith("is") else op(x, x)
    assert out.dtype == bool
    assert not out.requires_grad


def test_numbers_on_either_side():
    x = md.tensor([1.0, 2.0, 3.0])
    np.testing.assert_array_equal((x > 2).numpy(), [False, False, True])
    np.testing.assert_array_equal(md.greater(2, x).numpy(), [True, False, False])
    np.testing.assert_array_equal(md.less_equal(2, x).numpy(), [False, True, True])
    np.testing.assert_array_equal((x == 2).numpy(), [False, True, False])
    np.testing.assert_array_equal((x != 2).numpy(), [True, False, True])


def test_logic():
    x, y = md.tensor(np.array([True, True, False])), md.tensor(np.array([True, False, False]))
    np.testing.assert_array_equal((x & y).numpy(), [True, False, False])
    np.testing.assert_array_equal((x | y).numpy(), [True, True, False])
    np.testing.assert_array_equal((~x).numpy(), [False, False, True])


def test_tests():
    x = md.tensor(np.array([0.0, np.nan, np.inf, -np.inf]))
    np.testing.assert_array_equal(md.isnan(x).numpy(), [False, True, False, False])
    np.testing.assert_array_equal(md.isinf(x).numpy(), [False, False, True, True])
    np.testing.assert_array_equal(md.isfinite(x).numpy(), [True, False, False, False])
