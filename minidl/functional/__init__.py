"""Functions made of ops, without state."""

from minidl.functional import attention, crf, recurrent
from minidl.functional.activations import activation
from minidl.functional.channel_normalization import batch_normalization, group_normalization
from minidl.functional.losses import (
    binary_cross_entropy_with_logits,
    binary_focal_with_logits,
    categorical_hinge,
    contrastive,
    cosine_similarity,
    hinge,
    huber,
    kl_divergence,
    log_cosh,
    margin_ranking,
    mean_absolute_error,
    mean_squared_error,
    negative_cosine_similarity,
    poisson,
    soft_target_cross_entropy,
    softmax_cross_entropy,
    squared_hinge,
    triplet_margin,
)
from minidl.functional.normalization import layer_normalization

__all__ = [
    "activation", "attention", "batch_normalization", "binary_cross_entropy_with_logits",
    "binary_focal_with_logits", "categorical_hinge", "contrastive", "cosine_similarity", "crf",
    "group_normalization", "hinge", "huber", "kl_divergence", "layer_normalization", "log_cosh",
    "margin_ranking", "mean_absolute_error", "mean_squared_error", "negative_cosine_similarity",
    "poisson", "recurrent", "soft_target_cross_entropy", "softmax_cross_entropy", "squared_hinge",
    "triplet_margin",
]  # fmt: skip
