"""Activations by name."""

import numpy as np
import pytest

import minidl as md
from minidl.functional import activation
from minidl.functional.activations import _NAMES


def test_by_name_by_function_and_none():
    assert activation("relu") is md.relu
    assert activation("swish") is md.silu
    assert activation(md.tanh) is md.tanh
    x = object()
    assert activation(None)(x) is x and activation("linear")(x) is x


@pytest.mark.parametrize("name", _NAMES)
def test_every_name_is_an_op(name):
    assert activation(name)(np.ones((2, 4))).shape == (2, 2 if name == "glu" else 4)


def test_softmax_is_over_the_last_axis():
    out = activation("softmax")(np.ones((2, 4)))
    np.testing.assert_allclose(out, np.full((2, 4), 0.25))


def test_unknown():
    with pytest.raises(ValueError, match="'rleu' is unknown; expected one of elu"):
        activation("rleu")
