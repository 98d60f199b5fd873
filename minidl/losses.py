"""Losses to give to `fit`: `loss(y_true, y_pred, mask=None)` -> a scalar Tensor. Keras's names.

The functions behind them, with the order (predictions, targets), are in minidl.functional.losses:
there stand the formulas, the shapes and what is raised.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import ops
from minidl.functional import losses as functional
from minidl.functional.losses.checks import (
    as_data,
    class_indices,
    leading_mask,
    setting,
    wide,
)
from minidl.functional.losses.f1 import soft_f1_count
from minidl.functional.losses.metric_learning import batch_triplet_count
from minidl.graph import Tensor, unwrap

__all__ = [
    "BatchTriplet", "BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy",
    "CategoricalHinge", "Contrastive", "CosineSimilarity", "Hinge", "Huber", "KLDivergence",
    "LogCosh", "Loss", "MarginRanking", "MeanAbsoluteError", "MeanSquaredError", "OfOutput",
    "Poisson", "SoftF1", "SparseCategoricalCrossentropy", "SquaredHinge", "TripletMargin",
]  # fmt: skip


class Loss:
    """Base of losses: subclasses write `call(y_true, y_pred, mask)` -> Tensor.

    reduction: "mean" over what the mask keeps, "sum" or "none".
    """

    rows = False  # whether the last axis of y_pred makes one loss
    needs_target = True  # False: `fit` gives None as y_true, and looks for no target of its name

    def __init__(self, reduction: str = "mean") -> None:
        self.reduction = reduction

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__}: write call(self, y_true, y_pred, mask)")

    def __call__(self, y_true: Any, y_pred: Any, mask: Any = None) -> Tensor:
        return self.call(y_true, y_pred, mask)

    def count(self, y_true: Any, y_pred: Any, mask: Any = None) -> Any:
        """What the mean divides by, so that `fit` can weigh batches: a number or a 0-d array.

        As written here the losses that the mask keeps, of one for each entry of y_pred (of the
        first, where it is several), or where `rows` is set for each row. Write your own where
        `call` takes another mean.
        """
        first = y_pred[0] if isinstance(y_pred, (tuple, list)) else y_pred
        shape = np.shape(first)[:-1] if self.rows else np.shape(first)
        if mask is None:
            return math.prod(shape)
        return unwrap(mask).sum() * math.prod(shape[np.ndim(mask) :])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


# --- Classes and labels ---------------------------------------------------------------------------


class BinaryCrossentropy(Loss):
    """Cross entropy of targets in [0, 1] and probabilities, or logits (stabler) if `from_logits`.

    y_true and y_pred have one shape. pos_weight: what a target 1 counts, a number or one for each
    entry of the last axis. Raises ValueError for probabilities outside [0, 1] (seen on the CPU
    only).
    """

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        pos_weight: Any = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.pos_weight = pos_weight

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        logits = y_pred if self.from_logits else _binary_logits(self, y_pred, mask)
        return functional.binary_cross_entropy_with_logits(
            logits, y_true, mask, self.reduction,
            pos_weight=self.pos_weight, label_smoothing=self.label_smoothing,
        )  # fmt: skip


class BinaryFocalCrossentropy(Loss):
    """Focal loss (Lin et al. 2017) of targets in [0, 1] and probabilities, or logits (stabler) if
    `from_logits`.

    apply_class_balancing: weigh targets 1 by alpha and 0 by 1 - alpha. y_true and y_pred have one
    shape. Raises ValueError for probabilities outside [0, 1] (seen on the CPU only).
    """

    def __init__(
        self,
        apply_class_balancing: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.apply_class_balancing = apply_class_balancing
        self.alpha = alpha
        self.gamma = gamma
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        logits = y_pred if self.from_logits else _binary_logits(self, y_pred, mask)
        return functional.binary_focal_with_logits(
            logits, y_true, mask, self.reduction,
            alpha=self.alpha if self.apply_class_balancing else None,
            gamma=self.gamma, label_smoothing=self.label_smoothing,
        )  # fmt: skip


class SparseCategoricalCrossentropy(Loss):
    """Cross entropy of integer targets (...) and class probabilities (..., classes), or logits
    (stabler) if `from_logits`.

    ignore_class: a target that counts as masked. class_weights: (classes,); the mean is then
    weighted. Raises ValueError for probabilities outside [0, 1] and targets out of range (seen on
    the CPU only).
    """

    rows = True

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        class_weights: Any = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.from_logits = from_logits
        self.ignore_class = ignore_class
        self.class_weights = class_weights
        self.label_smoothing = label_smoothing

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        logits = y_pred if self.from_logits else ops.log(_probabilities(self, y_pred, mask))
        return functional.softmax_cross_entropy(
            logits, y_true, mask, self.reduction,
            class_weights=self.class_weights, label_smoothing=self.label_smoothing,
            ignore_index=self.ignore_class,
        )  # fmt: skip

    def count(self, y_true: Any, y_pred: Any, mask: Any = None) -> Any:
        """The sum of the targets' weights, or how many targets are kept."""
        if self.class_weights is None and self.ignore_class is None:
            return super().count(y_true, y_pred, mask)
        logits = wide(as_data(y_pred))
        targets, kept = class_indices("count", y_true, logits, mask, self.ignore_class)
        weights = setting("count", "class_weights", self.class_weights, logits)
        if weights is None:
            return targets.size if kept is None else kept.sum()
        return (weights[targets] if kept is None else weights[targets] * kept).sum()


class CategoricalCrossentropy(Loss):
    """Cross entropy of target distributions (..., classes), one-hot or not, and probabilities of
    that shape, or logits (stabler) if `from_logits`.

    class_weights: (classes,); the mean is over rows all the same. Raises ValueError for
    probabilities outside [0, 1] (seen on the CPU only).
    """

    rows = True

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Any = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.from_logits = from_logits
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        logits = y_pred if self.from_logits else ops.log(_probabilities(self, y_pred, mask))
        return functional.soft_target_cross_entropy(
            logits, y_true, mask, self.reduction,
            class_weights=self.class_weights, label_smoothing=self.label_smoothing,
        )  # fmt: skip


class SoftF1(Loss):
    """1 - the F1 score of each class in the batch, with probabilities for counts; the mean is over
    the classes that y_true has.

    y_true: integers (...) or distributions (..., classes); y_pred: probabilities (..., classes), or
    logits (stabler) if `from_logits`. Fit for large batches, to fine-tune with: see `soft_f1`.
    Raises ValueError for probabilities outside [0, 1] (seen on the CPU only).
    """

    def __init__(self, from_logits: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.from_logits = from_logits

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        logits = y_pred if self.from_logits else ops.log(_probabilities(self, y_pred, mask))
        return functional.soft_f1(logits, y_true, mask, self.reduction)

    def count(self, y_true: Any, y_pred: Any, mask: Any = None) -> Any:
        """How many classes y_true has."""
        return soft_f1_count(y_pred, y_true, mask)


def _binary_logits(loss: Loss, y_pred: Any, mask: Any) -> Any:
    p = _probabilities(loss, y_pred, mask)
    return ops.log(p) - ops.log(1 - p)


def _probabilities(loss: Loss, y_pred: Any, mask: Any) -> Any:
    """Probabilities kept off 0 and 1 by 1e-7, where logarithms end; 1/2 where masked."""
    name = type(loss).__name__
    p = wide(as_data(y_pred))
    mask = leading_mask(name, mask, p, p.shape)
    if mask is not None:
        p = ops.where(mask, p, 0.5)
    data = unwrap(p)
    if type(data) is np.ndarray and data.size and not (data.min() >= 0 and data.max() <= 1):
        raise ValueError(
            f"{name}: y_pred: expected probabilities, got {data.min():.3g} to "
            f"{data.max():.3g}; pass from_logits=True for logits"
        )
    return ops.clip(p, 1e-7, 1 - 1e-7)


# --- Numbers --------------------------------------------------------------------------------------


class MeanSquaredError(Loss):
    """The mean of (y_true - y_pred)^2; both of one shape, mask of that or of its leading axes."""

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.mean_squared_error(y_pred, y_true, mask, self.reduction)


class MeanAbsoluteError(Loss):
    """The mean of |y_true - y_pred|; both of one shape, mask of that or of its leading axes."""

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.mean_absolute_error(y_pred, y_true, mask, self.reduction)


class Huber(Loss):
    """Quadratic up to an error of `delta`, linear beyond (Huber 1964); shapes as above."""

    def __init__(self, delta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.delta = delta

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.huber(y_pred, y_true, mask, self.reduction, delta=self.delta)


class LogCosh(Loss):
    """The mean of log(cosh(y_pred - y_true)); shapes as above."""

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.log_cosh(y_pred, y_true, mask, self.reduction)


class Poisson(Loss):
    """The mean of y_pred - y_true log(y_pred), with y_pred a rate, as in Keras; or, with
    `log_input`, its logarithm (stabler); shapes as above."""

    def __init__(self, log_input: bool = False, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.log_input = log_input

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.poisson(
            y_pred, y_true, mask, self.reduction, log_input=self.log_input, epsilon=1e-7
        )


class KLDivergence(Loss):
    """The sum over classes of t log(t / p), of distributions t = y_true and p = y_pred, both
    (..., classes), kept off 0 by 1e-7; the mean over rows. mask: (...), or its leading axes. Raises
    ValueError for probabilities outside [0, 1] (seen on the CPU only)."""

    rows = True

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        log_p = ops.log(_probabilities(self, y_pred, mask))
        return functional.kl_divergence(log_p, y_true, mask, self.reduction)


# --- Margins and embeddings -----------------------------------------------------------------------


class Hinge(Loss):
    """The mean of max(0, 1 - y_true y_pred), with y_true -1 and 1; both of one shape."""

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.hinge(y_pred, y_true, mask, self.reduction)


class SquaredHinge(Loss):
    """The mean of max(0, 1 - y_true y_pred)^2, with y_true -1 and 1; both of one shape."""

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.squared_hinge(y_pred, y_true, mask, self.reduction)


class CategoricalHinge(Loss):
    """The mean of max(0, 1 + the best other score - the target's), for integers y_true (...) and
    scores y_pred (..., classes)."""

    rows = True

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.categorical_hinge(y_pred, y_true, mask, self.reduction)


class CosineSimilarity(Loss):
    """The mean of -cos(y_true, y_pred) over the last axis, -1 for vectors of one direction."""

    rows = True

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.negative_cosine_similarity(y_pred, y_true, mask, self.reduction)


class Contrastive(Loss):
    """Of Hadsell et al. 2006: y_pred is two embeddings (..., n), y_true (...) 1 where alike."""

    rows = True

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        first, second = _several(self, y_pred, 2)
        return functional.contrastive(
            first, second, y_true, mask, self.reduction, margin=self.margin
        )


class TripletMargin(Loss):
    """Distance to the positive, less that to the negative, plus a margin, or 0: y_pred is anchor,
    positive and negative, each (..., n); y_true is not looked at."""

    rows = True
    needs_target = False

    def __init__(self, margin: float = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        anchor, positive, negative = _several(self, y_pred, 3)
        return functional.triplet_margin(
            anchor, positive, negative, mask, self.reduction, margin=self.margin
        )


class BatchTriplet(Loss):
    """Triplets found in the batch: y_pred is embeddings (n, d), y_true their labels (n,).

    mining: "semi-hard", "batch-hard" or "batch-all"; margin: a number, or "soft"; squared: squared
    distances. See `minidl.functional.batch_triplet`. Batches need several items of a label.
    """

    def __init__(
        self,
        margin: float | str = 0.2,
        mining: str = "semi-hard",
        squared: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.margin = margin
        self.mining = mining
        self.squared = squared

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return functional.batch_triplet(
            y_pred, y_true, mask, self.reduction,
            margin=self.margin, mining=self.mining, squared=self.squared,
        )  # fmt: skip

    def count(self, y_true: Any, y_pred: Any, mask: Any = None) -> Any:
        """The number of triplets, anchors or pairs that the mean is over."""
        return batch_triplet_count(y_pred, y_true, mask, self.margin, self.mining, self.squared)


class MarginRanking(Loss):
    """The mean of max(0, margin - y_true (first - second)), where y_pred is the two scores and
    y_true 1 if the first should be larger, -1 if the second; all of one shape."""

    def __init__(self, margin: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.margin = margin

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        first, second = _several(self, y_pred, 2)
        return functional.margin_ranking(
            first, second, y_true, mask, self.reduction, margin=self.margin
        )


# --- No target ------------------------------------------------------------------------------------


class OfOutput(Loss):
    """`function(y_pred)` -> a scalar, of an output that has no target: a loss that the model has
    computed itself, or a penalty. By default its mean. Batches count by their items."""

    needs_target = False
    count = None  # type: ignore[assignment]

    def __init__(self, function: Callable[[Any], Tensor] = ops.mean) -> None:
        super().__init__()
        self.function = function

    def call(self, y_true: Any, y_pred: Any, mask: Any) -> Tensor:
        return self.function(y_pred)


def _several(loss: Loss, y_pred: Any, count: int) -> Any:
    if not isinstance(y_pred, (tuple, list)) or len(y_pred) != count:
        got = f"{len(y_pred)}" if isinstance(y_pred, (tuple, list)) else type(y_pred).__name__
        raise ValueError(
            f"{type(loss).__name__}: y_pred: expected a tuple of {count} outputs, got {got}"
        )
    return y_pred
