"""What all losses share: arguments and masks checked, losses reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import ops
from minidl.backend import Array, current_dtype, device_of, is_array, namespace, to_device
from minidl.errors import DtypeError, GradientError, ShapeError
from minidl.graph import Tensor, unwrap
from minidl.samples import Draw


def loss_of(
    op: str,
    formula: Callable[..., Tensor],
    arrays: dict[str, Any],
    mask: Any,
    reduction: str,
    rows: bool = False,
) -> Tensor:
    """The reduced `formula` of `arrays` (name to value), which have one shape.

    The formula is elementwise, or with `rows` takes the last axis away; the mask is of the shape of
    what it returns, or of its leading axes.
    """
    names = list(arrays)
    first = as_data(arrays[names[0]])
    values = [first] + [as_data(arrays[name], first) for name in names[1:]]
    for name, value in zip(names[1:], values[1:], strict=True):
        require_shape(op, name, value, first.shape)
    if rows:
        require_axis(op, names[0], first)
    values = [wide(value) for value in values]
    mask = leading_mask(op, mask, first, first.shape[:-1] if rows else first.shape)
    if mask is None:
        return reduced(formula(*values), None, reduction, first.dtype)
    # Before the formula, and not only after: 0 times the slope at a NaN would be NaN.
    kept = mask[..., None] if rows else mask
    losses = formula(*(ops.where(kept, value, 0.0) for value in values))
    return reduced(ops.where(mask, losses, 0.0), mask, reduction, first.dtype)


def as_data(x: Any, beside: Any = None) -> Any:
    """x as a Tensor or an array; a list goes to where `beside` is."""
    if isinstance(x, Tensor) or is_array(x):
        return x
    return Tensor(x, device=None if beside is None else device_of(unwrap(beside)))


def constant(value: Any, beside: Any) -> Array | None:
    """The bare array of integer targets, a mask or weights; lists go to where `beside` is."""
    value = unwrap(value)
    if value is None or is_array(value):
        return value
    return to_device(np.asarray(value), device_of(unwrap(beside)))


def setting(op: str, name: str, value: Any, logits: Any) -> Array | None:
    """Weights (classes,) that a loss was made with, on the device of `logits` and in its dtype."""
    if value is None:
        return None
    if isinstance(value, Tensor) and value.requires_grad:
        raise GradientError(f"{op}: {name} has no derivative here; pass {name}.detach()")
    array = unwrap(value)
    array = array if is_array(array) else np.asarray(array)
    expected = logits.shape[-1:]
    if array.shape != expected:
        raise ShapeError(
            f"{op}: {name}: expected shape {expected}, got {array.shape}; give one number for each "
            "entry of the last axis of logits"
        )
    return to_device(array.astype(logits.dtype, copy=False), device_of(unwrap(logits)))


def wide(x: Any) -> Any:
    """x in float32 where it is float16, in the default dtype where it is no float at all."""
    if x.dtype.kind == "f" and x.dtype.itemsize >= 4:
        return x
    return ops.astype(x, np.float32 if x.dtype.kind == "f" else current_dtype())


def require_shape(op: str, argument: str, value: Any, expected: tuple[int, ...]) -> None:
    if value.shape == tuple(expected):
        return
    mend = "losses do not broadcast: reshape or index one of the two"
    if value.shape == tuple(expected[:-1]) and value.dtype.kind in "iu":
        mend = "integer labels want the sparse loss, or the transform OneHot(classes)"
    elif value.shape[:-1] == tuple(expected) and op.endswith("cross_entropy"):
        mend = "distributions want CategoricalCrossentropy, which is not sparse"
    raise ShapeError(
        f"{op}: {argument}: expected shape {tuple(expected)}, got {value.shape}; {mend}"
    )


def require_axis(op: str, argument: str, value: Any) -> None:
    if not value.ndim:
        raise ShapeError(f"{op}: {argument}: expected one axis or more, got a scalar")


def require_mask(op: str, mask: Array, expected: tuple[int, ...]) -> None:
    require_shape(op, "mask", mask, expected)
    if mask.dtype != np.bool_:
        raise DtypeError(
            f"{op}: mask: expected booleans (True = counts), got {mask.dtype}; use mask > 0"
        )


def leading_mask(op: str, mask: Any, beside: Any, shape: tuple[int, ...]) -> Array | None:
    """A mask of `shape`, or of its leading axes, as one of `shape`."""
    mask = constant(mask, beside)
    if mask is None:
        return None
    require_mask(op, mask, shape[: mask.ndim])
    axes = (1,) * (len(shape) - mask.ndim)
    return namespace(mask).broadcast_to(mask.reshape(mask.shape + axes), shape)


def class_indices(
    op: str,
    targets: Any,
    logits: Any,
    mask: Any,
    ignored: int | None = None,
    argument: str = "targets",
    classes: int | None = None,
) -> tuple[Array, Array | None]:
    """Integer targets (...) for logits (..., classes), 0 where masked, and the mask (...)."""
    targets, mask = integer_targets(op, argument, targets, logits, mask, ignored)
    require_range(op, argument, targets, logits.shape[-1] if classes is None else classes)
    return targets, mask


def integer_targets(
    op: str, argument: str, targets: Any, logits: Any, mask: Any, ignored: int | None = None
) -> tuple[Array, Array | None]:
    """As `class_indices`, integers of any size."""
    require_axis(op, "logits" if argument == "targets" else "embeddings", logits)
    targets, mask = constant(targets, logits), constant(mask, logits)
    expected = logits.shape[:-1]
    require_shape(op, argument, targets, expected)
    if targets.dtype.kind not in "iu":
        raise DtypeError(
            f"{op}: {argument}: expected integers, got {targets.dtype}; use "
            f"{argument}.astype('int64')"
        )
    if mask is not None:
        require_mask(op, mask, expected)
    if ignored is not None:
        mask = targets != ignored if mask is None else mask & (targets != ignored)
    if mask is not None:
        targets = namespace(targets).where(mask, targets, 0)
    return targets, mask


def require_range(op: str, argument: str, targets: Array, classes: int) -> None:
    """On the CPU only: looking costs a GPU a wait."""
    if type(targets) is not np.ndarray or not targets.size:
        return
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= classes:
        raise ValueError(
            f"{op}: {argument}: expected 0 to {classes - 1}, got {low} to {high}; "
            "mask out what is not a target"
        )


def require_fraction(op: str, name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{op}: {name}: expected a number from 0 to 1, got {value!r}")


def reduced(
    losses: Tensor, mask: Array | None, reduction: str, dtype: Any, weights: Array | None = None
) -> Tensor:
    """The mean, the sum, or the losses themselves, zeros where masked, as `dtype`.

    The mean divides by the sum of `weights`, else by how many the mask keeps; 0 where that is 0.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction: expected 'mean', 'sum' or 'none', got {reduction!r}")
    if reduction == "mean" and mask is None and weights is None and losses.size:
        losses = ops.mean(losses)
    elif reduction != "none":
        total = ops.sum(losses)
        counted = mask if weights is None else weights
        if reduction == "mean" and counted is not None:
            count = counted.sum(dtype=losses.dtype)
            total = total / namespace(counted).where(count > 0, count, 1).astype(losses.dtype)
        losses = total
    return losses if losses.dtype == dtype or dtype.kind != "f" else ops.astype(losses, dtype)


def masked(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    """For samples: a mask, or none, and a reduction."""
    mask = draw.mask(shape) if draw.boolean() else None
    return {"mask": mask, "reduction": draw.choice(["mean", "sum", "none"])}


def leading(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """For samples: some of the leading axes of `shape`."""
    return shape[: draw.integer(0, len(shape))]
