"""Layers made of layers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minidl.layers.activation import Softmax
from minidl.layers.layer import Layer


class Sequential(Layer):
    """Layers one after another; `model[0]` is the first, and its kernel is named `0.kernel`.

    model(x, mask) hands the mask (batch, time) to each layer that takes one of its input's steps
    (`mask`, in attention `value_mask`), as long as the input is (batch, time, ...): so padded
    sequences go through recurrent layers, attention and pooling.
    """

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

    def call(self, x: Any, mask: Any = None) -> Any:
        if isinstance(mask, tuple):  # a Mix, which would go unnoticed
            raise TypeError(
                f"Sequential: mask: expected an array, got {type(mask).__name__}; a model that is "
                "trained with ManifoldMixup belongs into md.layers.ManifoldMixing(model, names)"
            )
        for layer in self.layers:
            steps = mask is not None and np.ndim(x) > 2 and np.shape(x)[:2] == np.shape(mask)
            name = _mask_name(layer) if steps else None
            x = layer(x) if name is None else layer(x, **{name: mask})
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Layer:
        return self.layers[index]


def _mask_name(layer: Layer) -> str | None:
    """The argument by which `layer` takes a mask of its input's steps."""
    if isinstance(layer, Softmax):
        return None  # its mask is one of entries
    takes = inspect.signature(layer.call).parameters
    return next((name for name in ("mask", "value_mask") if name in takes), None)
