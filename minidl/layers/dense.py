"""Dense: a linear map of the last axis."""

from __future__ import annotations

from typing import Any

from minidl import ops, regularizers
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
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        input_size: int | None = None,
    ) -> None:
        self.units = units
        self.activation = activation
        self.use_bias = use_bias
        self._activate = get_activation(activation)
        self._kernel = kernel_initializer, "kernel", None, kernel_regularizer, kernel_constraint
        self._bias = bias_initializer, "bias", None, bias_regularizer, bias_constraint
        self.activity_regularizer = regularizers.get(activity_regularizer)
        if input_size is not None:
            self.build((None, input_size))

    def build(self, input_shape: Any) -> None:
        self.kernel = self.add_weight((input_shape[-1], self.units), *self._kernel)
        self.bias = self.add_weight((self.units,), *self._bias) if self.use_bias else None

    def call(self, x: Any) -> Tensor:
        out = ops.matmul(x, self.kernel)
        return self._activate(out if self.bias is None else out + self.bias)
