"""CenterLoss: embeddings are drawn to the centre of their class."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import functional, ops
from minidl.autodiff import no_grad, replaying
from minidl.backend import current_dtype
from minidl.graph import Tensor, unwrap
from minidl.layers.layer import Layer


class CenterLoss(Layer):
    """The mean of |embedding - centre of its class|^2 / 2: embeddings (..., d), integer labels
    (...) and perhaps a mask (...) -> a scalar, to add to the loss of a classifier; or the sum, or
    each item's, by `reduction`.

    `centers` (classes, d) is a buffer: no optimiser moves it. It begins at 0, and each call in
    training mode moves the centre of a class towards those of its embeddings that it has seen, by
    update_rate * sum(centre - embedding) / (1 + how many). Built at once where `input_size` (d) is
    given. Raises as `minidl.functional.center_loss` does. Wen et al. 2016, eqs. 2 and 4.
    """

    centers: Tensor

    def __init__(
        self, classes: int, update_rate: float = 0.5, input_size: int | None = None
    ) -> None:
        self.classes = classes
        self.update_rate = update_rate
        if input_size is not None:
            self.build((None, input_size))

    def build(self, input_shape: Any) -> None:
        self.add_buffer("centers", np.zeros((self.classes, input_shape[-1]), current_dtype()))

    def call(
        self, embeddings: Any, labels: Any, mask: Any = None, reduction: str = "mean"
    ) -> Tensor:
        loss = functional.center_loss(embeddings, labels, self.centers, mask, reduction)
        if self.training and not replaying():
            with no_grad():
                self.centers = self._moved(embeddings, labels, mask)
        return loss

    def _moved(self, embeddings: Any, labels: Any, mask: Any) -> Tensor:
        if mask is not None:  # what it leaves out may be anything
            embeddings = ops.where(unwrap(mask)[..., None], embeddings, 0.0)
            labels = ops.where(mask, labels, 0)
        d, old = embeddings.shape[-1], self.centers
        seen = ops.one_hot(labels, self.classes, old.dtype)
        seen = seen if mask is None else ops.where(unwrap(mask)[..., None], seen, 0.0)
        seen = ops.reshape(seen, (-1, self.classes))
        counts = ops.expand_dims(ops.sum(seen, axis=0), 1)
        sums = ops.transpose(seen) @ ops.reshape(ops.astype(embeddings, old.dtype), (-1, d))
        return old - self.update_rate * (counts * old - sums) / (1 + counts)
