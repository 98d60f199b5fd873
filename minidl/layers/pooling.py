"""Pooling over time and over images, channels last."""

from __future__ import annotations

from typing import Any

from minidl import ops
from minidl.graph import Tensor
from minidl.layers.layer import Layer
from minidl.ops.pooling import items_of


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


class MaxPooling2D(Layer):
    """The maximum of each window of an image: (batch, height, width, n) -> (batch, rows, columns,
    n).

    pool_size, strides (None: pool_size): a number or (along height, along width). padding: "valid"
    for whole windows only, "same" for ceil(side / stride) of them along each axis, cut off at the
    edges. Entries that tie share the gradient.
    """

    def __init__(
        self, pool_size: Any = (2, 2), strides: Any = None, padding: str = "valid"
    ) -> None:
        self.pool_size = pool_size
        self.strides = strides
        self.padding = padding

    def call(self, x: Any) -> Tensor:
        return ops.max_pool2d(x, self.pool_size, self.strides, self.padding)


class AveragePooling2D(MaxPooling2D):
    """The mean of each window, as MaxPooling2D; what a window lacks at the edges does not count."""

    def call(self, x: Any) -> Tensor:
        return ops.average_pool2d(x, self.pool_size, self.strides, self.padding)


class GlobalAveragePooling2D(Layer):
    """The mean of an image: (batch, height, width, n) -> (batch, n), or with `keepdims` (batch, 1,
    1, n)."""

    def __init__(self, keepdims: bool = False) -> None:
        self.keepdims = keepdims

    def call(self, x: Any) -> Tensor:
        return self._whole(x, ops.mean_over_time)

    def _whole(self, x: Any, pool: Any) -> Tensor:
        batch, height, width, channels = items_of(type(self).__name__, x, 2)
        out = pool(ops.reshape(x, (batch, height * width, channels)))
        return ops.reshape(out, (batch, 1, 1, channels)) if self.keepdims else out


class GlobalMaxPooling2D(GlobalAveragePooling2D):
    """The maximum of an image, as GlobalAveragePooling2D. Entries that tie share the gradient."""

    def call(self, x: Any) -> Tensor:
        return self._whole(x, ops.max_over_time)
