"""What the example `mixup` does with one classifier: train it in one of four ways, and measure it.

The implied penalty: mixing inputs moves an item x a share t of the way to another one, and mixing
targets alike comes to the same, with the item's own label, for another distribution of t
(docs/mixup.md derives it). What that adds to the loss is, to second order in t,

    E[t] * mean of f'(0) + E[t^2] / 2 * mean of f''(0),    f(t) = loss(x + t (x' - x), label of x),

a pull of x towards the others, and a penalty on how fast the probabilities change between items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import minidl as md
from examples.digits import Digits
from minidl.functional.losses import softmax_cross_entropy
from minidl.layers import Layer, ManifoldMixing
from minidl.transforms import (
    Compose,
    ManifoldMixup,
    Mixup,
    OneHot,
    Phases,
    SamplePairing,
    Transform,
)

NONE, PAIRING, MIXUP, MANIFOLD = METHODS = ("none", "SamplePairing", "mixup", "manifold mixup")
LOSS = md.losses.CategoricalCrossentropy(from_logits=True)


@dataclass(frozen=True)
class Cell:
    """One training: how, on how many labels, which (and from which weights), with which alpha."""

    method: str
    labels: int
    seed: int
    alpha: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.method.replace(' ', '-')}-{self.labels}-{self.alpha:g}-{self.seed}"


def subset(train: Digits, labels: int, seed: int) -> Digits:
    """So many training digits, balanced; for another seed other ones, as far as there are."""
    rows = (np.arange(labels) + seed * labels) % len(train)
    return Digits(train.images[rows], train.labels[rows])


def transform_of(method: str, alpha: float, classes: int, epochs: int, places: int) -> Transform:
    """SamplePairing has a pause in five epochs, and one at the beginning and at the end, as in its
    paper: there labels are those of whole digits."""
    hard = OneHot(classes)
    if method == NONE:
        return hard
    if method == PAIRING:
        phases = Phases(SamplePairing(), epochs // 10, epochs - epochs // 5, on=4, off=1)
        return Compose(phases, hard)
    if method == MIXUP:
        return Mixup(alpha, classes)
    return ManifoldMixup(places, alpha, classes)


def mixable(method: str, model: Layer, at: list[str]) -> Layer:
    """What is trained: the model itself, or within what mixes its hidden values."""
    return ManifoldMixing(model, at) if method == MANIFOLD else model


# --- What mixing adds to the loss -----------------------------------------------------------------


class Share(NamedTuple):
    """How far items move: the mean of t and of t^2, and how to draw it."""

    mean: float
    square: float
    draw: Any


def share_of_mixup(alpha: float) -> Share:
    """t from Beta(alpha, alpha + 1)."""
    mean = alpha / (2 * alpha + 1)
    return Share(mean, mean / 2, lambda rng, n: rng.beta(alpha, alpha + 1, n))


SHARE_OF_PAIRING = Share(0.5, 0.25, lambda rng, n: np.full(n, 0.5))


def slopes(
    model: Layer, images: np.ndarray, labels: np.ndarray, others: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """f'(0) and f''(0) of each item: the loss's along the line to another one."""
    place = {"dtype": model.dtype, "device": model.device}
    x, direction = (md.tensor(a, **place) for a in (images, others - images))
    t = md.tensor(np.zeros((len(x), *[1] * (x.ndim - 1))), requires_grad=True, **place)
    with md.enable_grad():
        logits = model(x + t * direction)
        total = softmax_cross_entropy(logits, labels, reduction="sum")
        (first,) = md.grad(total, [t], create_graph=True)
        (second,) = md.grad(md.sum(first), [t])
    return first.numpy().reshape(-1), second.numpy().reshape(-1)


def losses(model: Layer, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The cross entropy of each item."""
    logits = model(md.tensor(images, dtype=model.dtype, device=model.device))
    return softmax_cross_entropy(logits, labels, reduction="none").numpy()


def penalty(
    model: Layer, items: Digits, shares: dict[str, Share], rounds: int = 2, seed: int = 0
) -> dict[str, dict[str, float]]:
    """For each kind of shares: "first" and "second", the two terms above, and "measured", what
    moving the items adds to their mean loss, all over the same random pairs of `items`."""
    rng = np.random.default_rng(seed)
    found: dict[str, list] = {name: [] for name in shares}
    with md.evaluating(model):
        plain = losses(model, items.images, items.labels)
        for _ in range(rounds):
            others = items.images[rng.permutation(len(items))]
            first, second = slopes(model, items.images, items.labels, others)
            for name, share in shares.items():
                t = share.draw(rng, len(items)).astype(np.float32)[:, None, None, None]
                moved = losses(model, items.images * (1 - t) + others * t, items.labels)
                terms = share.mean * first.mean(), share.square / 2 * second.mean()
                found[name].append((*terms, (moved - plain).mean()))
    names = "first", "second", "measured"
    return {
        name: dict(zip(names, np.mean(values, axis=0).tolist(), strict=True))
        for name, values in found.items()
    }


# --- Summaries ------------------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float]:
    """The mean, and how far the 95 % interval of Student's t reaches to either side of it; nan for
    one value."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, float("nan")
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, float(half)


def nearest(train: Digits, test: Digits) -> float:
    """The accuracy of the nearest training digit's label."""
    x, known = (part.images.reshape(len(part), -1) for part in (test, train))
    squares = (known**2).sum(axis=1) - 2 * x @ known.T
    return float((train.labels[squares.argmin(axis=1)] == test.labels).mean())


# --- Two moons ------------------------------------------------------------------------------------


def moons(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (count, 2) on two half circles that reach into one another, and which of the two."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    angle = rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.where(labels[:, None] == 0, upper, [1, 0.5] - upper)
    return (points + rng.normal(0, noise, points.shape)).astype(np.float32), labels


@dataclass(frozen=True)
class Plane:
    """A classifier of points, for a picture: p(label 1) on a grid with these sides."""

    method: str
    points: np.ndarray
    labels: np.ndarray
    probability: np.ndarray  # (rows, columns)
    extent: tuple[float, float, float, float]
    accuracy: float


def plane(method: str, alpha: float, seed: int, steps: int, side: int = 120) -> Plane:
    """Train a dense network on two moons with few points, and ask it about all the plane."""
    points, labels = moons(60, 0.15, seed)
    md.seed(seed)
    model = md.layers.Sequential(
        [
            md.layers.Dense(64, "relu", input_size=2),
            md.layers.Dense(64, "relu", input_size=64),
            md.layers.Dense(2, input_size=64),
        ]
    )
    trained = mixable(method, model, ["0", "1"])
    transform = transform_of(method, alpha, 2, steps, 3)
    batches = md.data.Batches(points, labels, batch_size=len(points), transform=transform)
    md.fit(trained, LOSS, md.optimizers.Adam(trained, 0.01), batches, epochs=steps, verbose=False)
    extent = (-1.8, 2.8, -1.4, 1.9)
    x, y = np.linspace(*extent[:2], side), np.linspace(*extent[2:], side)
    every = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
    test, expected = moons(2_000, 0.15, seed + 1)
    with md.evaluating(model):
        values, found = (
            md.softmax(model(md.tensor(a, device=model.device))).numpy()[:, 1]
            for a in (every, test)
        )
    accuracy = float(((found > 0.5) == expected).mean())
    return Plane(method, points, labels, values.reshape(side, side), extent, accuracy)
