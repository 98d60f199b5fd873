"""Layers that change the shape of each item, and nothing else. The first axis is the batch."""

from __future__ import annotations

import math
from typing import Any

from minidl import ops
from minidl.errors import ShapeError
from minidl.graph import Tensor
from minidl.layers.layer import Layer
from minidl.ops.pooling import items_of
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
        items_of("UpSampling1D", x, 1)
        return ops.upsample_nearest(x, self.size)


class UpSampling2D(Layer):
    """Each row and column `size` times: (batch, height, width, n) -> (batch, size * height, size *
    width, n); size is a number or (rows, columns)."""

    def __init__(self, size: int | tuple[int, int] = (2, 2)) -> None:
        self.size = size

    def call(self, x: Any) -> Tensor:
        items_of("UpSampling2D", x, 2)
        return ops.upsample_nearest(x, self.size)


class PixelShuffle(Layer):
    """Channels become space: (batch, height, width, n * r * r) -> (batch, r * height, r * width,
    n), r being `upscale_factor`, in PyTorch's order. Shi et al. 2016."""

    def __init__(self, upscale_factor: int = 2) -> None:
        self.upscale_factor = upscale_factor

    def call(self, x: Any) -> Tensor:
        return ops.pixel_shuffle(x, self.upscale_factor)


class ZeroPadding1D(Layer):
    """Zeros before and after each sequence (batch, time, n): padding is a number or a pair."""

    def __init__(self, padding: int | tuple[int, int] = 1) -> None:
        self.padding = padding

    def call(self, x: Any) -> Tensor:
        items_of("ZeroPadding1D", x, 1)
        return ops.pad(x, ((0, 0), _pair(self, "padding"), (0, 0)))


class ZeroPadding2D(Layer):
    """Zeros around each image (batch, height, width, n): padding is a number, (rows above and
    below, columns left and right) or ((above, below), (left, right))."""

    def __init__(self, padding: Any = (1, 1)) -> None:
        self.padding = padding

    def call(self, x: Any) -> Tensor:
        items_of("ZeroPadding2D", x, 2)
        return ops.pad(x, ((0, 0), *_pairs(self, "padding"), (0, 0)))


class Cropping1D(Layer):
    """Sequences (batch, time, n) without their first and last steps: cropping is a number or a
    pair. Raises ShapeError for sequences shorter than what is cut off."""

    def __init__(self, cropping: int | tuple[int, int] = (1, 1)) -> None:
        self.cropping = cropping

    def call(self, x: Any) -> Tensor:
        (time,) = items_of("Cropping1D", x, 1)[1:-1]
        return x[:, _within("Cropping1D", "steps", time, _pair(self, "cropping"))]


class Cropping2D(Layer):
    """Images (batch, height, width, n) without their edges: cropping as ZeroPadding2D's padding.
    Raises ShapeError for images smaller than what is cut off."""

    def __init__(self, cropping: Any = ((0, 0), (0, 0))) -> None:
        self.cropping = cropping

    def call(self, x: Any) -> Tensor:
        height, width = items_of("Cropping2D", x, 2)[1:-1]
        rows, columns = _pairs(self, "cropping")
        inside = _within("Cropping2D", "rows", height, rows)
        return x[:, inside, _within("Cropping2D", "columns", width, columns)]


def _within(kind: str, unit: str, side: int, widths: tuple[int, int]) -> slice:
    """What is left of an axis when its ends are cut off."""
    if sum(widths) > side:
        raise ShapeError(
            f"{kind}: x: expected at least {sum(widths)} {unit}, got {side}; cut off less"
        )
    return slice(widths[0], side - widths[1])


def _pairs(layer: Layer, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two pairs of counts: from a number, from one number for each axis, or from two pairs."""
    rows, columns = _two(layer, name, getattr(layer, name))
    return _counts(layer, name, rows), _counts(layer, name, columns)


def _pair(layer: Layer, name: str) -> tuple[int, int]:
    """Two counts, 0 or more, from a number or a pair."""
    return _counts(layer, name, getattr(layer, name))


def _counts(layer: Layer, name: str, widths: Any) -> tuple[int, int]:
    first, second = _two(layer, name, widths)
    kind = type(layer).__name__
    return count_of(kind, name, first), count_of(kind, name, second)


def _two(layer: Layer, name: str, value: Any) -> tuple[Any, Any]:
    """A pair, or twice what is none."""
    if not isinstance(value, (tuple, list)):
        return value, value
    if len(value) != 2:
        raise ShapeError(
            f"{type(layer).__name__}: {name}: expected a number or two of them, got {value}"
        )
    return value[0], value[1]
