"""Normalization layers."""

from __future__ import annotations

from typing import Any

from minidl.functional.normalization import layer_normalization
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class LayerNormalization(Layer):
    """Zero mean and unit variance over the last axis, then `* gamma + beta`, both (size,).

    center, scale: whether there is a `beta`, a `gamma`. Built at once where `input_size` is given.
    Ba, Kiros and Hinton 2016.
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        input_size: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        if input_size is not None:
            self.build((None, input_size))

    def build(self, input_shape: Any) -> None:
        size = (input_shape[-1],)
        self.gamma = self.add_weight(size, "ones", "gamma") if self.scale else None
        self.beta = self.add_weight(size, "zeros", "beta") if self.center else None

    def call(self, x: Any) -> Tensor:
        return layer_normalization(x, self.gamma, self.beta, self.epsilon)
