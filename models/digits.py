"""Which digit is it? A small convolutional network for images of 28 x 28."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

import minidl as md
from minidl.errors import SerializationError
from minidl.layers import Conv2D, Dense, Dropout, Flatten, Layer, MaxPooling2D


class DigitClassifier(Layer):
    """Two convolutions of size 3, the maximum of 2 x 2, a hidden layer, a logit for each class.

    `call(images)` gives (batch, classes) for images (batch, side, side, channels); `features`, what
    the last layer sees: (batch, size). filters: those of the convolutions. dropout: the rate after
    the maximum, and after the hidden layer.
    """

    BATCH = 500  # images that go through the network at once, where nothing is trained

    def __init__(
        self,
        classes: int = 10,
        filters: tuple[int, int] = (32, 64),
        size: int = 128,
        dropout: float = 0.0,
        side: int = 28,
        channels: int = 1,
    ) -> None:
        self.classes, self.filters, self.size, self.dropout = classes, tuple(filters), size, dropout
        self.side, self.channels = side, channels
        first, second = filters
        self.first = Conv2D(first, 3, activation="relu", input_size=channels)
        self.second = Conv2D(second, 3, activation="relu", input_size=first)
        self.pooling = MaxPooling2D(2)
        self.flatten = Flatten()
        self.drop = Dropout(dropout)
        self.hidden = Dense(size, "relu", input_size=((side - 4) // 2) ** 2 * second)
        self.logits = Dense(classes, input_size=size)

    def features(self, images: Any) -> md.Tensor:
        """What the last layer sees: (batch, size)."""
        x = self.pooling(self.second(self.first(images)))
        return self.hidden(self.drop(self.flatten(x)))

    def call(self, images: Any) -> md.Tensor:
        return self.logits(self.drop(self.features(images)))

    def probabilities(self, images: np.ndarray) -> np.ndarray:
        """p(class) of each image, in evaluation mode: (n, classes)."""
        return self._of_all(lambda x: md.softmax(self(x)), images)

    def embed(self, images: np.ndarray) -> np.ndarray:
        """The features of each image, in evaluation mode: (n, size)."""
        return self._of_all(self.features, images)

    def _of_all(self, function: Any, images: np.ndarray) -> np.ndarray:
        with md.evaluating(self):
            parts = [
                function(
                    md.tensor(images[i : i + self.BATCH], dtype=self.dtype, device=self.device)
                )
                for i in range(0, max(1, len(images)), self.BATCH)
            ]
        return np.concatenate([part.numpy() for part in parts])

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights and what the network is made of to `path`."""
        names = ("classes", "filters", "size", "dropout", "side", "channels")
        md.save(path, model=self, network={name: getattr(self, name) for name in names})


def load(path: str | os.PathLike) -> DigitClassifier:
    """The classifier that `save` wrote to `path`, in evaluation mode."""
    contents = md.load(path)
    if not {"model", "network"} <= set(contents):
        raise SerializationError(
            f"{os.fspath(path)}: expected what DigitClassifier.save wrote, got {sorted(contents)}"
        )
    model = DigitClassifier(**contents["network"])
    model.load_state_dict(contents["model"])
    model.eval()
    return model
