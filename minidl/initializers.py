"""First values of parameters: functions `(shape, dtype) -> array`, drawn on the host.

Kernels are laid out `(*window, inputs, outputs)`, so fans are counted over the last two axes times
the window.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import backend
from minidl import random as md_random
from minidl.errors import ShapeError

Initializer = Callable[[tuple[int, ...], Any], np.ndarray]


def zeros(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """All 0."""
    return np.zeros(shape, dtype or backend.current_dtype())


def ones(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """All 1."""
    return np.ones(shape, dtype or backend.current_dtype())


def uniform(
    shape: tuple[int, ...], dtype: Any = None, low: float = -0.05, high: float = 0.05
) -> np.ndarray:
    """Uniform on [low, high)."""
    return md_random.generator().uniform(low, high, shape, dtype)


def normal(
    shape: tuple[int, ...], dtype: Any = None, mean: float = 0.0, stddev: float = 0.05
) -> np.ndarray:
    """Normal with the given mean and standard deviation."""
    draws = mean + stddev * md_random.generator().normal(shape, np.float64)
    return draws.astype(dtype or backend.current_dtype())


def glorot_uniform(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Uniform on [-a, a), a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, eq. 16)."""
    fan_in, fan_out = _fans(shape)
    limit = math.sqrt(6.0 / max(1, fan_in + fan_out))
    return uniform(shape, dtype, -limit, limit)


def glorot_normal(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / (fan_in + fan_out)), not truncated (as above)."""
    return normal(shape, dtype, 0.0, math.sqrt(2.0 / max(1, sum(_fans(shape)))))


def he_uniform(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Uniform on [-a, a), a = sqrt(6 / fan_in), of the variance of he_normal."""
    limit = math.sqrt(6.0 / max(1, _fans(shape)[0]))
    return uniform(shape, dtype, -limit, limit)


def he_normal(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
    """Normal with standard deviation sqrt(2 / fan_in) (He et al. 2015, eq. 10), not truncated."""
    return normal(shape, dtype, 0.0, math.sqrt(2.0 / max(1, _fans(shape)[0])))


def orthogonal(shape: tuple[int, ...], dtype: Any = None, gain: float = 1.0) -> np.ndarray:
    """Orthonormal columns (or rows, whichever are fewer) of the matrix with the last axis as
    columns, uniformly distributed (Saxe et al. 2014; Mezzadri 2007). ShapeError below 2-D."""
    if len(shape) < 2:
        raise ShapeError(f"orthogonal: shape: expected 2 axes or more, got {shape}; use normal")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    draws = md_random.generator().normal((max(rows, columns), min(rows, columns)), np.float64)
    q, r = np.linalg.qr(draws)
    q *= np.sign(np.diagonal(r))  # makes the decomposition unique, hence the result uniform
    q = q if rows >= columns else q.T
    return (gain * q).reshape(shape).astype(dtype or backend.current_dtype())


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2:
        size = math.prod(shape)
        return size, size
    window = math.prod(shape[:-2])
    return window * shape[-2], window * shape[-1]


_BY_NAME: dict[str, Initializer] = {
    f.__name__: f
    for f in (
        zeros,
        ones,
        uniform,
        normal,
        glorot_uniform,
        glorot_normal,
        he_uniform,
        he_normal,
        orthogonal,
    )
}


def get(initializer: Any) -> Initializer:
    """The initializer of a name; functions pass, arrays and numbers are used as the values.

    Raises ValueError for an unknown name, and ShapeError when an array's shape is not the wanted.
    """
    if callable(initializer):
        return initializer
    if isinstance(initializer, str):
        if initializer not in _BY_NAME:
            known = ", ".join(sorted(_BY_NAME))
            raise ValueError(f"initializer {initializer!r} is unknown; expected one of {known}")
        return _BY_NAME[initializer]
    values = np.asarray(initializer)

    def constant(shape: tuple[int, ...], dtype: Any = None) -> np.ndarray:
        if values.ndim and values.shape != shape:
            raise ShapeError(f"initializer: expected an array of {shape}, got {values.shape}")
        return np.broadcast_to(values, shape).astype(dtype or backend.current_dtype())

    return constant
