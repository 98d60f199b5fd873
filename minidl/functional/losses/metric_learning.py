"""Losses that shape an embedding by its labels: triplets found in the batch, centres of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.backend import Array, namespace
from minidl.errors import ShapeError
from minidl.functional.losses.checks import (
    as_data,
    class_indices,
    integer_targets,
    loss_of,
    masked,
    reduced,
    wide,
)
from minidl.graph import Tensor, unwrap
from minidl.samples import Draw, call, samples

# --- Triplets -------------------------------------------------------------------------------------


def pairwise_distances(x: Any, y: Any = None, squared: bool = False) -> Any:
    """|x_i - y_j| for all rows of x (..., n, d) and y (..., m, d), by default x: (..., n, m).

    From the differences, (..., n, m, d), so that near points keep their digits. A distance of 0 has
    gradient 0. squared: |x_i - y_j|^2. Raises ShapeError for rows of two lengths.
    """
    x = as_data(x)
    y = x if y is None else as_data(y, x)
    if x.ndim < 2 or y.ndim < 2 or x.shape[-1] != y.shape[-1]:
        raise ShapeError(
            f"pairwise_distances: expected x (..., n, d) and y (..., m, d), got {x.shape} and "
            f"{y.shape}; make the last sides equal"
        )
    differences = ops.expand_dims(x, -2) - ops.expand_dims(y, -3)
    if squared:
        return ops.sum(ops.square(differences), axis=-1)
    return ops.norm(differences, axis=-1)


def batch_triplet(
    embeddings: Any,
    labels: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    margin: float | str = 0.2,
    mining: str = "semi-hard",
    squared: bool = False,
) -> Tensor:
    """max(0, margin + d(anchor, positive) - d(anchor, negative)) for triplets found in the batch:
    every item is an anchor, the others of its label are positives, those of another negatives.

    embeddings: (n, d); labels: any integers (n,); mask: (n,). d is the distance, `squared` or not.
    margin "soft": log(1 + exp(d - d)) instead, which has no margin. mining:

    * "batch-all": all triplets. The mean is over those whose loss is not 0 (Hermans et al. 2017,
      eq. 6 and the end of section 2).
    * "batch-hard": each anchor with its farthest positive and its nearest negative (eq. 5); those
      that are equally far share the gradient. The mean is over anchors that have both.
    * "semi-hard": each anchor and positive with the nearest negative that is farther away than the
      positive, or where there is none with the farthest, the first of equals (Schroff et al. 2015,
      section 3.2). The mean is over those pairs.

    The mean of nothing is 0. reduction "none" gives (n,): each anchor's losses, summed. Raises
    ShapeError and DtypeError for other arguments, ValueError for another mining or margin.
    """
    losses, counts, dtype = _mined(embeddings, labels, mask, margin, mining, squared)
    return reduced(losses, None, reduction, dtype, weights=counts)


def batch_triplet_count(
    embeddings: Any, labels: Any, mask: Any, margin: float | str, mining: str, squared: bool
) -> Any:
    """What the mean of `batch_triplet` divides by: 1 at least, so that an epoch in which no triplet
    is left has the loss 0."""
    _, counts, _ = _mined(unwrap(embeddings), labels, mask, margin, mining, squared)
    return namespace(counts).maximum(counts.sum(), 1)


def _mined(
    embeddings: Any, labels: Any, mask: Any, margin: float | str, mining: str, squared: bool
) -> tuple[Any, Array, Any]:
    """Each anchor's losses, summed, (n,); over how many, (n,); the dtype of what comes of them."""
    name = "batch_triplet"
    if mining not in _MINERS:
        raise ValueError(f"{name}: mining: expected one of {', '.join(_MINERS)}, got {mining!r}")
    if isinstance(margin, str) and margin != "soft":
        raise ValueError(f"{name}: margin: expected a number or 'soft', got {margin!r}")
    embeddings = as_data(embeddings)
    if embeddings.ndim != 2:
        raise ShapeError(f"{name}: embeddings: expected (items, size), got {embeddings.shape}")
    labels, mask = integer_targets(name, "labels", labels, embeddings, mask)
    xp, x = namespace(labels), wide(embeddings)
    real = xp.ones(labels.shape, dtype=bool)
    if mask is not None:
        x, real = ops.where(mask[:, None], x, 0.0), mask
    if not len(labels):  # nothing to take a maximum of
        return ops.sum(x, axis=-1), real.astype(np.int64), embeddings.dtype
    both = real[:, None] & real
    alike = labels[:, None] == labels
    positive = alike & both & ~xp.eye(len(labels), dtype=bool)
    distances = pairwise_distances(x, squared=squared)
    return *_MINERS[mining](distances, positive, ~alike & both, margin), embeddings.dtype


# Each: the sum of an anchor's losses and their number, (n,). Distances are (n, n), as the booleans
# `positive` and `negative`: rows are anchors.


def _batch_all(
    distances: Any, positive: Array, negative: Array, margin: float | str
) -> tuple[Any, Array]:
    triplets = positive[:, :, None] & negative[:, None, :]  # anchor, positive, negative
    if margin == "soft":
        excess = ops.expand_dims(distances, 2) - ops.expand_dims(distances, 1)
        return ops.sum(_losses(excess, triplets, margin), axis=(1, 2)), triplets.sum(axis=(1, 2))
    d = unwrap(distances)
    active = triplets & (d[:, :, None] + margin > d[:, None, :])
    # Each loss is linear where it is not 0: how many a distance stands in is all that is needed.
    near, far = active.sum(axis=2), active.sum(axis=1)
    losses = (distances + margin) * near - distances * far
    return ops.sum(losses, axis=1), near.sum(axis=1)


def _batch_hard(
    distances: Any, positive: Array, negative: Array, margin: float | str
) -> tuple[Any, Array]:
    farthest = ops.max(ops.where(positive, distances, 0.0), axis=1)
    nearest = ops.min(ops.where(negative, distances, np.inf), axis=1)
    counted = positive.any(axis=1) & negative.any(axis=1)
    return _losses(farthest - nearest, counted, margin), counted.astype(np.int64)


def _semi_hard(
    distances: Any, positive: Array, negative: Array, margin: float | str
) -> tuple[Any, Array]:
    xp, d = namespace(positive), unwrap(distances)
    farther = negative[:, None, :] & (d[:, None, :] > d[:, :, None])  # anchor, positive, negative
    nearest = xp.where(farther, d[:, None, :], np.inf).argmin(axis=2)
    farthest = xp.where(negative, d, -np.inf).argmax(axis=1)
    chosen = xp.where(farther.any(axis=2), nearest, farthest[:, None])
    counted = positive & negative.any(axis=1)[:, None]
    excess = distances - ops.take_along_axis(distances, chosen, axis=1)
    return ops.sum(_losses(excess, counted, margin), axis=1), counted.sum(axis=1)


def _losses(excess: Any, counted: Array, margin: float | str) -> Any:
    """Of d(anchor, positive) - d(anchor, negative); 0 where it does not count."""
    excess = ops.where(counted, excess, 0.0)
    losses = ops.softplus(excess) if margin == "soft" else ops.relu(excess + margin)
    return ops.where(counted, losses, 0.0)


_MINERS = {"batch-all": _batch_all, "batch-hard": _batch_hard, "semi-hard": _semi_hard}


# --- Centres --------------------------------------------------------------------------------------


def center_loss(
    embeddings: Any, labels: Any, centers: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """|embeddings - centers[labels]|^2 / 2 over the last axis, differentiable in both.

    embeddings: (..., d); labels: integers (...) from 0 on; centers: (classes, d); mask: (...).
    Raises ShapeError for other shapes, DtypeError for labels that are not integers, ValueError for
    one out of range (seen on the CPU only). Wen et al. 2016, eq. 2 (there a sum).
    """
    name = "center_loss"
    embeddings = as_data(embeddings)
    centers = as_data(centers, embeddings)
    if centers.ndim != 2 or centers.shape[-1:] != embeddings.shape[-1:]:
        raise ShapeError(
            f"{name}: centers: expected (classes, {embeddings.shape[-1]}), got {centers.shape}; "
            "give a row of the embeddings' size for each class"
        )
    labels, mask = class_indices(
        name, labels, embeddings, mask, argument="labels", classes=centers.shape[0]
    )
    arrays = {"embeddings": embeddings, "centers[labels]": ops.take(centers, labels, axis=0)}

    def formula(x: Any, c: Any) -> Any:
        return 0.5 * ops.sum(ops.square(x - c), axis=-1)

    return loss_of(name, formula, arrays, mask, reduction, rows=True)


# --- Samples --------------------------------------------------------------------------------------


@samples(pairwise_distances)
def _(draw: Draw):
    """Points of x and y are apart, and so are x's own: no distance is 0, but for a point's own."""
    batch, d = draw.shape(max_dims=1), draw.integer(1, 3)
    x, y = (
        draw.array((*batch, draw.integer(0, 3), d), *limits) for limits in ((-2, -0.5), (0.5, 2))
    )
    return call(x, y, draw.boolean())


def _triplets(mining: str):
    def function(embeddings, labels, mask=None, **options):
        return batch_triplet(embeddings, labels, mask, mining=mining, **options)

    function.__name__ = f"batch_triplet_{mining.replace('-', '_')}"

    @samples(function)
    def _(draw: Draw):
        """Points on a line at distances that are all different, far from those that make a kink."""
        n = draw.integer(0, 5)
        places = np.array([0.0, 1.0, 3.1, 7.3, 15.2])[list(draw.permutation(5)[:n])]
        x = places[:, None] + draw.array((n, draw.integer(1, 3)), -0.1, 0.1)
        labels = draw.integers((n,), 0, 1) * 7
        margin = draw.choice([0.02, 50.0, "soft"])
        if margin == "soft":
            x = 0.3 * x  # exp(-15^2) is no float32
        return call(x, labels, **masked(draw, (n,)), margin=margin, squared=draw.boolean())


for _mining in _MINERS:
    _triplets(_mining)


@samples(center_loss)
def _(draw: Draw):
    shape, classes, d = draw.shape(max_dims=2), draw.integer(1, 3), draw.integer(1, 3)
    labels = draw.integers(shape, 0, classes - 1)
    options = masked(draw, shape)
    return call(draw.array((*shape, d)), labels, draw.array((classes, d)), **options)
