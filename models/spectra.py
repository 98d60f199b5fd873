"""Spectra of stars, galaxies and quasars told apart by a residual network of one dimension.

A convolution reads the flux, blocks of gated convolutions with batch normalization add to what they
see, the maximum of neighbours halves the resolution between them, and the mean and the maximum over
all that is left go to one dense layer. The input gradient says which wavelengths spoke for a class.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

import minidl as md
from minidl.errors import SerializationError
from minidl.layers import (
    BatchNormalization,
    Conv1D,
    Dense,
    Dropout,
    GatedConv1D,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    Layer,
    MaxPooling1D,
)

CLASSES = ("star", "galaxy", "quasar", "unknown")
WIDTHS = (32, 32, 64, 64, 128, 128)


def standardize(flux: np.ndarray) -> np.ndarray:
    """Spectra (n, points) at median 0 and mean distance 1 from it: (n, points, 1), float32.

    Survey fluxes come in arbitrary units, and a few strong lines do not move the median. What is no
    number, or infinite, counts as the median of the rest.
    """
    flux = np.array(flux, np.float64)
    for i in np.flatnonzero(~np.isfinite(flux).all(axis=1)):
        known = np.isfinite(flux[i])
        flux[i, ~known] = np.median(flux[i, known]) if known.any() else 0
    flux -= np.median(flux, axis=1, keepdims=True)
    scale = np.mean(np.abs(flux), axis=1, keepdims=True)
    return (flux / np.where(scale > 0, scale, 1))[:, :, None].astype(np.float32)


# --- The network ----------------------------------------------------------------------------------


class ResidualBlock(Layer):
    """Batch normalization, then a convolution around which the input is carried: (batch, time, n)
    -> (batch, time, filters).

    gated: x * (1 - sigmoid(g)) + v * sigmoid(g), values v and scores g being convolutions of x (see
    GatedConv1D); else x + relu(convolution of x). Where n is not `filters` a convolution of size 1
    comes first.
    """

    def __init__(self, filters: int, input_size: int, gated: bool = True) -> None:
        self.widen = None
        if input_size != filters:
            self.widen = Conv1D(filters, 1, use_bias=False, input_size=input_size)
        self.normalization = BatchNormalization(momentum=0.9, input_size=filters)
        self.gated = gated
        self.convolution = (
            GatedConv1D(filters, 3, input_size=filters)
            if gated
            else Conv1D(filters, 3, padding="same", activation="relu", input_size=filters)
        )

    def call(self, x: Any) -> md.Tensor:
        x = self.normalization(x if self.widen is None else self.widen(x))
        return self.convolution(x) if self.gated else x + self.convolution(x)


class SpectrumClassifier(Layer):
    """Convolution of size 7 -> residual blocks with max pooling between -> pooling -> Dense.

    `call(x)`: standardized spectra (batch, points, 1) -> logits (batch, len(classes)). widths: the
    channels of each block; the stem has as many as the first. gated: the kind of the blocks.
    """

    BATCH = 64  # how many spectra go through the network at once in `probabilities`

    def __init__(
        self,
        classes: Sequence[str] = CLASSES,
        widths: Sequence[int] = WIDTHS,
        gated: bool = True,
        rate: float = 0.0,
    ) -> None:
        self.classes, self.widths = tuple(classes), tuple(widths)
        self.gated, self.rate = gated, rate
        self.stem = Conv1D(self.widths[0], 7, padding="same", input_size=1)
        sizes = (self.widths[0], *self.widths)
        self.blocks = [
            ResidualBlock(filters, size, gated)
            for size, filters in zip(sizes, self.widths, strict=False)
        ]
        self.halve = MaxPooling1D(2)
        self.mean, self.maximum = GlobalAveragePooling1D(), GlobalMaxPooling1D()
        self.dropout = Dropout(rate)
        self.dense = Dense(len(self.classes), input_size=2 * self.widths[-1])

    def call(self, x: Any) -> md.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(self.halve(x))
        pooled = md.concatenate([self.mean(x), self.maximum(x)], axis=-1)
        return self.dense(self.dropout(pooled))

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """p of each class, (n, classes), for standardized spectra (n, points, 1)."""
        found = np.empty((len(x), len(self.classes)), np.float32)
        with md.evaluating(self):
            for start in range(0, len(x), self.BATCH):
                rows = slice(start, start + self.BATCH)
                logits = self(md.tensor(x[rows], device=self.device, dtype=self.dtype))
                found[rows] = md.softmax(logits).numpy()
        return found

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights and what the network is made of to `path`."""
        names = ("classes", "widths", "gated", "rate")
        network = {"name": type(self).__name__, **{name: getattr(self, name) for name in names}}
        md.save(path, model=self, network=network)


def load(path: str | os.PathLike) -> SpectrumClassifier:
    """The network that `save` wrote to `path`, ready for `probabilities`."""
    contents = md.load(path)
    network = dict(contents.get("network", {}))
    if network.pop("name", None) != SpectrumClassifier.__name__:
        raise SerializationError(
            f"{os.fspath(path)}: expected what SpectrumClassifier.save wrote, got "
            f"{sorted(contents)}"
        )
    model = SpectrumClassifier(**network)
    model.load_state_dict(contents["model"])
    return model.eval()


# --- What a classifier looks at -------------------------------------------------------------------


def saliency(
    model: Layer,
    x: np.ndarray,
    classes: np.ndarray,
    samples: int = 1,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """The gradient of each input's logit for a class: x (n, ...), classes (n,) -> x's shape.

    Where it is positive, more would speak for the class. Any classifier, in evaluation mode, that
    gives logits (n, classes). The mean over so many `samples` with normal `noise` of that standard
    deviation added to the input is less ragged: SmoothGrad (Smilkov et al. 2017).
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(x.shape, x.dtype)
    chosen = md.tensor(classes, device=model.device)[:, None]
    with md.evaluating(model), md.enable_grad():
        for _ in range(samples):
            noisy = x + noise * generator.standard_normal(x.shape).astype(x.dtype)
            given = md.tensor(noisy, requires_grad=True, dtype=model.dtype, device=model.device)
            logits = md.take_along_axis(model(given), chosen, -1)
            (gradient,) = md.grad(md.sum(logits), [given])
            total += gradient.numpy()
    return total / samples
