"""Losses to give to `fit`: `loss(y_true, y_pred, mask=None)` -> a scalar Tensor. Keras's names.

The functions behind them, with the order (predictions, targets), are in minidl.functional.losses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.functional import losses as functional
from minidl.graph import Tensor, unwrap


class Loss:
    """Base of losses: subclasses write `call(y_true, y_pred, mask)` -> Tensor.

    reduction: "mean" over what the mask keeps, "sum" or "none".
    """

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: write call(self, y_true, y_pred, mask)")

    def __call__(self, y_true: Any, y_pred: Any, mask: Any = None) -> Tensor:
        return self.call(y_true, y_pred, mask)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class MeanSquaredError(Loss):
    """The mean of (y_true - y_pred)^2; both of one shape, mask of that or of its leading axes."""

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.mean_squared_error(y_pred, y_true, mask, self.reduction)


class BinaryCrossentropy(Loss):
    """Cross entropy of targets in [0, 1] and probabilities, or logits (stabler) if `from_logits`.

    y_true and y_pred have one shape. Raises ValueError for probabilities outside [0, 1] (seen on
    the CPU only).
    """

    def __init__(self, from_logits: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.from_logits = from_logits

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        if not self.from_logits:
            p = _probabilities("BinaryCrossentropy", y_pred)
            y_pred = ops.log(p) - ops.log(1 - p)
        return functional.binary_cross_entropy_with_logits(y_pred, y_true, mask, self.reduction)


class SparseCategoricalCrossentropy(Loss):
    """Cross entropy of integer targets (...) and class probabilities (..., classes), or logits
    (stabler) if `from_logits`.

    Raises ValueError for probabilities outside [0, 1] and targets out of range (seen on the CPU
    only).
    """

    def __init__(self, from_logits: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.from_logits = from_logits

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        if not self.from_logits:
            y_pred = ops.log(_probabilities("SparseCategoricalCrossentropy", y_pred))
        return functional.softmax_cross_entropy(y_pred, y_true, mask, self.reduction)


def _probabilities(name: str, y_pred: Any) -> Any:
    """Probabilities kept off 0 and 1 by 1e-7, where logarithms end."""
    data = unwrap(y_pred)
    if type(data) is np.ndarray and data.size and not (data.min() >= 0 and data.max() <= 1):
        raise ValueError(
            f"{name}: y_pred: expected probabilities, got {data.min():.3g} to {data.max():.3g}; "
            "pass from_logits=True for logits"
        )
    return ops.clip(y_pred, 1e-7, 1 - 1e-7)
