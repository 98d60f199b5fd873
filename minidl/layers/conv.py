"""Convolution layers, channels last."""

from __future__ import annotations

from typing import Any

from minidl import ops, regularizers
from minidl.errors import ShapeError
from minidl.functional.activations import activation as get_activation
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class Conv1D(Layer):
    """activation(convolution over time + bias): (batch, time, channels) -> (batch, steps, filters).

    `kernel` is (kernel_size, channels / groups, filters), `bias` (filters,). padding: "valid",
    "same", "causal", n or (left, right). Built at once where `input_size`, the number of channels,
    is given. Raises ShapeError unless `groups` divides channels and filters.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        strides: int = 1,
        padding: str | int | tuple[int, int] = "valid",
        dilation_rate: int = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        input_size: int | None = None,
    ) -> None:
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.dilation_rate = dilation_rate
        self.groups = groups
        self.activation = activation
        self.use_bias = use_bias
        self._fused = "relu" if activation in ("relu", ops.relu) else None
        self._activate = get_activation(None if self._fused else activation)
        self._kernel = kernel_initializer, "kernel", None, kernel_regularizer
        self._bias = bias_initializer, "bias", None, bias_regularizer
        self.activity_regularizer = regularizers.get(activity_regularizer)
        if input_size is not None:
            self.build((None, None, input_size))

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if channels % self.groups or self.filters % self.groups:
            raise ShapeError(
                f"Conv1D: groups: expected a divisor of {channels} channels and {self.filters} "
                f"filters, got {self.groups}"
            )
        shape = (self.kernel_size, channels // self.groups, self.filters)
        self.kernel = self.add_weight(shape, *self._kernel)
        self.bias = self.add_weight((self.filters,), *self._bias) if self.use_bias else None

    def call(self, x: Any) -> Tensor:
        out = ops.conv1d(
            x, self.kernel, self.bias, self.strides, self.padding, self.dilation_rate,
            self.groups, self._fused,
        )  # fmt: skip
        return self._activate(out)
