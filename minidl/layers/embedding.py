"""Embedding: a row of a table for each id."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.graph import Tensor, unwrap
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
        shape = (input_dim, output_dim)
        self.embeddings = self.add_weight(shape, embeddings_initializer, "embeddings")

    def call(self, ids: Any) -> Tensor:
        found = unwrap(ids)
        if type(found) is np.ndarray and found.size and found.min() < 0:
            raise IndexError(  # NumPy would count from the end
                f"Embedding: ids: expected 0 to {self.input_dim - 1}, got {found.min()}"
            )
        return ops.take(self.embeddings, ids, axis=0)
