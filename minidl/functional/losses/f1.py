"""The F1 score of each class with probabilities in the place of counts, so that it has a slope."""

from __future__ import annotations

from typing import Any

from minidl import ops
from minidl.backend import Array
from minidl.functional.losses.checks import (
    as_data,
    class_indices,
    leading_mask,
    masked,
    reduced,
    require_axis,
    require_shape,
    wide,
)
from minidl.graph import Tensor, unwrap
from minidl.samples import Draw, call, samples


def soft_f1(logits: Any, targets: Any, mask: Any = None, reduction: str = "mean") -> Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)) of each class, the sums over all rows that count.

    p = softmax(logits) over the last axis, t the targets, one-hot. Were p 0 or 1, the mean over
    classes would be 1 - the macro F1 score. Classes that no target has count as masked: whatever is
    predicted, their score is 0, and so is its slope. The loss is of the batch as a whole, not of
    its rows, and a small batch that lacks classes is a poor guess at the score of all data.

    logits: (..., classes); targets: integers (...), or distributions (..., classes); mask: (...),
    for distributions also its leading axes. reduction "none": (classes,). Raises ShapeError for
    other shapes, DtypeError for targets (...) that are not integers.
    """
    logits = as_data(logits)
    x, t, mask = _rows(logits, targets, mask)
    p = ops.softmax(x)
    if mask is not None:
        p = ops.where(mask[..., None], p, 0.0)
    rows = tuple(range(x.ndim - 1))
    wanted = ops.sum(t, axis=rows)
    found = ops.sum(p, axis=rows)
    there = unwrap(wanted) > 0
    total = ops.where(there, found + wanted, 1.0)
    losses = ops.where(there, 1 - 2 * ops.sum(p * t, axis=rows) / total, 0.0)
    return reduced(losses, there, reduction, logits.dtype)


def soft_f1_count(logits: Any, targets: Any, mask: Any = None) -> Array:
    """How many classes the targets have: what the mean of `soft_f1` divides by."""
    x, t, _ = _rows(as_data(logits), targets, mask)
    return (unwrap(t).sum(axis=tuple(range(x.ndim - 1))) > 0).sum()


def _rows(logits: Any, targets: Any, mask: Any) -> tuple[Any, Any, Any]:
    """Logits and target distributions, zeros where masked, and the mask (...)."""
    name = "soft_f1"
    require_axis(name, "logits", logits)
    x, targets = wide(logits), as_data(targets, logits)
    if targets.ndim == logits.ndim:
        require_shape(name, "targets", targets, logits.shape)
        t, mask = wide(targets), leading_mask(name, mask, logits, logits.shape[:-1])
    else:
        labels, mask = class_indices(name, targets, logits, mask)
        t = ops.one_hot(labels, logits.shape[-1], x.dtype)
    if mask is not None:
        x, t = (ops.where(mask[..., None], a, 0.0) for a in (x, t))
    return x, t, mask


@samples(soft_f1)
def _(draw: Draw):
    shape = draw.shape(max_dims=2)
    classes = draw.integer(1, 4)
    if draw.boolean():
        targets = draw.array((*shape, classes), 0.1, 1.0)
    else:
        targets = draw.integers(shape, 0, classes - 1)
    return call(draw.array((*shape, classes)), targets, **masked(draw, shape))
