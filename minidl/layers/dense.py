"""Dense: a linear map of the last axis."""

from __future__ import annotations

from typing import Any

from minidl import ops
from minidl.functional.activations import activation as get_activation
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class Dense(Layer):
    """activation(x @ kernel + bias), over the last axis: (..., inputs) -> (..., units).

    `kernel` is (inputs, units), `bias` (units,). Built at once where `input_size` is given.
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        input_size: int | None = None,
    ) -> None:
        self.units = units
        self.activation = activation
        self.use_bias = use_bias
        self._activate = get_activation(activation)
        self._initializers = kernel_initializer, bias_initializer
        if input_size is not None:
            self.build((None, input_size))

    def build(self, input_shape: Any) -> None:
        kernel_initializer, bias_initializer = self._initializers
        self.kernel = self.add_weight((input_shape[-1], self.units), kernel_initializer, "kernel")
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight((self.units,), bias_initializer, "bias")

    def call(self, x: Any) -> Tensor:
        out = ops.matmul(x, self.kernel)
        return self._activate(out if self.bias is None else out + self.bias)
