"""Losses as functions of predictions and targets. None of them broadcasts one against the other.

`mask` is boolean, True = counts; what it leaves out has loss 0 and gradient 0, whatever stands
there, and does not count in the mean. `reduction` is "mean" (over what counts; 0 where nothing
does), "sum" or "none" (a loss for each item).
"""

from minidl.functional.losses.adversarial import (
    gradient_penalty,
    hinge_critic,
    logistic_critic,
    logistic_generator,
    wasserstein_critic,
    wasserstein_generator,
    zero_centered_penalty,
)
from minidl.functional.losses.binary import (
    binary_cross_entropy_with_logits,
    binary_focal_with_logits,
)
from minidl.functional.losses.cross_entropy import (
    soft_target_cross_entropy,
    softmax_cross_entropy,
)
from minidl.functional.losses.f1 import soft_f1
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
from minidl.functional.losses.metric_learning import (
    batch_triplet,
    center_loss,
    pairwise_distances,
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
    "batch_triplet", "binary_cross_entropy_with_logits", "binary_focal_with_logits",
    "categorical_hinge", "center_loss", "contrastive", "cosine_similarity", "gradient_penalty",
    "hinge", "hinge_critic", "huber", "kl_divergence", "log_cosh", "logistic_critic",
    "logistic_generator", "margin_ranking", "mean_absolute_error", "mean_squared_error",
    "negative_cosine_similarity", "pairwise_distances", "poisson", "soft_f1",
    "soft_target_cross_entropy", "softmax_cross_entropy", "squared_hinge", "triplet_margin",
    "wasserstein_critic", "wasserstein_generator", "zero_centered_penalty",
]  # fmt: skip
