"""Functions as layers: activations, with and without parameters, and functions of one's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import ops, regularizers
from minidl.functional.activations import activation as get_activation
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class Activation(Layer):
    """activation(x), by name ("relu", "softmax", ...) or as a function."""

    def __init__(self, activation: Any) -> None:
        self.activation = activation
        self._activate = get_activation(activation)

    def call(self, x: Any) -> Any:
        return self._activate(x)


class ReLU(Layer):
    """x from `threshold` on, at most `max_value`; below it negative_slope * (x - threshold)."""

    def __init__(
        self, max_value: float | None = None, negative_slope: float = 0.0, threshold: float = 0.0
    ) -> None:
        self.max_value = max_value
        self.negative_slope = negative_slope
        self.threshold = threshold

    def call(self, x: Any) -> Tensor:
        if self.threshold:
            below = self.negative_slope * (x - self.threshold)
            out = ops.where(ops.greater_equal(x, self.threshold), x, below)
        else:
            slope = self.negative_slope
            out = ops.leaky_relu(x, slope) if slope else ops.relu(x)
        return out if self.max_value is None else ops.minimum(out, self.max_value)


class LeakyReLU(Layer):
    """x where x > 0, else negative_slope * x."""

    def __init__(self, negative_slope: float = 0.3) -> None:
        self.negative_slope = negative_slope

    def call(self, x: Any) -> Tensor:
        return ops.leaky_relu(x, self.negative_slope)


class ELU(Layer):
    """x where x > 0, else alpha * (exp(x) - 1) (Clevert et al. 2015)."""

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def call(self, x: Any) -> Tensor:
        return ops.elu(x, self.alpha)


class PReLU(Layer):
    """x where x > 0, else alpha * x, with a trained `alpha` (He et al. 2015, eq. 1).

    `alpha` has the shape of an item of the input, 1 along `shared_axes` (1 is the first after the
    batch): shared_axes=(1,) over (batch, time, channels) gives one a channel. Built at once where
    `input_size`, the channels of an input with `shared_axes` before them, is given.
    """

    def __init__(
        self,
        alpha_initializer: Any = "zeros",
        alpha_regularizer: Any = None,
        shared_axes: tuple[int, ...] = (),
        input_size: int | None = None,
    ) -> None:
        self.shared_axes = tuple(shared_axes)
        if any(axis < 1 for axis in self.shared_axes):
            raise ValueError(
                f"PReLU: shared_axes: expected axes from 1, the first after the batch, got "
                f"{shared_axes}"
            )
        self._alpha = alpha_initializer, alpha_regularizer
        if input_size is not None:
            self.build((None, *(1 for _ in self.shared_axes), input_size))

    def build(self, input_shape: Any) -> None:
        initializer, regularizer = self._alpha
        shape = [1 if i in self.shared_axes else n for i, n in enumerate(input_shape)][1:]
        self.alpha = self.add_weight(tuple(shape), initializer, "alpha", regularizer=regularizer)

    def call(self, x: Any) -> Tensor:
        return ops.where(ops.greater(x, 0), x, self.alpha * x)


class Softmax(Layer):
    """exp(x) / sum(exp(x)) along `axis`, over what `mask` keeps (it broadcasts against x).

    What is masked gets 0, and so does all of a row in which nothing is kept.
    """

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def call(self, x: Any, mask: Any = None) -> Tensor:
        if mask is not None:
            x = ops.where(mask, x, -np.inf)
        return ops.softmax(x, self.axis)


class Lambda(Layer):
    """function(*inputs). Parameters that the function uses do not belong to this layer."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def call(self, *inputs: Any) -> Any:
        return self.function(*inputs)


class Identity(Layer):
    """Its input."""

    def call(self, x: Any) -> Any:
        return x


class ActivityRegularization(Layer):
    """Its input; a batch adds (l1 * sum(|x|) + l2 * sum(x^2)) / items to the model's loss."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = l1
        self.l2 = l2
        self.activity_regularizer = regularizers.L1L2(l1, l2)

    def call(self, x: Any) -> Any:
        return x
