"""Embedding: a row of a table for each id."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops, regularizers
from minidl.graph import Tensor, unwrap
from minidl.layers.layer import Layer


class Embedding(Layer):
    """embeddings[ids]: integers (...) in [0, input_dim) -> (..., output_dim).

    `embeddings` is (input_dim, output_dim). On the CPU an id out of range raises IndexError; a GPU
    does not look (it would have to wait), so `minidl.data` looks when it makes a batch.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        activity_regularizer: Any = None,
    ) -> None:
        self.input_dim = input_dim
        self.output_dim = output_dim
        self.activity_regularizer = regularizers.get(activity_regularizer)
        self.embeddings = self.add_weight(
            (input_dim, output_dim), embeddings_initializer, "embeddings",
            regularizer=embeddings_regularizer,
        )  # fmt: skip

    def call(self, ids: Any) -> Tensor:
        found = unwrap(ids)
        if type(found) is np.ndarray and found.size and found.min() < 0:
            raise IndexError(  # NumPy would count from the end
                f"Embedding: ids: expected 0 to {self.input_dim - 1}, got {found.min()}"
            )
        return ops.take(self.embeddings, ids, axis=0)

    def attend(self, x: Any) -> Tensor:
        """x @ embeddings.T: (..., output_dim) -> (..., input_dim), a score for each id: the output
        layer of a model that ties it to its input's table (Press and Wolf 2017)."""
        return ops.matmul(x, ops.transpose(self.embeddings))
