"""Digits under a Lipschitz constraint, and attacks on classifiers: how far is the next mistake?

A classifier whose logits cannot change fast is sure of its decision within a radius that can be
computed (`md.lipschitz.certified_radius`); an attack looks for a mistake within a radius. What lies
between the two is not known.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

import minidl as md
from minidl.errors import SerializationError
from minidl.layers import Dense, Flatten, Layer, Sequential, SpectralNormalization
from minidl.lipschitz import Bound, register
from minidl.regularizers import SpectralNorm

CONSTRAINTS = "plain", "regularized", "normalized"
KEPT = "constraint", "units", "strength", "scale", "classes", "inputs"


class MaxMin(Layer):
    """The features in two halves a and b as (max(a, b), min(a, b)): (..., n) -> (..., n).

    It sorts pairs, so it never changes a length: unlike relu it loses nothing of a gradient on its
    way back, which is what a network of Lipschitz constant 1 has least of (Anil et al. 2019, 4.1).
    """

    def call(self, x: Any) -> md.Tensor:
        a, b = md.split(x, 2, axis=-1)
        return md.concatenate([md.maximum(a, b), md.minimum(a, b)], axis=-1)


@register(MaxMin)
def _(layer: MaxMin, input_shape: tuple) -> Bound:
    return Bound(1.0, "sorts pairs")


class BoundedClassifier(Sequential):
    """Dense layers with `MaxMin` between them: images (batch, ...) -> logits (batch, classes).

    constraint: "plain" for none; "regularized" for a penalty of `strength` * sigma^2 / 2 on the
    spectral norm of each kernel (Yoshida and Miyato 2017); "normalized" for kernels divided by
    theirs (Miyato et al. 2018), after which the logits, times `scale`, change at most `scale` times
    as fast as the image. A large scale makes cross entropy content with small margins, a small one
    keeps it asking for larger ones. `inputs` is the number of an image's entries.
    """

    BATCH = 1000  # images that go through the network at once, where nothing is trained

    def __init__(
        self,
        constraint: str = "normalized",
        units: Sequence[int] = (256, 256),
        strength: float = 0.1,
        scale: float = 2.0,
        classes: int = 10,
        inputs: int = 784,
    ) -> None:
        if constraint not in CONSTRAINTS:
            raise ValueError(
                f"BoundedClassifier: constraint: expected one of {', '.join(CONSTRAINTS)}, got "
                f"{constraint!r}"
            )
        self.constraint, self.units, self.strength = constraint, tuple(units), strength
        self.scale, self.classes, self.inputs = scale, classes, inputs
        super().__init__([Flatten()])
        sizes = [inputs, *units, classes]
        for i, (before, after) in enumerate(pairwise(sizes)):
            last = i == len(units)
            self.add(self._linear(before, after, scale if last else 1.0))
            if not last:
                self.add(MaxMin())

    def _linear(self, before: int, after: int, scale: float) -> Layer:
        penalty = SpectralNorm(self.strength) if self.constraint == "regularized" else None
        dense = Dense(
            after, kernel_initializer="orthogonal", kernel_regularizer=penalty, input_size=before
        )
        if self.constraint != "normalized":
            return dense
        return SpectralNormalization(dense, coefficient=scale)

    def settle(self, steps: int = 200) -> BoundedClassifier:
        """After training: power iteration until the norms are what they are; returns self."""
        for layer in self:
            if isinstance(layer, SpectralNormalization):
                layer.iterate(steps)
        return self

    def loss(self, labels: Any, logits: Any) -> md.Tensor:
        """Cross entropy, the mean over images."""
        return md.functional.softmax_cross_entropy(logits, labels)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The logits of each image, in evaluation mode: (n, classes)."""
        with md.evaluating(self):
            parts = [
                self(_on_device(images[i : i + self.BATCH], self)).numpy()
                for i in range(0, max(1, len(images)), self.BATCH)
            ]
        return np.concatenate(parts)

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights and what the network is made of to `path`."""
        md.save(path, model=self, network={name: getattr(self, name) for name in KEPT})


def load(path: str | os.PathLike) -> BoundedClassifier:
    """The classifier that `save` wrote to `path`, in evaluation mode."""
    contents = md.load(path)
    if not {"model", "network"} <= set(contents) or set(contents["network"]) != set(KEPT):
        raise SerializationError(
            f"{os.fspath(path)}: expected what BoundedClassifier.save wrote, got {sorted(contents)}"
        )
    model = BoundedClassifier(**contents["network"])
    model.load_state_dict(contents["model"])
    model.eval()
    return model


# --- Attacks --------------------------------------------------------------------------------------


def margin(logits: Any, labels: Any) -> md.Tensor:
    """The right logit less the largest other one: (batch,), below 0 where the decision is wrong."""
    right = md.one_hot(labels, logits.shape[1], dtype=bool)
    others = md.max(md.where(right, -np.inf, logits), axis=1)
    return md.sum(md.where(right, logits, 0.0), axis=1) - others


def gradient_sign(model: Layer, images: np.ndarray, labels: np.ndarray, size: float) -> np.ndarray:
    """Images, each entry of which has moved by `size` as the margin falls; kept in [0, 1].

    Goodfellow et al. 2015, eq. 1, with the margin in place of cross entropy, whose gradient rounds
    to 0 where a classifier is sure of itself.
    """
    with md.evaluating(model):
        _, slope = _margin_and_slope(model, images, labels)
    return np.clip(images - size * np.sign(slope), 0, 1)


def projected_gradient(
    model: Layer,
    images: np.ndarray,
    labels: np.ndarray,
    size: float | np.ndarray,
    steps: int = 40,
) -> np.ndarray:
    """The images of least margin on the way of an attack that moves each by at most `size` (L2).

    Each step goes down the gradient of the margin by 2.5 * size / steps, back into the ball around
    the image, and into [0, 1], which is no step out of the ball. size: a number, or one for each
    image. Madry et al. 2018, section 2.1, and Croce and Hein 2020 for the margin.
    """
    column = (-1, *(1 for _ in images.shape[1:]))
    size = np.broadcast_to(np.asarray(size, images.dtype), labels.shape).reshape(column)
    moved, best, least = images, images, np.full(len(images), np.inf)
    with md.evaluating(model):
        for step in range(steps + 1):
            found, slope = _margin_and_slope(model, moved, labels)
            better = found < least
            least = np.where(better, found, least)
            best = np.where(better.reshape(column), moved, best)
            if step == steps:
                break
            away = moved - images - 2.5 / steps * size * slope / _length(slope, column)
            away = away * np.minimum(1, size / _length(away, column))
            moved = np.clip(images + away, 0, 1)
    return best


def _margin_and_slope(
    model: Layer, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The margins, and their gradients by the images."""
    x = _on_device(images, model, requires_grad=True)
    with md.enable_grad():
        found = margin(model(x), md.tensor(labels, device=model.device))
        (slope,) = md.grad(md.sum(found), [x])
    return found.numpy(), slope.numpy()


def _length(x: np.ndarray, column: tuple[int, ...]) -> np.ndarray:
    """The length of each image's entries, never 0."""
    return np.maximum(np.sqrt(np.square(x).reshape(len(x), -1).sum(axis=1)), 1e-12).reshape(column)


def _on_device(images: np.ndarray, model: Layer, requires_grad: bool = False) -> md.Tensor:
    return md.tensor(images, requires_grad, model.dtype, model.device)
