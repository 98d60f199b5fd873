"""Tensors made by NumPy's names."""

import numpy as np
import pytest

import minidl as md


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: md.zeros((2, 3)), np.zeros((2, 3), "float32")),
        (lambda: md.ones(2), np.ones(2, "float32")),
        (lambda: md.full((2,), 7), np.full(2, 7)),
        (lambda: md.full((2,), 0.5), np.full(2, 0.5, "float32")),
        (lambda: md.arange(4), np.arange(4)),
        (lambda: md.arange(1, 2, 0.25), np.arange(1, 2, 0.25, "float32")),
        (lambda: md.linspace(0, 1, 5), np.linspace(0, 1, 5, dtype="float32")),
        (lambda: md.eye(2, 3), np.eye(2, 3, dtype="float32")),
        (lambda: md.zeros(2, "float64"), np.zeros(2)),
    ],
)
def test_values_and_dtypes(made, expected):
    tensor = made()
    assert isinstance(tensor, md.Tensor) and tensor.dtype == expected.dtype
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_current_device_and_dtype():
    with md.device("strict"), md.default_dtype("float64"):
        x = md.ones(3)
    assert x.device == "strict" and x.dtype == np.float64
    assert md.ones(3, device="strict").device == "strict"
