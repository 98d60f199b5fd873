"""Metrics: numbers gathered over batches, which stay on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl import backend
from minidl.backend import Array, namespace
from minidl.errors import ShapeError
from minidl.graph import unwrap

__all__ = ["BinaryAccuracy", "Mean", "Metric", "SparseCategoricalAccuracy"]


class Metric:
    """Base of metrics: a mean over items of what subclasses measure on each batch.

    Subclasses write `measure(y_true, y_pred, mask)` on bare arrays, which returns (value, count):
    numbers or 0-d arrays. The value is a sum over `count` items, or their mean where the class says
    `sums = False`.
    """

    sums = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.reset_state()

    def measure(self, y_true: Any, y_pred: Any, mask: Any) -> tuple[Any, Any]:
        raise NotImplementedError(f"{type(self).__name__}: write measure(y_true, y_pred, mask)")

    def update_state(self, y_true: Any, y_pred: Any, mask: Any = None) -> None:
        """Take in one batch."""
        self.add(*self.measure(unwrap(y_true), unwrap(y_pred), unwrap(mask)))

    def add(self, value: Any, count: Any) -> None:
        """Take in the value of `count` items."""
        self._pending.append((unwrap(value), unwrap(count)))

    def result(self) -> float:
        """The mean so far; nan before the first item. Waits for the device."""
        self._settle()
        return self._total / self._count if self._count else float("nan")

    def reset_state(self) -> None:
        """Forget all batches."""
        self._total, self._count = 0.0, 0.0
        self._pending: list[tuple[Any, Any]] = []

    def _settle(self) -> None:
        """Add what is pending, in float64 and in order: the same sum whenever it is asked for."""
        if not self._pending:
            return
        values, counts = (_to_floats(column) for column in zip(*self._pending, strict=True))
        for value, count in zip(values, counts, strict=True):
            self._total += value if self.sums else value * count
            self._count += count
        self._pending = []

    def state_dict(self) -> dict[str, float]:
        self._settle()
        return {"total": self._total, "count": self._count}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self._total, self._count, self._pending = state["total"], state["count"], []

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r})"


def _to_floats(values: Sequence[Any]) -> list[float]:
    """Python floats of numbers and 0-d arrays; those on a device come over in one transfer."""
    if backend.is_array(values[0]) and not isinstance(values[0], np.ndarray):
        xp = namespace(values[0])
        return backend.to_host(xp.stack(list(values))).astype(np.float64).tolist()
    return [float(value) for value in values]


class Mean(Metric):
    """The mean of `function(y_true, y_pred)`, or with a mask `function(y_true, y_pred, mask)`, a
    number for each batch; a batch counts by its items."""

    sums = False

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


class SparseCategoricalAccuracy(Metric):
    """The share of integer targets (...) where y_pred (..., classes) has its largest entry."""

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        return _share(self.name, y_pred.argmax(axis=-1), y_true, mask)


class BinaryAccuracy(Metric):
    """The share of targets 0 or 1 that y_pred (same shape) is on the right side of `threshold`.

    threshold: 0.5 for probabilities, 0 for logits.
    """

    def __init__(self, threshold: float = 0.5, name: str = "accuracy") -> None:
        super().__init__(name)
        self.threshold = threshold

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        return _share(self.name, y_pred > self.threshold, y_true > 0.5, mask)


def _share(name: str, found: Array, wanted: Array, mask: Array | None) -> tuple[Any, Any]:
    """How many of the positions that count agree, and how many count."""
    if found.shape != wanted.shape or (mask is not None and mask.shape != found.shape):
        raise ShapeError(
            f"{name}: expected targets and mask of shape {found.shape}, got {wanted.shape} and "
            f"{None if mask is None else mask.shape}"
        )
    right = found == wanted
    if mask is None:
        return right.sum(), right.size
    return (right & mask).sum(), mask.sum()


def items(value: Any) -> int:
    """The number of items in a batch: the first side of its first array."""
    while isinstance(value, (list, tuple)):
        value = value[0]
    shape = np.shape(unwrap(value))
    return shape[0] if shape else 1


def as_metric(metric: Any) -> Metric:
    """A Metric as it is; a function as the mean of what it returns."""
    return metric if isinstance(metric, Metric) else Mean(metric)
