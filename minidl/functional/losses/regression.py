"""Losses of numbers, elementwise, and of what a distribution predicts: counts and probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import primitive
from minidl.backend import namespace
from minidl.functional.losses.checks import leading, loss_of, masked
from minidl.graph import Tensor
from minidl.samples import Draw, call, samples


def mean_squared_error(
    predictions: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """(predictions - targets)^2, elementwise; the two have one shape.

    mask: of that shape, or of its leading axes. Raises ShapeError otherwise.
    """
    arrays = {"predictions": predictions, "targets": targets}
    return loss_of("mean_squared_error", lambda x, t: ops.square(x - t), arrays, mask, reduction)


def mean_absolute_error(
    predictions: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """|predictions - targets|, elementwise, of gradient 0 where they are equal.

    Shapes as in mean_squared_error.
    """
    arrays = {"predictions": predictions, "targets": targets}
    return loss_of("mean_absolute_error", lambda x, t: ops.abs(x - t), arrays, mask, reduction)


def huber(
    predictions: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    delta: float = 1.0,
) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta (|d| - delta / 2), with d = predictions - targets.

    Elementwise; shapes as in mean_squared_error. Raises ValueError unless delta > 0. Huber 1964.
    """
    if not delta > 0:
        raise ValueError(f"huber: delta: expected a number above 0, got {delta!r}")

    def formula(x: Any, t: Any) -> Any:
        d = x - t
        near = ops.clip(d, -delta, delta)
        return near * (d - near * 0.5)

    return loss_of("huber", formula, {"predictions": predictions, "targets": targets}, mask,
                   reduction)  # fmt: skip


def log_cosh(predictions: Any, targets: Any, mask: Any = None, reduction: str = "mean") -> Tensor:
    """log(cosh(predictions - targets)), elementwise: d^2 / 2 near 0, |d| - log 2 far from it.

    Shapes as in mean_squared_error.
    """
    arrays = {"predictions": predictions, "targets": targets}
    return loss_of("log_cosh", lambda x, t: _log_cosh(x - t), arrays, mask, reduction)


@primitive(floats=True)
def _log_cosh(x):
    """cosh(x) = 1 + 2 sinh(x / 2)^2 near 0, and exp(|x|) (1 + exp(-2 |x|)) / 2 far from it."""
    xp = namespace(x)
    size = xp.absolute(x)
    near = xp.sinh(xp.minimum(size, 1) * 0.5)
    far = size - math.log(2) + xp.log1p(xp.exp(-2 * size))
    return xp.where(size < 1, xp.log1p(2 * near * near), far)


_log_cosh.defvjp(x=lambda g, x: g * ops.tanh(x))


def poisson(
    predictions: Any,
    targets: Any,
    mask: Any = None,
    reduction: str = "mean",
    *,
    log_input: bool = True,
    epsilon: float = 1e-8,
) -> Tensor:
    """rate - targets log(rate): Poisson's -log likelihood of counts, but for log(targets!).

    predictions are log(rate), or where `log_input` is False the rate itself, to which epsilon is
    added in the logarithm. Elementwise; shapes as in mean_squared_error.
    """

    def formula(x: Any, t: Any) -> Any:
        return ops.exp(x) - t * x if log_input else x - t * ops.log(x + epsilon)

    arrays = {"predictions": predictions, "targets": targets}
    return loss_of("poisson", formula, arrays, mask, reduction)


def kl_divergence(
    log_predictions: Any, targets: Any, mask: Any = None, reduction: str = "mean"
) -> Tensor:
    """The sum of t (log t - log_predictions) over the last axis.

    log_predictions (as of log_softmax) and the distributions t have one shape (..., classes). A
    target of 0 adds 0. mask: (...), or its leading axes. The mean is over rows, PyTorch's
    "batchmean". Raises ShapeError for other shapes. Kullback and Leibler 1951.
    """

    def formula(x: Any, t: Any) -> Any:
        safe = ops.where(t > 0, t, 1.0)
        return ops.sum(t * (ops.log(safe) - x), axis=-1)

    arrays = {"log_predictions": log_predictions, "targets": targets}
    return loss_of("kl_divergence", formula, arrays, mask, reduction, rows=True)


@samples(mean_squared_error)
@samples(log_cosh)
def _(draw: Draw):
    shape = draw.shape()
    return call(draw.array(shape), draw.array(shape), **_masked(draw, shape))


@samples(poisson)
def _(draw: Draw):
    shape = draw.shape()
    arrays = draw.array(shape, 0.3, 2.0), draw.array(shape, 0.0, 3.0)
    return call(*arrays, log_input=draw.boolean(), **_masked(draw, shape))


@samples(mean_absolute_error)
@samples(huber)
def _(draw: Draw):
    """Differences away from the kinks at 0 and at 1."""
    shape = draw.shape()
    targets = draw.array(shape)
    differences = draw.array(shape, -2.0, 2.0, away=(-1.0, 0.0, 1.0))
    return call(np.asarray(targets + differences), targets, **_masked(draw, shape))


@samples(kl_divergence)
def _(draw: Draw):
    shape = draw.shape(min_dims=1)
    arrays = draw.array(shape, -3.0, 0.0), draw.array(shape, 0.2, 1.0)
    return call(*arrays, **_masked(draw, shape[:-1]))


def _masked(draw: Draw, shape: tuple[int, ...]) -> dict[str, Any]:
    return masked(draw, leading(draw, shape))
