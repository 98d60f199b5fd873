"""Losses as functions of predictions and targets. None of them broadcasts one against the other.

`mask` is boolean, True = counts; what it leaves out has loss 0 and gradient 0, whatever stands
there, and does not count in the mean. `reduction` is "mean" (over what counts; 0 where nothing
does), "sum" or "none" (a loss for each item).
"""

from minidl.functional.losses.binary import (
    binary_cross_entropy_with_logits,
    binary_focal_with_logits,
)
from minidl.functional.losses.cross_entropy import (
    soft_target_cross_entropy,
    softmax_cross_entropy,
)
from minidl.functional.losses.margins import (
    categorical_hinge,
    contrastive,
    cosine_similarity,
    hinge,
    margin_ranking,
    negative_cosine_similarity,
    squared_hinge,
    triplet_margin,
)
from minidl.functional.losses.regression import (
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_squared_error,
    poisson,
)

__all__ = [
    "binary_cross_entropy_with_logits", "binary_focal_with_logits", "categorical_hinge",
    "contrastive", "cosine_similarity", "hinge", "huber", "kl_divergence", "log_cosh",
    "margin_ranking", "mean_absolute_error", "mean_squared_error", "negative_cosine_similarity",
    "poisson", "soft_target_cross_entropy", "softmax_cross_entropy", "squared_hinge",
    "triplet_margin",
]  # fmt: skip
