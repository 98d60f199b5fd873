"""Functions made of ops, without state."""

from minidl.functional import crf
from minidl.functional.activations import activation
from minidl.functional.losses import (
    binary_cross_entropy_with_logits,
    mean_squared_error,
    softmax_cross_entropy,
)
from minidl.functional.normalization import layer_normalization

__all__ = [
    "activation", "binary_cross_entropy_with_logits", "crf", "layer_normalization",
    "mean_squared_error", "softmax_cross_entropy",
]  # fmt: skip
