"""Embeddings of digits, in which images of one class lie near each other: trained by a classifier's
loss, by a classifier's and centres of classes, or by triplets; tested by retrieval.

The network is the same; what follows it, and the losses, differ. After Su Jianlin's articles on
custom layers and losses in Keras (2018), Wen et al. 2016 (centres) and Schroff et al. 2015
(triplets).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

import minidl as md
from minidl.errors import SerializationError
from minidl.layers import CenterLoss, Conv2D, Dense, Flatten, Layer, MaxPooling2D, Sequential
from minidl.losses import BatchTriplet, OfOutput, SparseCategoricalCrossentropy

# --- Networks -------------------------------------------------------------------------------------


class Embedder(Layer):
    """Images (batch, 28, 28, 1) -> `embed`: vectors (batch, size). Subclasses say what trains them.

    Two convolutions of 3 x 3 with relu, each with a maximum over 2 x 2, then a linear map. Of
    another `side` the images may be too. `call(images)` gives a dict of outputs, for which `loss`
    and `loss_weights` are what `fit` takes.
    """

    def __init__(
        self, classes: int, size: int = 32, filters: tuple[int, int] = (16, 32), side: int = 28
    ) -> None:
        self.classes, self.size, self.filters, self.side = classes, size, tuple(filters), side
        first, second = filters
        self.network = Sequential(
            [
                Conv2D(first, 3, activation="relu"),
                MaxPooling2D(2),
                Conv2D(second, 3, activation="relu"),
                MaxPooling2D(2),
                Flatten(),
                Dense(size),
            ]
        )
        self.network(md.zeros((1, side, side, 1)))

    loss: dict[str, Any]
    loss_weights: dict[str, float] | None = None

    def embed(self, images: Any) -> md.Tensor:
        """The vectors that are trained, (batch, size)."""
        return self.network(images)

    def features(self, images: Any) -> md.Tensor:
        """What is compared in retrieval: the vectors, scaled to length 1."""
        return unit(self.embed(images))

    def batches(self, images: np.ndarray, labels: np.ndarray, **options: Any) -> md.data.Batches:
        """What `fit` trains with; labels are integers from 0."""
        return md.data.Batches(images, {"logits": labels}, **options)

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights, and what the network is made of, to `path`."""
        names = ("classes", "size", "filters", "side")
        network = {"name": type(self).__name__, **{name: getattr(self, name) for name in names}}
        md.save(path, model=self, network=network)


class SoftmaxEmbedder(Embedder):
    """Trained as a classifier: the vectors are what the last, linear map gets."""

    def __init__(self, classes: int, size: int = 32, **options: Any) -> None:
        super().__init__(classes, size, **options)
        self.logits = Dense(classes, input_size=size)
        self.loss = {"logits": SparseCategoricalCrossentropy(from_logits=True)}

    def call(self, images: Any) -> dict[str, Any]:
        return {"logits": self.logits(self.embed(images))}


class CenterEmbedder(SoftmaxEmbedder):
    """As a classifier, and drawn to the centre of its class.

    The second loss is an output of the model and has no target of its own: labels are an input,
    when it is trained.
    """

    WEIGHT = 0.003

    def __init__(self, classes: int, size: int = 32, **options: Any) -> None:
        super().__init__(classes, size, **options)
        self.center = CenterLoss(classes, input_size=size)
        self.loss = {**self.loss, "center": OfOutput()}
        self.loss_weights = {"center": self.WEIGHT}

    def call(self, images: Any, labels: Any = None) -> dict[str, Any]:
        vectors = self.embed(images)
        outputs = {"logits": self.logits(vectors)}
        if labels is not None:
            outputs["center"] = self.center(vectors, labels)
        return outputs

    def batches(self, images: np.ndarray, labels: np.ndarray, **options: Any) -> md.data.Batches:
        return super().batches((images, labels), labels, **options)


class TripletEmbedder(Embedder):
    """Trained by triplets found in the batch, of vectors of length 1; nothing is classified."""

    MARGIN, MINING = 0.2, "batch-all"

    def __init__(self, classes: int, size: int = 32, **options: Any) -> None:
        super().__init__(classes, size, **options)
        self.loss = {"vectors": BatchTriplet(self.MARGIN, self.MINING)}

    def call(self, images: Any) -> dict[str, Any]:
        return {"vectors": self.features(images)}

    def batches(self, images: np.ndarray, labels: np.ndarray, **options: Any) -> md.data.Batches:
        return md.data.Batches(images, {"vectors": labels}, **options)


NETWORKS: dict[str, type[Embedder]] = {
    "softmax": SoftmaxEmbedder,
    "center": CenterEmbedder,
    "triplet": TripletEmbedder,
}


def unit(x: Any) -> md.Tensor:
    """The vectors along the last axis, scaled to length 1."""
    return x / md.maximum(md.norm(x, axis=-1, keepdims=True), 1e-6)


def turned(
    images: np.ndarray, labels: np.ndarray, classes: int, turns: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """The images, a share of each class turned by 0, 1, ... quarters, and their classes: a digit
    lying on its side is another class, `classes * turns` of them in all (Santoro et al. 2016).

    More classes, of the same images: what is learned has to serve for shapes of more kinds.
    """
    images, quarters = images.copy(), np.empty_like(labels)
    for label in range(classes):
        own = labels == label
        quarters[own] = np.arange(own.sum()) % turns
    for turn in range(1, turns):
        images[quarters == turn] = np.rot90(images[quarters == turn], turn, axes=(1, 2))
    return images, labels * turns + quarters


def vectors(model: Embedder, images: np.ndarray, batch: int = 500) -> np.ndarray:
    """`model.features` of many images, on the host."""
    with md.evaluating(model):
        parts = [
            model.features(md.tensor(images[i : i + batch], device=model.device)).numpy()
            for i in range(0, len(images), batch)
        ]
    return np.concatenate(parts)


def load(path: str | os.PathLike) -> Embedder:
    """The network that `save` wrote to `path`."""
    contents = md.load(path)
    network = dict(contents.get("network", {}))
    networks = {kind.__name__: kind for kind in NETWORKS.values()}
    if network.get("name") not in networks:
        raise SerializationError(
            f"{os.fspath(path)}: expected what Embedder.save wrote, got {sorted(contents)}"
        )
    model = networks[network.pop("name")](**network)
    model.load_state_dict(contents["model"])
    model.eval()
    return model


# --- Retrieval ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retrieval:
    """How well each item finds those of its label among all others, in the mean over items.

    precision_at_1: the nearest is of its label. r_precision: of the nearest R, where R others are
    of its label, how many are. mean_average_precision: precision at the place of each other one of
    its label, in the mean.
    """

    precision_at_1: float
    r_precision: float
    mean_average_precision: float


def ranking(x: np.ndarray) -> np.ndarray:
    """(n, n - 1): for each row of x (n, d) all others, from the nearest to the farthest."""
    products = x.astype(np.float64) @ x.T
    lengths = np.diag(products)
    distances = lengths[:, None] + lengths - 2 * products
    np.fill_diagonal(distances, -np.inf)  # itself comes first
    return np.argsort(distances, axis=1, kind="stable")[:, 1:]


def retrieval(x: np.ndarray, labels: np.ndarray) -> Retrieval:
    """The figures of vectors x (n, d) with labels (n,); those who are alone in their label do not
    count. Raises ValueError where all are."""
    right = labels[ranking(x)] == labels[:, None]
    relevant = right.sum(axis=1)
    right, relevant = right[relevant > 0], relevant[relevant > 0]
    if not len(right):
        raise ValueError("retrieval: labels: expected two items of a label, got none")
    places = np.arange(1, right.shape[1] + 1)
    found = np.cumsum(right, axis=1)
    precision = found / places
    return Retrieval(
        precision_at_1=float(right[:, 0].mean()),
        r_precision=float(np.mean(found[np.arange(len(right)), relevant - 1] / relevant)),
        mean_average_precision=float(np.mean((precision * right).sum(axis=1) / relevant)),
    )


def plane(x: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """Vectors x (n, d) on their two principal axes: (n, 2).

    before: an earlier picture (n, 2) of the same items; the new one is turned and mirrored to lie
    as that does, as near as can be (Schoenemann 1966).
    """
    x = x - x.mean(axis=0)
    points = x @ np.linalg.svd(x, full_matrices=False)[2][:2].T
    if before is not None:
        left, _, right = np.linalg.svd(points.T @ before)
        points = points @ left @ right
    return points
