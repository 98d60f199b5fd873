"""Initializers: distribution, shape, dtype, and where the draws come from."""

import numpy as np
import pytest

import minidl as md
from minidl import initializers
from minidl.errors import ShapeError

DRAWN = (
    "uniform", "normal", "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "orthogonal",
)  # fmt: skip


@pytest.mark.parametrize("name", DRAWN)
def test_the_seed_decides_on_every_device(name):
    draw = initializers.get(name)
    md.seed(5)
    first = draw((6, 7), None)
    md.seed(5)
    with md.device("strict"):
        second = draw((6, 7), None)
    assert first.dtype == np.float32 and first.shape == (6, 7)
    np.testing.assert_array_equal(first, second)
    md.seed(5)
    np.testing.assert_allclose(draw((6, 7), np.float64), first, rtol=1e-5, atol=1e-7)


def test_fans_count_the_window():
    limit = np.sqrt(6 / (3 * 40 + 3 * 50))
    values = initializers.glorot_uniform((3, 40, 50))
    assert 0.99 * limit < np.abs(values).max() <= limit
    for draw in (initializers.he_normal, initializers.he_uniform):
        assert draw((3, 40, 500)).std() == pytest.approx(np.sqrt(2 / 120), rel=0.02)
    values = initializers.glorot_normal((3, 40, 500))
    assert values.std() == pytest.approx(np.sqrt(2 / 1620), rel=0.02)


def test_normal_and_uniform():
    values = initializers.normal((400, 500), mean=1.0, stddev=0.1)
    assert values.mean() == pytest.approx(1, abs=1e-3) and values.std() == pytest.approx(
        0.1, rel=0.01
    )
    values = initializers.uniform((400, 500))
    assert -0.05 <= values.min() < -0.049 and 0.049 < values.max() <= 0.05


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (2, 3, 4)])
def test_orthogonal(shape):
    q = initializers.orthogonal(shape, np.float64).reshape(-1, shape[-1])
    product = q.T @ q if q.shape[0] >= q.shape[1] else q @ q.T
    np.testing.assert_allclose(product, np.eye(len(product)), atol=1e-12)
    with pytest.raises(ShapeError):
        initializers.orthogonal((3,))


def test_constants():
    assert (initializers.get("zeros")((2, 3)) == 0).all()
    assert (initializers.get(7)((2, 3), np.float64) == 7).all()
    values = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(initializers.get(values)((2, 3), np.float32), values)
    with pytest.raises(ShapeError, match=r"\(3, 2\), got \(2, 3\)"):
        initializers.get(values)((3, 2))
    with pytest.raises(ValueError, match="expected one of glorot_normal"):
        initializers.get("glorot")
