"""What a Lipschitz constant proves of a classification."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.errors import ShapeError
from minidl.graph import Tensor


def certified_radius(logits: Any, bound: Any, labels: Any = None) -> np.ndarray:
    """How far each input may be moved, in any direction, without another decision: (batch,).

    margin / (sqrt(2) * bound), where the margin is between the largest and the second of `logits`
    (batch, classes); or, with `labels` (batch,), between the right one and the largest other, and 0
    where the decision is wrong: right decisions stay right. bound: a Lipschitz constant of the
    logits, a number or a `Report`. When x moves by d the pair of two logits moves by at most
    bound * d, hence their difference by at most sqrt(2) * bound * d (Tsuzuku et al. 2018, prop. 1).
    Raises ShapeError for other shapes, ValueError for a bound below 0 and labels out of range.
    """
    values = np.asarray(logits.numpy() if isinstance(logits, Tensor) else logits, np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise ShapeError(
            f"certified_radius: logits: expected (batch, classes) of 2 classes or more, got "
            f"{values.shape}; give one logit a class"
        )
    constant = float(bound)
    if not constant >= 0:
        raise ValueError(f"certified_radius: bound: expected a number >= 0, got {constant}")
    chosen = values.argmax(axis=1) if labels is None else np.asarray(labels)
    if chosen.shape != values.shape[:1]:
        raise ShapeError(
            f"certified_radius: labels: expected shape {values.shape[:1]}, got {chosen.shape}; "
            "give one an item"
        )
    if chosen.size and (
        chosen.dtype.kind not in "iu" or chosen.min() < 0 or chosen.max() >= values.shape[1]
    ):
        raise ValueError(
            f"certified_radius: labels: expected integers from 0 to {values.shape[1] - 1}, got "
            f"{chosen.dtype} from {chosen.min()} to {chosen.max()}"
        )
    rows = np.arange(len(values))
    others = values.copy()
    others[rows, chosen] = -np.inf
    margin = np.maximum(values[rows, chosen] - others.max(axis=1), 0)
    if constant == 0:
        return np.where(margin > 0, np.inf, 0.0)
    return margin / (math.sqrt(2) * constant)
