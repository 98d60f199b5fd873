"""Dropout: noise while training only."""

from __future__ import annotations

from typing import Any

from minidl import random
from minidl.backend import current_dtype, device_of
from minidl.errors import ShapeError
from minidl.graph import unwrap, wrap
from minidl.layers.layer import Layer


class Dropout(Layer):
    """While training, each entry is 0 with probability `rate`, else x / (1 - rate); later x itself.

    noise_shape: draw for this shape (None: the input's; sides that are None too) and broadcast, so
    (None, 1, None) drops whole channels of (batch, time, channels). Raises ShapeError for an input
    of other dimensions. Srivastava et al. 2014, with the scale on the training side.
    """

    def __init__(self, rate: float, noise_shape: tuple[int | None, ...] | None = None) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"Dropout: rate: expected a number in [0, 1), got {rate}")
        self.rate = rate
        self.noise_shape = noise_shape

    def call(self, x: Any) -> Any:
        if not self.training or self.rate == 0:
            return x
        shape = x.shape
        if self.noise_shape is not None:
            if len(self.noise_shape) != len(shape):
                raise ShapeError(
                    f"{type(self).__name__}: x: expected {len(self.noise_shape)} axes, as many as "
                    f"noise_shape {self.noise_shape} has, got shape {shape}"
                )
            shape = tuple(n or s for n, s in zip(self.noise_shape, x.shape, strict=True))
        kept = random.generator().bernoulli(1 - self.rate, shape, device_of(unwrap(x)))
        weights = kept.astype(x.dtype if x.dtype.kind == "f" else current_dtype())
        weights *= 1 / (1 - self.rate)
        return x * wrap(weights, None, None)
