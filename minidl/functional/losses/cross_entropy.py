"""Cross entropy over classes: of integer targets, fused, and of target distributions."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import primitive
from minidl.backend import in_two, namespace
from minidl.functional.losses.checks import (
    as_data,
    class_indices,
    loss_of,
    masked,
    reduced,
    require_axis,
    require_fraction,
    setting,
    wide,
)
from minidl.graph import Tensor
from minidl.samples import Draw, call, samples

_BLOCK = 1 << 16  # elements of logits that stay in the cache through all passes over them
_SPLIT = 100_000  # elements from which half of the rows goes to the other thread


def softmax_cross_entropy(
    logits: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
) -> Tensor:
    """-w[target] log softmax(logits)[target], over the last axis; w = 1 without class_weights.

    logits: (..., classes); targets: integers (...) in [0, classes), of any value where masked;
    mask: (...). ignore_index: a target that counts as masked. class_weights: (classes,); the mean
    is then weighted: it divides by the sum of w[target]. label_smoothing e: the target's share is
    1 - e, and each class has e / classes more (Szegedy et al. 2016, section 7).

    Raises ShapeError for other shapes, DtypeError for targets that are not integers, and ValueError
    for a target out of range (seen on the CPU only: looking costs a GPU a wait).
    """
    name = "softmax_cross_entropy"
    logits = as_data(logits)
    targets, mask = class_indices(name, targets, logits, mask, ignore_index)
    require_fraction(name, "label_smoothing", label_smoothing)
    x = wide(logits)
    weights = setting(name, "class_weights", class_weights, x)
    losses = _cross_entropy(x, targets, mask, weights, float(label_smoothing))
    counted = None
    if weights is not None:
        counted = weights[targets]
        counted = counted if mask is None else namespace(counted).where(mask, counted, 0)
    return reduced(losses, mask, reduction, logits.dtype, counted)


def soft_target_cross_entropy(
    logits: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    class_weights: Any = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-sum over classes of w t log softmax(logits), over the last axis; w = 1 without weights.

    logits, targets t: (..., classes), each row of t a distribution; mask: (...), or its leading
    axes. class_weights: (classes,); they do not change what the mean divides by, the number of
    rows that count (as in PyTorch). label_smoothing e: t becomes (1 - e) t + e / classes. Raises
    ShapeError for other shapes.
    """
    name = "soft_target_cross_entropy"
    logits = as_data(logits)
    require_axis(name, "logits", logits)
    require_fraction(name, "label_smoothing", label_smoothing)
    weights = setting(name, "class_weights", class_weights, wide(logits))

    def formula(x: Any, t: Any) -> Any:
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing / max(1, x.shape[-1])
        if weights is not None:
            t = t * weights
        return -ops.sum(t * ops.log_softmax(x), axis=-1)

    arrays = {"logits": logits, "targets": targets}
    return loss_of(name, formula, arrays, mask, reduction, rows=True)


# --- The fused op ---------------------------------------------------------------------------------


@primitive(floats=True, residuals=True)
def _cross_entropy(logits, targets, mask, weights, smoothing):
    """A loss for each row; keeps the softmax, zeros in masked rows.

    With surprises s = -log softmax it is a s[target] + sum of b s, where a is the target's share
    and b every class's.
    """
    rows = logits.reshape(targets.size, logits.shape[-1])
    labels, kept_rows = targets.reshape(-1), None if mask is None else mask.reshape(-1)
    if namespace(rows) is not np:
        losses, softmax = _cross_entropy_portable(rows, labels, kept_rows, weights, smoothing)
        return losses.reshape(targets.shape), softmax
    losses, softmax = np.empty(len(rows), rows.dtype), np.empty(rows.shape, rows.dtype)

    def work(start, stop):
        x, p = rows[start:stop], softmax[start:stop]
        np.subtract(x, x.max(axis=1, keepdims=True), out=p)
        picked = p[np.arange(stop - start), labels[start:stop]]
        share, each = _shares(labels[start:stop], rows, weights, smoothing)
        others = None if each is None else p @ each
        np.exp(p, out=p)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        log_total = np.log(total[:, 0])
        losses[start:stop] = _combine(share, each, log_total, picked, others)
        if kept_rows is not None:
            losses[start:stop][~kept_rows[start:stop]] = 0
            p[~kept_rows[start:stop]] = 0

    _in_blocks(work, rows.shape)
    return losses.reshape(targets.shape), softmax


def _shares(labels, rows, weights, smoothing):
    """What the target's surprise counts for, a number or one a row, and what every class's does,
    (classes,), or None for nothing."""
    share = 1 - smoothing if weights is None else (1 - smoothing) * weights[labels]
    if not smoothing:
        return share, None
    xp, classes = namespace(rows), rows.shape[1]
    each = xp.ones(classes, rows.dtype) if weights is None else weights
    return share, each * (smoothing / max(1, classes))


def _combine(share, each, log_total, picked, others):
    if each is None:
        losses = log_total - picked
        return losses if type(share) is float else share * losses
    return share * (log_total - picked) + (each.sum() * log_total - others)


def _cross_entropy_portable(rows, labels, mask, weights, smoothing):
    xp = namespace(rows)
    shifted = rows - rows.max(axis=1, keepdims=True)
    picked = xp.take_along_axis(shifted, labels[:, None], 1)[:, 0]
    share, each = _shares(labels, rows, weights, smoothing)
    others = None if each is None else shifted @ each
    softmax = xp.exp(shifted)
    total = softmax.sum(axis=1, keepdims=True)
    losses = _combine(share, each, xp.log(total[:, 0]), picked, others)
    softmax = softmax / total
    if mask is not None:
        losses, softmax = xp.where(mask, losses, 0), xp.where(mask[:, None], softmax, 0)
    return losses, softmax


def _cross_entropy_rule(g, targets, mask, weights, smoothing, kept, logits_shape):
    """(a (softmax - one_hot(target)) + (sum of b) softmax - b) g."""
    xp = namespace(g)
    labels = targets.reshape(-1)
    g = (g if mask is None else xp.where(mask, g, 0)).reshape(-1)
    share, each = _shares(labels, kept, weights, smoothing)
    by_target = g if type(share) is float and each is None else g * share
    if xp is np:
        out = np.empty_like(kept)

        def work(start, stop):
            rows = slice(start, stop)
            part = np.multiply(kept[rows], by_target[rows, None], out=out[rows])
            part[np.arange(stop - start), labels[rows]] -= by_target[rows]
            if each is not None:
                part += (kept[rows] * each.sum() - each) * g[rows, None]

        _in_blocks(work, kept.shape)
    else:
        hot = xp.arange(kept.shape[1]) == labels[:, None]
        out = (kept - hot) * by_target[:, None]
        if each is not None:
            out = out + (kept * each.sum() - each) * g[:, None]
    return out.reshape(logits_shape)


_cross_entropy.defvjp(logits=_cross_entropy_rule)


@_cross_entropy.define
def _(logits, targets, mask, weights, smoothing):
    if mask is not None:
        logits = ops.where(mask[..., None], logits, 0.0)
    surprise = -ops.log_softmax(logits)
    if weights is not None:
        surprise = surprise * weights
    losses = ops.take_along_axis(surprise, targets[..., None], -1)[..., 0]
    if smoothing:
        losses = losses * (1 - smoothing) + ops.mean(surprise, axis=-1) * smoothing
    return losses if mask is None else ops.where(mask, losses, 0.0)


def _in_blocks(work, shape) -> None:  # type: ignore[no-untyped-def]
    """work(start, stop) on blocks of rows, half of them on the other thread where it pays."""
    count, width = shape
    step = max(1, _BLOCK // max(1, width))

    def run(start: int, end: int) -> None:
        for i in range(start, end, step):
            work(i, min(i + step, end))

    if count * width < _SPLIT:
        run(0, count)
    else:
        in_two(lambda: run(0, count // 2), lambda: run(count // 2, count))


@samples(softmax_cross_entropy)
def _(draw: Draw):
    shape = draw.shape(max_dims=2)
    classes = draw.integer(1, 4)
    targets = draw.integers(shape, 0, classes - 1)
    options = {"class_weights": _weights(draw, classes), "ignore_index": draw.choice([None, 0])}
    options |= {"label_smoothing": draw.choice([0.0, 0.1]), **masked(draw, shape)}
    return call(draw.array((*shape, classes)), targets, **options)


@samples(soft_target_cross_entropy)
def _(draw: Draw):
    shape = draw.shape(min_dims=1)
    options = {"class_weights": _weights(draw, shape[-1])}
    options |= {"label_smoothing": draw.choice([0.0, 0.1]), **masked(draw, shape[:-1])}
    return call(draw.array(shape), draw.array(shape, 0.0, 1.0), **options)


def _weights(draw: Draw, classes: int) -> Any:
    """Integers: floats would be differentiated."""
    return draw.integers((classes,), 1, 3) if draw.boolean() else None
