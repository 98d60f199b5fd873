"""New tensors, by NumPy's names: on the current device, in the default dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minidl import backend
from minidl.graph import Tensor

__all__ = ["arange", "eye", "full", "linspace", "ones", "zeros"]

Shape = int | Sequence[int]


def zeros(shape: Shape, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of zeros."""
    return full(shape, 0.0, dtype, device)


def ones(shape: Shape, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of ones."""
    return full(shape, 1.0, dtype, device)


def full(shape: Shape, value: float, dtype: Any = None, device: str | None = None) -> Tensor:
    """A tensor of one value: without `dtype` that of the value, for floats the default one."""
    return Tensor(np.full(shape, value, dtype or _dtype_of(value)), device=device)


def arange(
    start: float,
    stop: float | None = None,
    step: float = 1,
    dtype: Any = None,
    device: str | None = None,
) -> Tensor:
    """start, start + step, ... below stop; arange(n) counts from 0. Integers give int64."""
    if stop is None:
        start, stop = 0, start
    if dtype is None and any(isinstance(v, float) for v in (start, stop, step)):
        dtype = backend.current_dtype()
    values = np.arange(start, stop, step, dtype)  # type: ignore[call-overload]
    return Tensor(values, device=device)


def linspace(
    start: float, stop: float, num: int = 50, dtype: Any = None, device: str | None = None
) -> Tensor:
    """`num` numbers from start to stop, both included, at equal distances."""
    values = np.linspace(start, stop, num, dtype=dtype or backend.current_dtype())
    return Tensor(values, device=device)


def eye(n: int, m: int | None = None, dtype: Any = None, device: str | None = None) -> Tensor:
    """Ones on the diagonal of an (n, m) matrix of zeros; square without m."""
    return Tensor(np.eye(n, m, dtype=dtype or backend.current_dtype()), device=device)


def _dtype_of(value: Any) -> Any:
    return backend.current_dtype() if isinstance(value, float) else None
