"""Losses with a margin, and losses of embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.backend import namespace
from minidl.errors import ShapeError
from minidl.functional.losses.checks import (
    as_data,
    class_indices,
    leading,
    loss_of,
    masked,
    reduced,
    require_axis,
    require_shape,
    wide,
)
from minidl.graph import Tensor, unwrap
from minidl.samples import Draw, call, samples

# --- Scores ---------------------------------------------------------------------------------------


def hinge(scores: Any, targets: Any, mask: Any = None, reduction: str = "mean") -> Tensor:
    """max(0, 1 - targets scores), elementwise; targets are -1 and 1, of the shape of scores.

    mask: that shape, or its leading axes. Raises ShapeError for other shapes, ValueError for other
    targets (seen on the CPU only).
    """
    _require_signs("hinge", targets, mask)
    arrays = {"scores": scores, "targets": targets}
    return loss_of("hinge", lambda x, t: ops.relu(1 - t * x), arrays, mask, reduction)


def squared_hinge(scores: Any, targets: Any, mask: Any = None, reduction: str = "mean") -> Tensor:
    """max(0, 1 - targets scores)^2, elementwise; all else as in hinge."""
    _require_signs("squared_hinge", targets, mask)
    arrays = {"scores": scores, "targets": targets}
    return loss_of(
        "squared_hinge", lambda x, t: ops.square(ops.relu(1 - t * x)), arrays, mask, reduction
    )


def categorical_hinge(
    scores: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """max(0, 1 + the largest score of another class - scores[target]), over the last axis.

    scores: (..., classes), two classes or more; targets: integers (...); mask: (...). What is
    raised is as in softmax_cross_entropy. Crammer and Singer 2001. (Keras's takes one-hot
    targets, and 0 for the largest other score where all are below 0.)
    """
    name = "categorical_hinge"
    scores = as_data(scores)
    targets, mask = class_indices(name, targets, scores, mask)
    if scores.shape[-1] < 2:
        raise ShapeError(f"{name}: scores: expected two classes or more, got {scores.shape[-1]}")
    x = wide(scores)
    if mask is not None:
        x = ops.where(mask[..., None], x, 0.0)
    hot = namespace(targets).arange(scores.shape[-1]) == targets[..., None]
    own = ops.take_along_axis(x, targets[..., None], -1)[..., 0]
    losses = ops.relu(1 - own + ops.max(ops.where(hot, -np.inf, x), axis=-1))
    losses = losses if mask is None else ops.where(mask, losses, 0.0)
    return reduced(losses, mask, reduction, scores.dtype)


def margin_ranking(
    first: Any,
    second: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    margin: float = 0.0,
) -> Tensor:
    """max(0, margin - targets (first - second)), elementwise: target 1 wants the first score larger
    by the margin, -1 the second.

    first, second, targets: one shape; mask: that shape, or its leading axes. Raises as hinge does.
    """
    _require_signs("margin_ranking", targets, mask)
    arrays = {"first": first, "second": second, "targets": targets}
    return loss_of(
        "margin_ranking", lambda x, y, t: ops.relu(margin - t * (x - y)), arrays, mask, reduction
    )


def _require_signs(op: str, targets: Any, mask: Any) -> None:
    """Targets are -1 and 1 where the mask keeps them; looked at on the CPU only."""
    targets, mask = unwrap(targets), unwrap(mask)
    if isinstance(targets, (list, tuple)):
        targets = np.asarray(targets)
    if type(targets) is not np.ndarray:
        return
    wrong = np.abs(targets) != 1
    if mask is not None and np.shape(mask) == targets.shape[: np.ndim(mask)]:
        wrong = wrong[np.asarray(mask, bool)]
    if wrong.any():
        raise ValueError(
            f"{op}: targets: expected -1 and 1, got {targets.min():.3g} to {targets.max():.3g}; "
            "give 2 * targets - 1 for 0 and 1"
        )


# --- Embeddings -----------------------------------------------------------------------------------


def cosine_similarity(x: Any, y: Any) -> Tensor:
    """x . y / (|x| |y|), over the last axis: (..., n), (..., n) -> (...). The vector 0 is like no
    other: 0, with gradient 0. Raises ShapeError unless the shapes are equal.
    """
    return loss_of("cosine_similarity", _cosine, {"x": x, "y": y}, None, "none", rows=True)


def _cosine(x: Any, y: Any) -> Any:
    return ops.sum(_unit(x) * _unit(y), axis=-1)


def _unit(x: Any) -> Any:
    """The vectors of length 1 along the last axis; the vector 0 stays."""
    length = ops.norm(x, axis=-1, keepdims=True)
    some = length > 0
    return ops.where(some, x / ops.where(some, length, 1.0), 0.0)


def negative_cosine_similarity(
    predictions: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """-cosine_similarity(predictions, targets); mask: (...), or its leading axes."""
    arrays = {"predictions": predictions, "targets": targets}
    name = "negative_cosine_similarity"
    return loss_of(name, lambda x, t: -_cosine(x, t), arrays, mask, reduction, rows=True)


def triplet_margin(
    anchor: Any,
    positive: Any,
    negative: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    margin: float = 1.0,
) -> Tensor:
    """max(0, |anchor - positive| - |anchor - negative| + margin): distances over the last axis.

    The three: (..., n); mask: (...), or its leading axes. A distance of 0 has gradient 0. Raises
    ShapeError for other shapes. Schroff et al. 2015, section 3.1 (there with squared
    distances); Balntas et al. 2016.
    """

    def formula(a: Any, p: Any, n: Any) -> Any:
        return ops.relu(ops.norm(a - p, axis=-1) - ops.norm(a - n, axis=-1) + margin)

    arrays = {"anchor": anchor, "positive": positive, "negative": negative}
    return loss_of("triplet_margin", formula, arrays, mask, reduction, rows=True)


def contrastive(
    first: Any,
    second: Any,
    alike: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    margin: float = 1.0,
) -> Tensor:
    """d^2 / 2 for pairs that are alike, max(0, margin - d)^2 / 2 for others, where d is the length
    of first - second over the last axis.

    first, second: (..., n); alike: booleans, or 1 and 0, of shape (...); mask: (...), or its
    leading axes. A distance of 0 has gradient 0. Raises ShapeError for other shapes. Hadsell et al.
    2006, eq. 4, whose Y is 1 for pairs that are not alike.
    """
    first = as_data(first)
    alike = as_data(alike, first)
    require_axis("contrastive", "first", first)
    require_shape("contrastive", "alike", alike, first.shape[:-1])
    alike = unwrap(alike) > 0

    def formula(x: Any, y: Any) -> Any:
        d = x - y
        apart = ops.square(ops.relu(margin - ops.norm(d, axis=-1)))
        return ops.where(alike, ops.sum(ops.square(d), axis=-1), apart) * 0.5

    return loss_of("contrastive", formula, {"first": first, "second": second}, mask, reduction,
                   rows=True)  # fmt: skip


@samples(hinge)
@samples(squared_hinge)
def _(draw: Draw):
    shape = draw.shape()
    scores = draw.array(shape, away=(-1.0, 1.0))
    return call(scores, _signs(draw, shape), **masked(draw, leading(draw, shape)))


@samples(categorical_hinge)
def _(draw: Draw):
    """The largest other score is apart from the rest, and never 1 below the target's."""
    shape, classes = draw.shape(max_dims=2), draw.integer(2, 4)
    targets = draw.integers(shape, 0, classes - 1)
    scores = draw.array((*shape, classes), distinct=True, low=-9.0, high=9.0)
    order = np.sort(np.where(np.arange(classes) == targets[..., None], -np.inf, scores))[..., -1]
    own = np.take_along_axis(scores, targets[..., None], -1)[..., 0]
    shift = np.where(np.abs(own - order - 1) < 0.1, 0.2, 0.0)[..., None]
    scores = scores + shift * (np.arange(classes) == targets[..., None])
    return call(scores, targets, **masked(draw, shape))


@samples(margin_ranking)
def _(draw: Draw):
    shape = draw.shape()
    second = draw.array(shape)
    first = np.asarray(second + draw.array(shape, away=(-0.5, 0.5)))
    options = {"margin": 0.5, **masked(draw, leading(draw, shape))}
    return call(first, second, _signs(draw, shape), **options)


# Of a single entry the cosine is its sign, and the gradient nothing but rounding: two at least.


@samples(cosine_similarity)
def _(draw: Draw):
    shape = (*draw.shape(max_dims=2, min_side=1), draw.integer(2, 4))
    return call(draw.array(shape, 0.3, 2.0), draw.array(shape))


@samples(negative_cosine_similarity)
def _(draw: Draw):
    shape = (*draw.shape(max_dims=2, min_side=1), draw.integer(2, 4))
    options = masked(draw, leading(draw, shape[:-1]))
    return call(draw.array(shape), draw.array(shape, 0.3, 2.0), **options)


@samples(triplet_margin)
def _(draw: Draw):
    """The positive farther than the negative, or nearer by more than the margin: by its sign."""
    shape = draw.shape(min_dims=1, min_side=1)
    anchor = draw.array(shape)
    positive, negative = (anchor + draw.array(shape, *pair) for pair in ((0.5, 1.0), (1.2, 1.6)))
    if draw.boolean():
        positive, negative = negative, positive
    options = {"margin": draw.choice([0.01, 5.0]), **masked(draw, leading(draw, shape[:-1]))}
    return call(anchor, positive, negative, **options)


@samples(contrastive)
def _(draw: Draw):
    shape = draw.shape(min_dims=1, min_side=1)
    first = draw.array(shape)
    options = {"margin": draw.choice([0.1, 6.0]), **masked(draw, leading(draw, shape[:-1]))}
    alike = draw.integers(shape[:-1], 0, 1)
    return call(first, first + draw.array(shape, 0.2, 1.0), alike, **options)


def _signs(draw: Draw, shape: tuple[int, ...]) -> np.ndarray:
    return 2 * draw.integers(shape, 0, 1) - 1
