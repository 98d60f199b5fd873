"""Losses as functions of predictions and targets. None of them broadcasts one against the other.

`mask` is boolean, True = counts; what it leaves out has loss 0 and gradient 0, whatever stands
there, and does not count in the mean. `reduction` is "mean" (over what counts; 0 where nothing
does), "sum" or "none" (a loss for each item).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import primitive
from minidl.backend import Array, device_of, in_two, is_array, namespace, to_device
from minidl.errors import DtypeError, ShapeError
from minidl.graph import Tensor, unwrap
from minidl.samples import Draw, call, samples

_BLOCK = 1 << 16  # elements of logits that stay in the cache through all passes over them
_SPLIT = 100_000  # elements from which half of the rows goes to the other thread


def softmax_cross_entropy(
    logits: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """-log softmax(logits)[target], over the last axis.

    logits: (..., classes); targets: integers (...) in [0, classes), of any value where masked;
    mask: (...). Raises ShapeError for other shapes, DtypeError for targets that are not integers,
    and ValueError for a target out of range (seen on the CPU only: looking costs a GPU a wait).
    """
    logits = _as_data(logits)
    targets, mask = _beside(targets, logits), _beside(mask, logits)
    expected = np.shape(logits)[:-1]
    _require_shape("softmax_cross_entropy", "targets", targets, expected)
    if targets.dtype.kind not in "iu":
        raise DtypeError(
            f"softmax_cross_entropy: targets: expected integers, got {targets.dtype}; use "
            "targets.astype('int64')"
        )
    if mask is not None:
        mask = _require_mask("softmax_cross_entropy", mask, expected)
        targets = namespace(targets).where(mask, targets, 0)
    _require_range(targets, np.shape(logits)[-1])
    return _reduce(_cross_entropy(logits, targets, mask), mask, reduction)


def mean_squared_error(
    predictions: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """(predictions - targets)^2, elementwise; the two have one shape.

    mask: of that shape, or of its leading axes. Raises ShapeError otherwise.
    """
    predictions, targets, mask = _checked("mean_squared_error", predictions, targets, mask)
    return _reduce(ops.square(predictions - targets), mask, reduction)


def binary_cross_entropy_with_logits(
    logits: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """-t log sigmoid(x) - (1 - t) log(1 - sigmoid(x)) = softplus(x) - t x, elementwise.

    logits x and targets t in [0, 1] have one shape; mask: that shape, or its leading axes. Raises
    ShapeError otherwise.
    """
    name = "binary_cross_entropy_with_logits"
    logits, targets, mask = _checked(name, logits, targets, mask)
    return _reduce(ops.softplus(logits) - targets * logits, mask, reduction)


# --- The fused op ---------------------------------------------------------------------------------


@primitive(floats=True, residuals=True)
def _cross_entropy(logits, targets, mask):
    """A loss for each row; keeps the softmax, zeros in masked rows."""
    rows = logits.astype(np.float32) if logits.dtype.itemsize < 4 else logits
    rows = rows.reshape(targets.size, rows.shape[-1])
    labels, kept_rows = targets.reshape(-1), None if mask is None else mask.reshape(-1)
    if namespace(rows) is not np:
        losses, softmax = _cross_entropy_portable(rows, labels, kept_rows)
        return losses.astype(logits.dtype).reshape(targets.shape), softmax
    losses, softmax = np.empty(len(rows), rows.dtype), np.empty(rows.shape, rows.dtype)

    def work(start, stop):
        x, p = rows[start:stop], softmax[start:stop]
        np.subtract(x, x.max(axis=1, keepdims=True), out=p)
        picked = p[np.arange(stop - start), labels[start:stop]]
        np.exp(p, out=p)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        losses[start:stop] = np.log(total[:, 0]) - picked
        if kept_rows is not None:
            losses[start:stop][~kept_rows[start:stop]] = 0
            p[~kept_rows[start:stop]] = 0

    _in_blocks(work, rows.shape)
    return losses.astype(logits.dtype, copy=False).reshape(targets.shape), softmax


def _cross_entropy_portable(rows, labels, mask):
    xp = namespace(rows)
    shifted = rows - rows.max(axis=1, keepdims=True)
    picked = xp.take_along_axis(shifted, labels[:, None], 1)[:, 0]
    softmax = xp.exp(shifted)
    total = softmax.sum(axis=1, keepdims=True)
    losses, softmax = xp.log(total[:, 0]) - picked, softmax / total
    if mask is not None:
        losses, softmax = xp.where(mask, losses, 0), xp.where(mask[:, None], softmax, 0)
    return losses, softmax


def _cross_entropy_rule(g, targets, mask, kept, logits_shape):
    """(softmax - one_hot(target)) * g."""
    xp = namespace(g)
    labels = targets.reshape(-1)
    weights = (g if mask is None else xp.where(mask, g, 0)).astype(kept.dtype).reshape(-1, 1)
    if xp is np:
        out = np.empty_like(kept)

        def work(start, stop):
            part = np.multiply(kept[start:stop], weights[start:stop], out=out[start:stop])
            part[np.arange(stop - start), labels[start:stop]] -= weights[start:stop, 0]

        _in_blocks(work, kept.shape)
    else:
        out = (kept - (xp.arange(kept.shape[1]) == labels[:, None])) * weights
    return out.astype(g.dtype, copy=False).reshape(logits_shape)


_cross_entropy.defvjp(logits=_cross_entropy_rule)


@_cross_entropy.define
def _(logits, targets, mask):
    picked = ops.take_along_axis(logits, targets[..., None], -1)[..., 0]
    losses = ops.logsumexp(logits, axis=-1) - picked
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


# --- Common to all --------------------------------------------------------------------------------


def _as_data(x: Any) -> Any:
    return x if isinstance(x, Tensor) or is_array(x) else Tensor(x)


def _beside(value: Any, other: Any) -> Array | None:
    """The bare array of targets or a mask; lists go to where `other` is."""
    value = unwrap(value)
    if value is None or is_array(value):
        return value
    return to_device(np.asarray(value), device_of(unwrap(other)))


def _checked(op: str, predictions: Any, targets: Any, mask: Any) -> tuple[Any, Any, Array | None]:
    predictions = _as_data(predictions)
    if not (isinstance(targets, Tensor) or is_array(targets)):
        targets = Tensor(targets, device=device_of(unwrap(predictions)))
    _require_shape(op, "targets", targets, predictions.shape)
    mask = _beside(mask, predictions)
    if mask is not None:
        mask = _require_mask(op, mask, predictions.shape[: mask.ndim])
        axes = predictions.ndim - mask.ndim
        xp = namespace(mask)
        mask = xp.broadcast_to(mask.reshape(mask.shape + (1,) * axes), predictions.shape)
        # Before the formula, not after: 0 times the slope at a NaN would be NaN.
        predictions, targets = (ops.where(mask, a, 0.0) for a in (predictions, targets))
    return predictions, targets, mask


def _require_shape(op: str, argument: str, value: Any, expected: tuple[int, ...]) -> None:
    if value.shape != tuple(expected):
        raise ShapeError(
            f"{op}: {argument}: expected shape {tuple(expected)}, got {value.shape}; losses do not "
            "broadcast: reshape or index one of the two"
        )


def _require_mask(op: str, mask: Array, expected: tuple[int, ...]) -> Array:
    _require_shape(op, "mask", mask, expected)
    if mask.dtype != np.bool_:
        raise DtypeError(
            f"{op}: mask: expected booleans (True = counts), got {mask.dtype}; use mask > 0"
        )
    return mask


def _require_range(targets: Array, classes: int) -> None:
    if type(targets) is not np.ndarray or not targets.size:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"softmax_cross_entropy: targets: expected 0 to {classes - 1}, got {low} to {high}; "
            "mask out what is not a target"
        )


def _reduce(losses: Tensor, mask: Array | None, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if mask is not None:
        losses = ops.where(mask, losses, 0.0)
    if reduction == "none":
        return losses
    if reduction == "mean" and mask is None and losses.size:
        return ops.mean(losses)
    total = ops.sum(losses)
    if reduction == "sum" or mask is None:
        return total
    return total / namespace(mask).maximum(mask.sum(), 1).astype(losses.dtype)


def _masked(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    mask = draw.mask(shape) if draw.boolean() else None
    return {"mask": mask, "reduction": draw.choice(["mean", "sum", "none"])}


@samples(softmax_cross_entropy)
def _(draw: Draw):
    shape = draw.shape(max_dims=2)
    classes = draw.integer(1, 4)
    targets = draw.integers(shape, 0, classes - 1)
    return call(draw.array((*shape, classes)), targets, **_masked(draw, shape))


@samples(mean_squared_error)
@samples(binary_cross_entropy_with_logits)
def _(draw: Draw):
    shape = draw.shape()
    leading = shape[: draw.integer(0, len(shape))]
    return call(draw.array(shape), draw.array(shape, 0.0, 1.0), **_masked(draw, leading))
