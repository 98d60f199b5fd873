"""Lower bounds: how much a network really stretches distances, here and there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import enable_grad, grad, no_grad
from minidl.derivatives import vjp
from minidl.errors import ShapeError
from minidl.graph import Tensor
from minidl.layers.layer import Layer
from minidl.training.loop import evaluating


def local_slopes(f: Callable, x: Any, steps: int = 20) -> np.ndarray:
    """How much `f` stretches at each item of `x` (batch, ...): the norm of its Jacobian, (batch,).

    By so many steps of power iteration on J^T J, from below, beginning in random directions. `f`
    must be differentiable and take the items one by one: a layer is put into evaluation mode
    meanwhile; a function of one is to do that itself.
    """
    x = _constant(x)
    with _at_rest(f):
        return _steepest(f, x, steps)[1].numpy()


def lower_bound(f: Callable, x: Any, steps: int = 50, distance: float = 0.1) -> float:
    """The largest slope of `f` that is found by ascent from the items of `x` (batch, ...).

    Around each item a pair of points, `distance` apart in the direction that is stretched most
    (see `local_slopes`), climbs |f(a) - f(b)| / |a - b|; the Jacobians where it arrives count too.
    Never above the true constant, but for rounding: give float64. `f` as for `local_slopes`. Raises
    ShapeError for no items, ValueError where f has a slope that is not finite.
    """
    x = _constant(x)
    with _at_rest(f):
        return _climbed(f, x, steps, distance)


def _at_rest(f: Callable) -> AbstractContextManager:
    return evaluating(f) if isinstance(f, Layer) else nullcontext()


def _climbed(f: Callable, x: Tensor, steps: int, distance: float) -> float:
    directions, slopes = _steepest(f, x, 10)
    if not np.isfinite(slopes.numpy()).all():
        raise ValueError(
            "lower_bound: f: expected finite slopes, got NaN or infinity at an item of x; look for "
            "NaN in the weights"
        )
    half = 0.5 * distance * directions
    a, b = x - half, x + half
    best = 0.0
    for _ in range(steps):
        a, b = Tensor(a, requires_grad=True), Tensor(b, requires_grad=True)
        with enable_grad():
            apart = _lengths(a - b)
            slopes = _lengths(f(a) - f(b)) / apart
            up = grad(ops.sum(slopes), [a, b])
        best = max(best, float(ops.max(slopes)))
        steepness = ops.sqrt(_lengths(up[0]) ** 2 + _lengths(up[1]) ** 2)
        rate = 0.1 * apart.detach() / ops.where(ops.equal(steepness, 0), 1.0, steepness)
        rate = _beside(rate, x)
        a, b = _apart(a.detach() + rate * up[0], b.detach() + rate * up[1], 1e-3 * distance)
    return max(best, *(float(_steepest(f, end, 20)[1].numpy().max()) for end in (x, a, b)))


def _apart(a: Tensor, b: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Both, moved from one another where they are nearer than `least`: rounding would rule."""
    middle, half = 0.5 * (a + b), 0.5 * (b - a)
    length = ops.maximum(2 * _lengths(half), 1e-30)
    half = half * _beside(ops.maximum(1.0, least / length), half)
    return middle - half, middle + half


def _constant(x: Any) -> Tensor:
    if np.ndim(x) < 2 or not np.size(x):
        raise ShapeError(
            f"lipschitz: x: expected items (batch, ...), got shape {np.shape(x)}; use x[None] for "
            "one item"
        )
    return x.detach() if isinstance(x, Tensor) else Tensor(x)


def _lengths(x: Any) -> Tensor:
    """The length of each item: (batch,)."""
    return ops.norm(ops.reshape(x, (x.shape[0], -1)), axis=1)


def _beside(numbers: Tensor, x: Tensor) -> Tensor:
    """A number for each item, so that it broadcasts against the items."""
    return ops.reshape(numbers, (x.shape[0], *(1 for _ in x.shape[1:])))


def _steepest(f: Callable, x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Unit vectors along which the items of `x` are stretched, nearly the most; and how much.

    J^T u is a pullback, and J v the pullback of the pullback: both keep their graphs.
    """
    y, pull = vjp(f, x)
    u = Tensor(np.zeros(y.shape), requires_grad=True, dtype=y.dtype, device=y.device)
    with enable_grad():
        (pulled,) = pull(u)
    draws = np.random.default_rng(0).normal(size=x.shape)  # the same answer each time
    v = _unit(Tensor(draws, dtype=x.dtype, device=x.device))
    with no_grad():  # of the vectors, that is: f's parameters would be recorded
        for step in range(steps + 1):
            (pushed,) = grad([pulled], [u], [v], retain_graph=True, allow_unused=True)
            if pushed is None:  # no output depends on an input
                return v, ops.zeros_like(_lengths(x))
            if step < steps:
                v = _unit(pull(pushed)[0], v)
        return v, _lengths(pushed)


def _unit(x: Tensor, instead: Any = 0.0) -> Tensor:
    """Each item with length 1, or `instead` where it is 0."""
    length = _beside(_lengths(x), x)
    zero = ops.equal(length, 0)
    return ops.where(zero, instead, x / ops.where(zero, 1.0, length))
