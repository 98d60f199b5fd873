"""AttentionPooling: a sequence as one vector, the mean of its steps weighted by attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class AttentionPooling(Layer):
    """sum over t of softmax_t(context . tanh(x_t @ kernel)) x_t: (batch, time, n) -> (batch, n).

    `kernel` is (n, units), `context` (units, 1); units None means n. Steps that `mask`
    (batch, time) leaves out have no weight, whatever stands there; an empty row gives zeros. Built
    at once where `input_size`, n, is given. Yang et al. 2016, eq. 5 to 7, without the bias.
    """

    def __init__(
        self,
        units: int | None = None,
        kernel_initializer: Any = "glorot_uniform",
        input_size: int | None = None,
    ) -> None:
        self.units = units
        self._initializer = kernel_initializer
        if input_size is not None:
            self.build((None, None, input_size))

    def build(self, input_shape: Any) -> None:
        size = input_shape[-1]
        units = self.units or size
        self.kernel = self.add_weight((size, units), self._initializer, "kernel")
        self.context = self.add_weight((units, 1), self._initializer, "context")

    def call(self, x: Any, mask: Any = None) -> Tensor:
        if mask is not None:
            x = ops.where(mask[:, :, None], x, 0.0)
        return ops.matmul(self.weights(x, mask)[:, None, :], x)[:, 0]

    def weights(self, x: Any, mask: Any = None) -> Tensor:
        """How much each step counts: (batch, time), a row's sum is 1, or 0 where it is empty."""
        scores = ops.matmul(ops.tanh(ops.matmul(x, self.kernel)), self.context)[:, :, 0]
        if mask is not None:
            scores = ops.where(mask, scores, -np.inf)
        return ops.softmax(scores, axis=-1)
