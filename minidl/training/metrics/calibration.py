"""Calibration: does what is said with 80 % turn out right 8 times in 10?"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minidl import ops
from minidl.backend import Array, namespace
from minidl.training.metrics.base import Metric, positions
from minidl.training.metrics.classification import true_classes


class Reliability(NamedTuple):
    """For each bin of confidence: the mean confidence, the accuracy (nan where nothing fell into
    the bin), and how many predictions did; each (bins,)."""

    confidence: np.ndarray
    accuracy: np.ndarray
    counts: np.ndarray


class ExpectedCalibrationError(Metric):
    """The mean distance of confidence and accuracy, over `bins` equal intervals of confidence,
    weighed by the predictions in each (Guo et al. 2017, eq. 3): from 0 (calibrated) to 1.

    y_true: integers (...), or distributions (..., classes), of which the largest entry is taken;
    y_pred: probabilities (..., classes), or logits with `from_logits`. The confidence is that in
    the class with the largest entry. mask: (...). `reliability()` gives the bins, for a diagram.
    """

    def __init__(
        self, bins: int = 15, from_logits: bool = False, name: str = "calibration_error"
    ) -> None:
        if bins < 1:
            raise ValueError(f"{name}: bins: expected 1 or more, got {bins}")
        super().__init__(name)
        self.bins, self.from_logits = bins, from_logits

    def measure(self, y_true: Array, y_pred: Array, mask: Array | None) -> tuple[Any, ...]:
        xp = namespace(y_pred)
        targets = true_classes(y_true, y_pred)
        kept = positions(self.name, targets, mask, y_pred.shape[:-1])
        if self.from_logits:
            p = ops.softmax(y_pred)
        else:
            p = y_pred
            self._check(p, kept)
        confidence = p.max(axis=-1).astype(np.float64)
        # Bin m is ((m - 1) / bins, m / bins]. One-hot, not a scatter: sums in a fixed order.
        # A NaN falls into the first, so that the result is NaN as well.
        cells = xp.where(xp.isnan(confidence), 0, xp.ceil(confidence * self.bins) - 1)
        falls = cells[..., None].clip(0, self.bins - 1) == xp.arange(self.bins)
        if kept is not None:
            falls = falls & kept[..., None]
        right = (p.argmax(axis=-1) == targets)[..., None]
        axes = tuple(range(falls.ndim - 1))
        surety = xp.where(falls, confidence[..., None], 0).sum(axis=axes)
        return surety, (falls & right).sum(axis=axes), falls.sum(axis=axes)

    def _check(self, p: Array, kept: Array | None) -> None:
        """Probabilities, seen on the CPU only."""
        shown = p if kept is None or type(p) is not np.ndarray else p[kept]
        if type(p) is np.ndarray and shown.size and not (shown.min() >= 0 and shown.max() <= 1):
            raise ValueError(
                f"{self.name}: y_pred: expected probabilities, got {shown.min():.3g} to "
                f"{shown.max():.3g}; pass from_logits=True for logits"
            )

    def compute(self, *sums: np.ndarray) -> float:
        surety, right, count = sums
        return float(np.abs(surety - right).sum() / count.sum()) if count.any() else math.nan

    def reliability(self) -> Reliability:
        """The bins so far. Waits for the device."""
        sums = [np.asarray(a) for a in self.state_dict()["sums"] or [np.zeros(self.bins)] * 3]
        surety, right, count = sums
        count = count.astype(np.int64)
        with np.errstate(invalid="ignore"):
            return Reliability(surety / count, right / count, count)
