"""Embedding: a row of a table for each id."""

from __future__ import annotations

from typing import Any

from minidl import ops
from minidl.graph import Tensor
from minidl.layers.layer import Layer


class Embedding(Layer):
    """embeddings[ids]: integers (...) in [0, input_dim) -> (..., output_dim).

    `embeddings` is (input_dim, output_dim). On the CPU an id out of range raises IndexError; a GPU
    does not look (it would have to wait), so `minidl.data` looks when it makes a batch.
    """

    def __init__(
        self, input_dim: int, output_dim: int, embeddings_initializer: Any = "uniform"
    ) -> None:
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.embeddings = self.add_weight((input_dim, output_dim), embeddings_initializer)

    def call(self, ids: Any) -> Tensor:
        return ops.take(self.embeddings, ids, axis=0)
