"""Functions made of ops, without state."""

from minidl.functional import attention, crf, recurrent, spectral
from minidl.functional.activations import activation
from minidl.functional.channel_normalization import batch_normalization, group_normalization
from minidl.functional.losses import (
    batch_triplet,
    binary_cross_entropy_with_logits,
    binary_focal_with_logits,
    categorical_hinge,
    center_loss,
    contrastive,
    cosine_similarity,
    gradient_penalty,
    hinge,
    hinge_critic,
    huber,
    kl_divergence,
    log_cosh,
    logistic_critic,
    logistic_generator,
    margin_ranking,
    mean_absolute_error,
    mean_squared_error,
    negative_cosine_similarity,
    pairwise_distances,
    poisson,
    soft_f1,
    soft_target_cross_entropy,
    softmax_cross_entropy,
    squared_hinge,
    triplet_margin,
    wasserstein_critic,
    wasserstein_generator,
    zero_centered_penalty,
)
from minidl.functional.normalization import layer_normalization

__all__ = [
    "activation", "attention", "batch_normalization", "batch_triplet",
    "binary_cross_entropy_with_logits", "binary_focal_with_logits", "categorical_hinge",
    "center_loss", "contrastive", "cosine_similarity", "crf", "gradient_penalty",
    "group_normalization", "hinge", "hinge_critic", "huber", "kl_divergence",
    "layer_normalization", "log_cosh", "logistic_critic", "logistic_generator",
    "margin_ranking", "mean_absolute_error", "mean_squared_error", "negative_cosine_similarity",
    "pairwise_distances", "poisson", "recurrent", "soft_f1", "soft_target_cross_entropy",
    "softmax_cross_entropy", "spectral", "squared_hinge", "triplet_margin", "wasserstein_critic",
    "wasserstein_generator", "zero_centered_penalty",
]  # fmt: skip
