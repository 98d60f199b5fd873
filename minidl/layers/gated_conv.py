"""GatedConv1D: a convolution along time whose output is let through by a gate."""

from __future__ import annotations

from typing import Any

from minidl import random
from minidl.backend import device_of
from minidl.errors import ShapeError
from minidl.graph import Tensor, unwrap
from minidl.layers.layer import Layer
from minidl.ops.gated_convolution import gated_conv1d


class GatedConv1D(Layer):
    """x * (1 - sigmoid(g)) + v * sigmoid(g), the value v and the gate's score g being convolutions
    of x: (batch, time, channels) -> (batch, time, filters). Without `skip`, v * sigmoid(g).

    `kernel` is (kernel_size, channels, 2 * filters), `bias` (2 * filters,): the values first, then
    the scores. padding: "same" or "causal". dropout: while training, each g is 0 with this
    probability (its gate half open), else g / (1 - dropout). Positions that `mask` (batch, time)
    leaves out are 0 going in and coming out. Built at once where `input_size`, the number of
    channels, is given. Raises ShapeError where `skip` meets other than `filters` channels. Without
    skip it is Dauphin et al. 2017, eq. 1; with it, a highway (Srivastava, Greff and Schmidhuber
    2015, eq. 3).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        dilation_rate: int = 1,
        dropout: float = 0.0,
        skip: bool = True,
        padding: str = "same",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        input_size: int | None = None,
    ) -> None:
        if not 0 <= dropout < 1:
            raise ValueError(f"GatedConv1D: dropout: expected a number in [0, 1), got {dropout}")
        self.filters = filters
        self.kernel_size = kernel_size
        self.dilation_rate = dilation_rate
        self.dropout = dropout
        self.skip = skip
        self.padding = padding
        self.use_bias = use_bias
        self._initializers = kernel_initializer, bias_initializer
        if input_size is not None:
            self.build((None, None, input_size))

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if self.skip and channels != self.filters:
            raise ShapeError(
                f"GatedConv1D: filters: expected {channels}, as many as there are channels, got "
                f"{self.filters}; use skip=False, or a Dense before it"
            )
        kernel_initializer, bias_initializer = self._initializers
        shape = (self.kernel_size, channels, 2 * self.filters)
        self.kernel = self.add_weight(shape, kernel_initializer, "kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight((2 * self.filters,), bias_initializer, "bias")

    def call(self, x: Any, mask: Any = None) -> Tensor:
        gate_mask = None
        if self.training and self.dropout > 0:
            shape = (*x.shape[:2], self.filters)
            gate_mask = random.generator().bernoulli(1 - self.dropout, shape, device_of(unwrap(x)))
        return gated_conv1d(
            x, self.kernel, self.bias, mask, self.padding, self.dilation_rate, self.skip,
            gate_mask, self.dropout,
        )  # fmt: skip
