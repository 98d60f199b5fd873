"""Metrics of classes: accuracy, precision and recall, the confusion matrix, the area under ROC."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.backend import Array, namespace
from minidl.errors import DtypeError
from minidl.training.metrics.base import Metric, positions


class SparseCategoricalAccuracy(Metric):
    """The share of integer targets (...) where y_pred (..., classes) has its largest entry."""

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        kept = positions(self.name, y_true, mask, y_pred.shape[:-1])
        return _share(y_pred.argmax(axis=-1) == y_true, kept)


class CategoricalAccuracy(Metric):
    """The share of distributions y_true (..., classes), one-hot or mixed, whose largest entry is
    where y_pred (same shape) has its own: of a mixed target, the heavier label counts. mask: (...).
    """

    def __init__(self, name: str = "accuracy") -> None:
        super().__init__(name)

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        positions(self.name, y_true, None, y_pred.shape)
        targets = true_classes(y_true, y_pred)
        kept = positions(self.name, targets, mask, y_pred.shape[:-1])
        return _share(y_pred.argmax(axis=-1) == targets, kept)


def true_classes(y_true: Array, y_pred: Array) -> Array:
    """Integers (...) as they are; of distributions of y_pred's shape, where they are largest."""
    return y_true.argmax(axis=-1) if y_true.shape == y_pred.shape else y_true


class SparseTopKCategoricalAccuracy(Metric):
    """The share of integer targets (...) that fewer than k entries of y_pred (..., classes) exceed.

    Where entries are equal they count as the top k all, as in Keras.
    """

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        super().__init__(name or f"top_{k}_accuracy")
        self.k = k

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        kept = positions(self.name, y_true, mask, y_pred.shape[:-1])
        targets = _classes(self.name, y_true, kept, y_pred.shape[-1])
        own = namespace(y_pred).take_along_axis(y_pred, targets[..., None], -1)
        above = ~(y_pred <= own)  # nan is above, and has all above it
        return _share(above.sum(axis=-1) < self.k, kept)


class BinaryAccuracy(Metric):
    """The share of targets 0 or 1 that y_pred (same shape) is on the right side of `threshold`.

    threshold: 0.5 for probabilities, 0 for logits. mask: that shape, or its leading axes.
    """

    def __init__(self, threshold: float = 0.5, name: str = "accuracy") -> None:
        super().__init__(name)
        self.threshold = threshold

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        kept = positions(self.name, y_true, mask, y_pred.shape)
        return _share((y_pred > self.threshold) == (y_true > 0.5), kept)


def _share(right: Array, kept: Array | None) -> tuple[Any, Any]:
    """How many of the positions that count are right, and how many count."""
    if kept is None:
        return right.sum(), right.size
    return (right & kept).sum(), kept.sum()


def _classes(
    name: str, given: Array, kept: Array | None, classes: int, argument: str = "y_true"
) -> Array:
    """Integers in [0, classes), seen on the CPU only; 0 where masked."""
    if given.dtype.kind not in "iub":
        raise DtypeError(f"{name}: {argument}: expected integers, got {given.dtype}")
    targets = given if kept is None else namespace(given).where(kept, given, 0)
    if type(targets) is np.ndarray and targets.size:
        low, high = targets.min(), targets.max()
        if low < 0 or high >= classes:
            raise ValueError(
                f"{name}: {argument}: expected 0 to {classes - 1}, got {low} to {high}"
            )
    return targets


# --- Precision, recall, F1 ------------------------------------------------------------------------


class _Retrieval(Metric):
    """Base: counts, of each class, how many were found and rightly so, found, and there to find.
    Subclasses write `share` of the three; Precision says what the arguments are.
    """

    _AVERAGES = ("binary", "micro", "macro", None)

    def __init__(
        self, average: str | None = "binary", threshold: float | None = None, name: str = ""
    ) -> None:
        if average not in self._AVERAGES:
            raise ValueError(f"{name}: average: expected one of {self._AVERAGES}, got {average!r}")
        super().__init__(name)
        self.average = average
        self.threshold = 0.5 if average == "binary" and threshold is None else threshold

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, ...]:
        if self.threshold is None:
            classes = y_pred.shape[-1]
            kept = positions(self.name, y_true, mask, y_pred.shape[:-1])
            wanted = _classes(self.name, y_true, kept, classes)
            found = y_pred.argmax(axis=-1)
            ones = _ones(wanted, kept)
            hits = ones * (wanted == found)
            return (
                _counts(found, hits, classes), _counts(found, ones, classes),
                _counts(wanted, ones, classes),
            )  # fmt: skip
        kept = positions(self.name, y_true, mask, y_pred.shape)
        both = [y_pred > self.threshold, y_true > 0.5]
        if kept is not None:
            both = [a & kept for a in both]
        axes = None if self.average == "binary" else tuple(range(y_pred.ndim - 1))
        return tuple(a.sum(axis=axes) for a in (both[0] & both[1], *both))

    def compute(self, *sums: np.ndarray) -> Any:
        if self.average == "micro":
            sums = tuple(a.sum() for a in sums)
        each = self.share(*(np.asarray(a, np.float64) for a in sums))
        if self.average is None:
            return each
        if self.average == "macro":
            there = sums[1] + sums[2] > 0
            return float(each[there].mean()) if there.any() else 0.0
        return float(each)

    def share(self, hits: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class Precision(_Retrieval):
    """The share of what was found that is right.

    average: "binary": targets 0 or 1 and y_pred of one shape, on the right side of `threshold`
    (None: 0.5). Else several classes, in the last axis of y_pred (..., classes). threshold None:
    the targets are integers (...), and the class with the largest entry is what was found;
    given: y_true is 0 or 1 of y_pred's shape, and any number of classes can be found. Then "micro"
    takes the classes' counts together; "macro" is the mean over the classes that were found or
    there to find at all (as scikit-learn has it), and None an array, an entry a class.
    mask: of the positions (...), or their leading axes.
    What divides by 0 is 0 (nan where no batch came). Raises ValueError for another average.
    """

    def __init__(
        self,
        average: str | None = "binary",
        threshold: float | None = None,
        name: str = "precision",
    ) -> None:
        super().__init__(average, threshold, name)

    def share(self, hits: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return _ratio(hits, found)


class Recall(_Retrieval):
    """The share of what is there that was found. average, threshold and mask as for Precision."""

    def __init__(
        self, average: str | None = "binary", threshold: float | None = None, name: str = "recall"
    ) -> None:
        super().__init__(average, threshold, name)

    def share(self, hits: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return _ratio(hits, wanted)


class F1Score(_Retrieval):
    """2 P R / (P + R) of precision P and recall R. average, threshold and mask as for Precision."""

    def __init__(
        self, average: str | None = "binary", threshold: float | None = None, name: str = "f1"
    ) -> None:
        super().__init__(average, threshold, name)

    def share(self, hits: np.ndarray, found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        return _ratio(2 * hits, found + wanted)


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a / np.where(b > 0, b, 1)


def _ones(like: Array, kept: Array | None) -> Array:
    """What each position counts: 1, or 0 where masked."""
    xp = namespace(like)
    return xp.ones(like.shape, np.int32) if kept is None else kept.astype(np.int32)


def _counts(classes: Array, amounts: Array, length: int) -> Array:
    """The sum of `amounts` of each class."""
    xp = namespace(classes)
    out = xp.zeros(length, np.int32)  # CuPy adds no int64 this way
    xp.add.at(out, classes.reshape(-1), amounts.reshape(-1))
    return out


class ConfusionMatrix(Metric):
    """How often target i was taken for j: an array (classes, classes) of integers at [i, j].

    y_true: integers (...); y_pred: (..., classes), of which the largest entry is taken, or integers
    (...). mask: (...). Its result is an array, which `fit`'s history, one of numbers, cannot take:
    give it to `evaluate`.
    """

    def __init__(self, classes: int, name: str = "confusion_matrix") -> None:
        super().__init__(name)
        self.classes = classes

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any]:
        if y_pred.dtype.kind == "f":
            y_pred = y_pred.argmax(axis=-1)
        kept = positions(self.name, y_true, mask, y_pred.shape)
        pair = [
            _classes(self.name, a, kept, self.classes, name)
            for a, name in ((y_true, "y_true"), (y_pred, "y_pred"))
        ]
        cells = pair[0].astype(np.int64) * self.classes + pair[1]
        flat = _counts(cells, _ones(cells, kept), self.classes**2)
        return (flat.reshape(self.classes, self.classes),)

    def compute(self, *sums: np.ndarray) -> np.ndarray:
        return sums[0]

    def result(self) -> np.ndarray:
        """The counts so far. Waits for the device."""
        nothing = np.zeros((self.classes, self.classes), np.int64)
        return nothing if self._sums is None else super().result()


class AUC(Metric):
    """The area under the ROC curve: the chance that a target 1 scores above a target 0, where equal
    scores count half (Hanley and McNeil 1982).

    y_true: 0 or 1; y_pred: probabilities of that shape (pass logits through md.sigmoid); mask: that
    shape, or its leading axes. Scores count as equal within 1 / bins. nan without both targets.
    """

    def __init__(self, bins: int = 10_000, name: str = "auc") -> None:
        super().__init__(name)
        self.bins = bins

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, Any]:
        kept = positions(self.name, y_true, mask, y_pred.shape)
        if type(y_pred) is np.ndarray:
            shown = y_pred if kept is None else y_pred[kept]
            if shown.size and not (shown.min() >= 0 and shown.max() <= 1):
                raise ValueError(f"{self.name}: y_pred: expected probabilities; use md.sigmoid")
        scores = y_pred if kept is None else namespace(kept).where(kept, y_pred, 0)
        cells = (scores.astype(np.float64) * self.bins).astype(np.int64).clip(0, self.bins - 1)
        ones, is_one = _ones(cells, kept), y_true > 0.5
        return tuple(_counts(cells, ones * some, self.bins) for some in (is_one, ~is_one))

    def compute(self, *sums: np.ndarray) -> float:
        ones, zeros = (a.astype(np.float64) for a in sums)
        pairs = ones.sum() * zeros.sum()
        below = np.cumsum(zeros) - zeros / 2
        return float(ones @ below / pairs) if pairs else math.nan
