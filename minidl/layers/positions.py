"""Layers that tell attention where a step stands: without them it sees a set, not a sequence."""

from __future__ import annotations

from typing import Any

from minidl import backend
from minidl.errors import ShapeError
from minidl.functional.attention import rotary, sinusoidal_positions
from minidl.graph import Tensor, unwrap
from minidl.layers.layer import Layer
from minidl.ops.shape import count_of


class SinusoidalPositions(Layer):
    """x + scale * sinusoidal_positions: (..., time, size) -> the same. No parameters.

    scale: 1 as published, where embeddings are of that size too; less where they begin small.
    layer(x, offset=n): the first step of `x` is the n-th of its sequence, for decoding. Vaswani et
    al. 2017, section 3.5.
    """

    def __init__(self, base: float = 10000.0, scale: float = 1.0) -> None:
        self.base = base
        self.scale = scale
        self._table: Tensor | None = None

    def call(self, x: Any, offset: int = 0) -> Any:
        time, size = x.shape[-2:]
        end, array = count_of("SinusoidalPositions", "offset", offset) + time, unwrap(x)
        device = backend.device_of(array)
        table = self._table
        if table is None or not (
            table.shape[0] >= end
            and (table.shape[1], table.device, table.dtype) == (size, device, array.dtype)
        ):
            length = 1 << max(0, end - 1).bit_length()  # seldom anew, while a sequence grows
            dtype = array.dtype if array.dtype.kind == "f" else None
            with backend.device(device), backend.default_dtype(dtype or backend.current_dtype()):
                table = self.scale * sinusoidal_positions(length, size, self.base)
                self._table = table
        return x + table[offset:end]


class LearnedPositions(Layer):
    """x + embeddings[:time]: (..., time, size) -> the same.

    `embeddings` is (length, size), one row a position. layer(x, offset=n): the first step of `x` is
    the n-th of its sequence. Raises ShapeError for a sequence longer than `length`.
    """

    def __init__(
        self,
        length: int,
        embeddings_initializer: Any = "uniform",
        input_size: int | None = None,
    ) -> None:
        self.length = length
        self._initializer = embeddings_initializer
        if input_size is not None:
            self.build((None, None, input_size))

    def build(self, input_shape: Any) -> None:
        shape = (self.length, input_shape[-1])
        self.embeddings = self.add_weight(shape, self._initializer, "embeddings")

    def call(self, x: Any, offset: int = 0) -> Tensor:
        end = count_of("LearnedPositions", "offset", offset) + x.shape[-2]
        if end > self.length:
            raise ShapeError(
                f"LearnedPositions: x: expected at most {self.length} steps, got {end} with offset "
                f"{offset}; make the layer with a greater length, or cut the sequence"
            )
        return x + self.embeddings[offset:end]


class RotaryPositions(Layer):
    """`rotary` of x (..., time, size), for queries and keys by heads; no parameters.

    layer(x, offset=n) as in SinusoidalPositions. `MultiHeadAttention(rotary=True)` does this
    inside. Su et al. 2021.
    """

    def __init__(self, base: float = 10000.0) -> None:
        self.base = base

    def call(self, x: Any, offset: int = 0) -> Any:
        return rotary(x, offset, self.base)
