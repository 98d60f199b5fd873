"""Activation: a function as a layer."""

from __future__ import annotations

from typing import Any

from minidl.functional.activations import activation as get_activation
from minidl.layers.layer import Layer


class Activation(Layer):
    """activation(x), by name ("relu", "softmax", ...) or as a function."""

    def __init__(self, activation: Any) -> None:
        self.activation = activation
        self._activate = get_activation(activation)

    def call(self, x: Any) -> Any:
        return self._activate(x)
