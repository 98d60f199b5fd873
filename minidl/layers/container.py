"""Layers made of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from minidl.layers.layer import Layer


class Sequential(Layer):
    """Layers one after another; `model[0]` is the first, and its kernel is named `0.kernel`."""

    _inline = ("layers",)

    def __init__(self, layers: Sequence[Layer] = ()) -> None:
        self.layers: list[Layer] = []
        for layer in layers:
            self.add(layer)

    def add(self, layer: Layer) -> None:
        """Append a layer. Raises TypeError for anything else."""
        if not isinstance(layer, Layer):
            raise TypeError(
                f"Sequential: expected a Layer, got {layer!r}; wrap a function in Activation"
            )
        self.layers.append(layer)

    def call(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]
