"""Losses of yes-or-no targets: binary cross entropy and focal loss, from logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import primitive
from minidl.backend import namespace
from minidl.functional.losses.checks import (
    as_data,
    leading,
    leading_mask,
    loss_of,
    masked,
    reduced,
    require_fraction,
    require_shape,
    setting,
    wide,
)
from minidl.graph import Tensor
from minidl.samples import Draw, call, samples


def binary_cross_entropy_with_logits(
    logits: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    pos_weight: Any = None,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-w t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)), elementwise; w = 1 without pos_weight.

    logits x and targets t in [0, 1] have one shape; mask: that shape, or its leading axes.
    pos_weight: a number, or one for each entry of the last axis; it does not change what the mean
    divides by. label_smoothing e: t becomes (1 - e) t + e / 2. Raises ShapeError for other shapes.
    """
    name = "binary_cross_entropy_with_logits"
    logits = as_data(logits)
    require_fraction(name, "label_smoothing", label_smoothing)
    weight = pos_weight
    if np.ndim(pos_weight):
        weight = setting(name, "pos_weight", pos_weight, wide(logits))

    def formula(x: Any, t: Any) -> Any:
        t = _smooth(t, label_smoothing)
        if weight is None:
            return ops.softplus(x) - t * x
        return (1 - t) * x + ((weight - 1) * t + 1) * ops.softplus(-x)

    return loss_of(name, formula, {"logits": logits, "targets": targets}, mask, reduction)


def binary_focal_with_logits(
    logits: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """-a (1 - q)^gamma log q, elementwise, where q is the probability given to the target.

    For a target 1, q = sigmoid(logits) and a = alpha; for 0, q = 1 - sigmoid(logits) and
    a = 1 - alpha. alpha None: a = 1. For targets t between, 1 - q and a are the two averaged by t,
    and -log q becomes the cross entropy. Lin et al. 2017, eq. 5; the mean is over all that counts
    (the paper divides by the number of positive targets).

    logits, targets and mask as for binary cross entropy; no gradient by the targets. Raises
    ShapeError for other shapes, ValueError for a negative gamma or an alpha outside [0, 1].
    """
    name = "binary_focal_with_logits"
    if gamma < 0:
        raise ValueError(f"{name}: gamma: expected 0 or more, got {gamma!r}")
    if alpha is not None:
        require_fraction(name, "alpha", alpha)
    require_fraction(name, "label_smoothing", label_smoothing)
    logits = as_data(logits)
    targets = as_data(targets, logits)
    require_shape(name, "targets", targets, logits.shape)
    mask = leading_mask(name, mask, logits, logits.shape)
    smooth = _smooth(wide(targets), label_smoothing)
    losses = _binary_focal(wide(logits), smooth, mask, alpha, float(gamma))
    return reduced(losses, mask, reduction, logits.dtype)


def _smooth(targets: Any, smoothing: float) -> Any:
    return targets if smoothing == 0 else targets * (1 - smoothing) + smoothing / 2


@primitive(floats=True, residuals=True)
def _binary_focal(logits, targets, mask, alpha, gamma):
    """A loss for each entry, zeros where masked; keeps its derivative."""
    xp = namespace(logits)
    x, t = logits.reshape(-1), targets.reshape(-1)
    if mask is not None:
        kept = mask.reshape(-1)
        x, t = xp.where(kept, x, 0), xp.where(kept, t, 0)
    small = xp.exp(-xp.absolute(x))
    larger = 1 / (1 + small)
    p = xp.where(x > 0, larger, small * larger)  # of a target 1, and then of a target 0:
    q = xp.where(x > 0, small * larger, larger)
    other = 1 - t
    entropy = (xp.maximum(x, 0) - t * x) + xp.log1p(small)
    missing = t * q + other * p  # 1 - the probability given to the target
    factor = missing**gamma
    if alpha is not None:
        factor *= alpha * t + (1 - alpha) * other
    if mask is not None:
        factor *= kept
    # d entropy = p - t, d missing = (1 - 2 t) p q; p q / missing stays small where both vanish.
    inner = p * q / xp.maximum(missing, float(xp.finfo(x.dtype).tiny))
    slope = factor * ((p * other - t * q) + gamma * (other - t) * inner * entropy)
    return (factor * entropy).reshape(logits.shape), slope.reshape(logits.shape)


_binary_focal.defvjp(logits=lambda g, kept: g * kept)


@_binary_focal.define
def _(logits, targets, mask, alpha, gamma):
    if mask is not None:
        logits, targets = (ops.where(mask, a, 0.0) for a in (logits, targets))
    entropy = targets * ops.softplus(-logits) + (1 - targets) * ops.softplus(logits)
    missing = targets * ops.sigmoid(-logits) + (1 - targets) * ops.sigmoid(logits)
    losses = missing**gamma * entropy
    if alpha is not None:
        losses = (alpha * targets + (1 - alpha) * (1 - targets)) * losses
    return losses if mask is None else ops.where(mask, losses, 0.0)


@samples(binary_cross_entropy_with_logits)
def _(draw: Draw):
    shape = draw.shape()
    weight: Any = draw.choice([None, 2.5])
    if shape and draw.boolean():
        weight = draw.integers(shape[-1:], 1, 4)
    options = {"pos_weight": weight, "label_smoothing": draw.choice([0.0, 0.2])}
    options |= masked(draw, leading(draw, shape))
    return call(draw.array(shape), draw.array(shape, 0.0, 1.0), **options)


@samples(binary_focal_with_logits)
def _(draw: Draw):
    shape = draw.shape()
    options = {"alpha": draw.choice([None, 0.25]), "gamma": draw.choice([2.0, 0.0, 0.5, 3.0])}
    options |= {"label_smoothing": draw.choice([0.0, 0.2]), **masked(draw, leading(draw, shape))}
    return call(draw.array(shape), draw.integers(shape, 0, 1), **options)
