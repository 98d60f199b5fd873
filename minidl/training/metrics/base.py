"""What a metric is: sums over batches, which stay on the device until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.backend import Array, device_of, is_array, namespace, to_device, to_host
from minidl.errors import DtypeError, ShapeError
from minidl.graph import unwrap


class Metric:
    """Base of metrics: what subclasses `measure` on each batch is added up, `compute` makes the
    result of the sums.

    `measure(y_true, y_pred, mask)`, on bare arrays, returns a tuple of numbers or arrays whose
    shapes do not change: as written here (value, count), where the value is a sum over `count`
    items, and their mean is the result. `compute(*sums)` gets the sums as NumPy's arrays. Sums of
    integers are int64, of floats float64, in the order of the batches: they do not depend on when
    they are read.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._sums: list[Any] | None = None

    def measure(self, y_true: Any, y_pred: Any, mask: Any) -> tuple[Any, ...]:
        raise NotImplementedError(f"{type(self).__name__}: write measure(y_true, y_pred, mask)")

    def compute(self, *sums: np.ndarray) -> Any:
        """The first over the second; nan where that is 0."""
        total, count = sums
        return float(total) / float(count) if count else math.nan

    def update_state(self, y_true: Any, y_pred: Any, mask: Any = None) -> None:
        """Take in one batch. Waits for nothing."""
        self.add(*self.measure(unwrap(y_true), unwrap(y_pred), unwrap(mask)))

    def add(self, *values: Any) -> None:
        """Take in what `measure` would return for a batch."""
        new = [_widened(unwrap(value)) for value in values]
        if self._sums is None:
            self._sums = new
        else:
            self._sums = [_plus(a, b) for a, b in zip(self._sums, new, strict=True)]

    def result(self) -> Any:
        """The number so far (or the array, where the class says so); nan before the first batch.
        Waits for the device."""
        if self._sums is None:
            return math.nan
        return self.compute(*(np.asarray(_fetched(a)) for a in self._sums))

    def reset_state(self) -> None:
        """Forget all batches."""
        self._sums = None

    def state_dict(self) -> dict[str, Any]:
        return {"sums": None if self._sums is None else [_fetched(a) for a in self._sums]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._sums = None if state["sums"] is None else list(state["sums"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def _widened(value: Any) -> Any:
    """A Python number, or an array, in float64 or int64; a new one, for the sums outlive it."""
    if not is_array(value):
        return value.item() if isinstance(value, np.generic) else value
    return value.astype(np.float64 if value.dtype.kind == "f" else np.int64)


def _plus(a: Any, b: Any) -> Any:
    """a + b, also where the one was loaded and the other is on a device."""
    if is_array(a) and is_array(b) and device_of(a) != device_of(b):
        a = to_device(a, device_of(b))
    return a + b


def _fetched(value: Any) -> Any:
    """A Python number, or NumPy's array."""
    array = to_host(value) if is_array(value) else value
    return array.item() if is_array(array) and array.ndim == 0 else array


class Mean(Metric):
    """The mean of `function(y_true, y_pred)`, or with a mask `function(y_true, y_pred, mask)`, a
    number for each batch; a batch counts by its items, or as `add(value, count)` says."""

    def __init__(self, function: Callable | None = None, name: str | None = None) -> None:
        super().__init__(name or str(getattr(function, "__name__", "mean")))
        self.function = function

    def measure(self, y_true: Any, y_pred: Any, mask: Any) -> tuple[Any, Any]:
        if self.function is None:
            raise TypeError(f"{self.name}: no function to measure with; use add(value, count)")
        value = unwrap(self.function(y_true, y_pred, *(() if mask is None else (mask,))))
        if np.ndim(value) != 0:
            raise ShapeError(f"{self.name}: expected a number a batch, got {np.shape(value)}")
        return value, items(y_pred)

    def add(self, *values: Any) -> None:
        """Take in the mean `value` of `count` items: add(value, count)."""
        value, count = (_widened(unwrap(v)) for v in values)
        super().add(value * count, count)


class MeanSquaredError(Metric):
    """The mean of (y_true - y_pred)^2 over what the mask, of leading axes, keeps."""

    def __init__(self, name: str = "mean_squared_error") -> None:
        super().__init__(name)

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        return _summed_errors(self.name, y_true, y_pred, mask, lambda d: d * d)


class MeanAbsoluteError(Metric):
    """The mean of |y_true - y_pred| over what the mask, of leading axes, keeps."""

    def __init__(self, name: str = "mean_absolute_error") -> None:
        super().__init__(name)

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        return _summed_errors(self.name, y_true, y_pred, mask, abs)


def _summed_errors(
    name: str, y_true: Array, y_pred: Array, mask: Array | None, size: Callable
) -> tuple[Any, Any]:
    kept = positions(name, y_true, mask, y_pred.shape)
    difference = y_pred.astype(np.float64) - y_true
    if kept is None:
        return size(difference).sum(), difference.size
    return size(namespace(kept).where(kept, difference, 0)).sum(), kept.sum()


def positions(
    name: str, y_true: Array, mask: Array | None, expected: tuple[int, ...]
) -> Array | None:
    """The mask as one of the shape `expected`, which y_true has; it may be of the leading axes."""
    kept = None if mask is None else expected[: mask.ndim]
    if y_true.shape != expected or (mask is not None and mask.shape != kept):
        raise ShapeError(
            f"{name}: expected targets and mask of shape {expected}, got {y_true.shape} and "
            f"{None if mask is None else mask.shape}"
        )
    if mask is None:
        return None
    if mask.dtype != np.bool_:
        raise DtypeError(f"{name}: mask: expected booleans (True = counts), got {mask.dtype}")
    axes = (1,) * (len(expected) - mask.ndim)
    return namespace(mask).broadcast_to(mask.reshape(mask.shape + axes), expected)


def items(value: Any) -> int:
    """The number of items in a batch: the first side of its first array."""
    while isinstance(value, (list, tuple, dict)):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    shape = np.shape(unwrap(value))
    return shape[0] if shape else 1


def as_metric(metric: Any) -> Metric:
    """A Metric as it is; a function as the mean of what it returns."""
    return metric if isinstance(metric, Metric) else Mean(metric)
