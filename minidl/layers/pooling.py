"""Pooling over time, channels last."""

from __future__ import annotations

from typing import Any

from minidl import ops
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class GlobalAveragePooling1D(Layer):
    """The mean over time: (batch, time, n) -> (batch, n), of the steps that `mask` (batch, time)
    keeps; an empty row gives zeros."""

    def call(self, x: Any, mask: Any = None) -> Tensor:
        return ops.mean_over_time(x, mask)


class GlobalMaxPooling1D(Layer):
    """The maximum over time: (batch, time, n) -> (batch, n), of the steps that `mask` (batch, time)
    keeps; an empty row gives zeros. Steps that tie share the gradient."""

    def call(self, x: Any, mask: Any = None) -> Tensor:
        return ops.max_over_time(x, mask)


class MaxPooling1D(Layer):
    """The maximum of each window of `pool_size` steps: (batch, time, n) -> (batch, steps, n).

    A window begins every `strides` steps (None: pool_size). padding: "valid" for whole windows
    only, "same" for ceil(time / strides) of them, cut off at the ends.
    """

    def __init__(
        self, pool_size: int = 2, strides: int | None = None, padding: str = "valid"
    ) -> None:
        self.pool_size = pool_size
        self.strides = strides
        self.padding = padding

    def call(self, x: Any) -> Tensor:
        return ops.max_pool1d(x, self.pool_size, self.strides, self.padding)


class AveragePooling1D(MaxPooling1D):
    """The mean of each window, as MaxPooling1D; what a window lacks at the ends does not count."""

    def call(self, x: Any) -> Tensor:
        return ops.average_pool1d(x, self.pool_size, self.strides, self.padding)
