"""Layers that change the shape of each item, and nothing else. The first axis is the batch."""

from __future__ import annotations

import math
from typing import Any

from minidl import ops
from minidl.errors import ShapeError
from minidl.graph import Tensor
from minidl.layers.layer import Layer
from minidl.ops.shape import count_of, shape_of


class Flatten(Layer):
    """(batch, ...) -> (batch, n)."""

    def call(self, x: Any) -> Tensor:
        shape = shape_of(x)
        return ops.reshape(x, (shape[0], math.prod(shape[1:])))


class Reshape(Layer):
    """(batch, ...) -> (batch, *target_shape); one side of it may be -1: what is left."""

    def __init__(self, target_shape: tuple[int, ...]) -> None:
        self.target_shape = tuple(target_shape)

    def call(self, x: Any) -> Tensor:
        shape, target = shape_of(x), self.target_shape
        if target.count(-1) == 1:  # by hand: for an empty batch -1 could be anything
            known = -math.prod(target)
            target = tuple(math.prod(shape[1:]) // max(1, known) if n < 0 else n for n in target)
        return ops.reshape(x, (shape[0], *target))


class Permute(Layer):
    """The axes of each item in the order `dims`, counted from 1: (2, 1) swaps the first two."""

    def __init__(self, dims: tuple[int, ...]) -> None:
        self.dims = tuple(dims)
        if sorted(self.dims) != list(range(1, len(self.dims) + 1)):
            raise ValueError(
                f"Permute: dims: expected the numbers from 1 to {len(self.dims)} in some order, "
                f"got {dims}; the batch is axis 0, and stays"
            )

    def call(self, x: Any) -> Tensor:
        return ops.transpose(x, (0, *self.dims))


class RepeatVector(Layer):
    """(batch, features) -> (batch, n, features), the same at each of the n steps."""

    def __init__(self, n: int) -> None:
        self.n = n

    def call(self, x: Any) -> Tensor:
        return ops.repeat(ops.expand_dims(x, 1), self.n, axis=1)


class UpSampling1D(Layer):
    """Each step `size` times: (batch, time, n) -> (batch, size * time, n)."""

    def __init__(self, size: int = 2) -> None:
        self.size = size

    def call(self, x: Any) -> Tensor:
        return ops.repeat(x, self.size, axis=1)


class ZeroPadding1D(Layer):
    """Zeros before and after each sequence (batch, time, n): padding is a number or a pair."""

    def __init__(self, padding: int | tuple[int, int] = 1) -> None:
        self.padding = padding

    def call(self, x: Any) -> Tensor:
        return ops.pad(x, ((0, 0), _pair(self, "padding"), (0, 0)))


class Cropping1D(Layer):
    """Sequences (batch, time, n) without their first and last steps: cropping is a number or a
    pair. Raises ShapeError for sequences shorter than what is cut off."""

    def __init__(self, cropping: int | tuple[int, int] = (1, 1)) -> None:
        self.cropping = cropping

    def call(self, x: Any) -> Tensor:
        (left, right), time = _pair(self, "cropping"), shape_of(x)[1]
        if left + right > time:
            raise ShapeError(
                f"Cropping1D: x: expected at least {left + right} steps, got {time}; cut off less"
            )
        return x[:, left : time - right]


def _pair(layer: Layer, name: str) -> tuple[int, int]:
    """Two counts, 0 or more, from a number or a pair."""
    widths = getattr(layer, name)
    first, second = widths if isinstance(widths, (tuple, list)) else (widths, widths)
    kind = type(layer).__name__
    return count_of(kind, name, first), count_of(kind, name, second)
