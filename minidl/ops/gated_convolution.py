"""A convolution along time whose output is let through by a gate: one fused op.

Forward, the gate is applied to each block of the convolution while that is in cache. Backward, the
gradients of values and scores exist for a block at a time, and go from there into both products.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import namespace
from minidl.errors import DtypeError, ShapeError
from minidl.graph import unwrap
from minidl.ops.activations import sigmoid
from minidl.ops.convolution import check_shapes, conv1d
from minidl.ops.elementwise import where
from minidl.ops.geometry import Axis, Geometry, Sizes, meeting, paddings
from minidl.ops.joining import split
from minidl.ops.shape import count_of, shape_of
from minidl.ops.windows import columns_of, convolve, correlate, over_batch, transpose
from minidl.ops.winograd import Winograd, suits

__all__ = ["gated_conv1d"]


def gated_conv1d(
    x: Any,
    kernel: Any,
    bias: Any = None,
    mask: Any = None,
    padding: str = "same",
    dilation: int = 1,
    skip: bool = True,
    gate_mask: Any = None,
    rate: float = 0.0,
) -> Any:
    """x * (1 - sigmoid(s)) + v * sigmoid(s), where [v, s] = conv1d(x, kernel, bias).

    x: (batch, time, channels); kernel: (size, channels, 2 * filters) and bias: (2 * filters,), the
    values' half before the scores'; the result: (batch, time, filters). Without `skip` it is
    v * sigmoid(s); with it, there are as many filters as channels. Steps that `mask` (batch, time)
    leaves out are 0 going in and coming out. Where `gate_mask` (batch, time, filters) is False s
    is 0, else it is divided by 1 - rate: dropout on the gate. padding: "same" or "causal". Raises
    ShapeError for other shapes, DtypeError for masks that are not boolean, ValueError for another
    padding or rate. Dauphin et al. 2017, eq. 1, without skip; with it a highway layer (Srivastava,
    Greff and Schmidhuber 2015, eq. 3).
    """
    shape, (size, _, width) = shape_of(x), _checked_kernel(x, kernel, bias, skip)
    if padding not in ("same", "causal"):
        raise ValueError(f"gated_conv1d: padding: expected 'same' or 'causal', got {padding!r}")
    if not 0 <= rate < 1:
        raise ValueError(f"gated_conv1d: rate: expected a number in [0, 1), got {rate}")
    if count_of("gated_conv1d", "dilation", dilation) == 0:
        raise ShapeError("gated_conv1d: dilation: expected 1 or more, got 0; use 1")
    _check_mask("mask", mask, shape[:2])
    _check_mask("gate_mask", gate_mask, (*shape[:2], width // 2))
    axis = Axis(1, *paddings(padding, shape[1], size, 1, dilation), dilation)
    scale = 1.0 if gate_mask is None else 1 / (1 - rate)
    return _gated(x, kernel, bias, mask, gate_mask, Gating(Geometry((axis,)), skip, scale))


def _checked_kernel(x: Any, kernel: Any, bias: Any, skip: bool) -> tuple[int, ...]:
    shape, vector = shape_of(kernel), None if bias is None else shape_of(bias)
    check_shapes("gated_conv1d", shape_of(x), shape, vector)
    if shape[2] % 2 or (skip and shape[2] != 2 * shape[1]):
        wanted = f"2 * {shape[1]}" if skip else "an even number of"
        raise ShapeError(
            f"gated_conv1d: kernel: expected {wanted} filters, half of them the scores', got "
            f"{shape[2]}; change kernel.shape[2]" + (", or use skip=False" if skip else "")
        )
    return shape


def _check_mask(name: str, mask: Any, expected: tuple[int, ...]) -> None:
    mask = unwrap(mask)
    if mask is None:
        return
    if mask.shape != expected:
        raise ShapeError(
            f"gated_conv1d: {name}: expected shape {expected}, got {mask.shape}; reshape it"
        )
    if mask.dtype != np.bool_:
        raise DtypeError(
            f"gated_conv1d: {name}: expected booleans (True = kept), got {mask.dtype}; use "
            f"{name} > 0"
        )


@samples(gated_conv1d)
def _(draw: Draw):
    skip, size = draw.boolean(), draw.integer(1, 3)
    batch, time = draw.shape(min_dims=2, max_dims=2, max_side=5)
    channels = draw.integer(1, 3)
    width = 2 * (channels if skip else draw.integer(1, 2))
    return call(
        draw.array((batch, time, channels)),
        draw.array((size, channels, width), -0.5, 0.5),
        draw.array((width,)) if draw.boolean() else None,
        draw.mask((batch, time)) if draw.boolean() else None,
        padding=draw.choice(["same", "causal"]),
        dilation=draw.integer(1, 3),
        skip=skip,
        gate_mask=draw.mask((batch, time, width // 2)) if draw.boolean() else None,
        rate=0.25,
    )


# --- The fused op ---------------------------------------------------------------------------------


class Gating(NamedTuple):
    """How a score becomes a gate: `scale` is dropout's 1 / (1 - rate)."""

    geometry: Geometry
    skip: bool
    scale: float


@primitive(residuals=True)
def _gated(x, kernel, bias, mask, gate_mask, gating):
    """Keeps the gates, sigmoid(s), and x with zeros where the mask leaves it out."""
    if namespace(x) is not np or x.size == 0:
        return _forward_portable(x, kernel, bias, mask, gate_mask, gating)
    n, (off, x) = kernel.shape[2] // 2, _zeroed(x, mask)
    out = np.empty((*x.shape[:2], n), np.result_type(x, kernel))
    gates = np.empty_like(out)
    # sigmoid(s) = (tanh(s / 2) + 1) / 2; the half and dropout's factor go into the weights.
    factors = _factors(n, 0.5 * gating.scale, out.dtype)
    way = Winograd if suits(x, kernel.shape, gating.geometry) else _Windows
    convolution = way(kernel * factors, gating.geometry, x.shape[1:2])

    def work(start: int, stop: int) -> None:
        for items, inputs in convolution.blocks(x, start, stop):
            pair, gate, y = convolution.forward(inputs), gates[items], out[items]
            if bias is not None:
                pair += bias * factors
            value, score = pair[..., :n], pair[..., n:]
            if gate_mask is not None:
                score *= gate_mask[items]
            np.tanh(score, out=gate)
            gate *= 0.5
            gate += 0.5
            if gating.skip:
                value -= x[items]
            np.multiply(value, gate, out=y)
            if gating.skip:
                y += x[items]
            if off is not None:
                y[off[items]] = 0

    over_batch(work, x, x.shape[0] * x.shape[1] * kernel.size)
    return out, (gates, x)


def _gated_rule(g, kernel, mask, gate_mask, gating, out, kept, needs):
    if namespace(g) is not np or g.size == 0:
        return _backward_portable(g, kernel, mask, gate_mask, gating, out, kept, needs)
    (gates, x), off, n = kept, None if mask is None else ~mask, kernel.shape[2] // 2
    factors = _factors(n, gating.scale, out.dtype)
    way = Winograd if suits(x, kernel.shape, gating.geometry) else _Windows
    convolution = way(kernel * factors, gating.geometry, x.shape[1:2])
    dx = np.empty(x.shape, out.dtype)

    def work(start: int, stop: int) -> tuple[Any, Any]:
        by_kernel, by_bias = np.zeros_like(convolution.kernel), np.zeros(2 * n, out.dtype)
        for items, inputs in convolution.blocks(x, start, stop):
            y = out[items] - x[items] if gating.skip else out[items]
            pair, past = _pair_gradient(g[items], gates[items], y)
            if gate_mask is not None:
                pair[..., n:] *= gate_mask[items]
            if off is not None:
                pair[off[items]] = 0
            upstream = convolution.map_gradient(pair)
            if needs[1]:
                by_kernel += convolution.kernel_gradient(inputs, upstream)
            if needs[2]:
                rows = pair.reshape(pair.shape[0] * pair.shape[1], 2 * n)
                by_bias += np.ones(len(rows), rows.dtype) @ rows
            if needs[0]:
                dx[items] = convolution.input_gradient(upstream)
                if gating.skip:
                    dx[items] += past
                if off is not None:
                    dx[items][off[items]] = 0
        return by_kernel, by_bias

    (by_kernel, by_bias), *rest = over_batch(work, x, x.shape[0] * x.shape[1] * kernel.size)
    for more_by_kernel, more_by_bias in rest:
        by_kernel, by_bias = by_kernel + more_by_kernel, by_bias + more_by_bias
    return (
        dx if needs[0] else None,
        convolution.finish(by_kernel) * factors if needs[1] else None,
        by_bias * factors if needs[2] else None,
    )


_gated.defvjp(joint=_gated_rule, of=("x", "kernel", "bias"))


@_gated.define
def _(x, kernel, bias, mask, gate_mask, gating):
    (((_, left, right, dilation),), _), skip, scale = gating
    if mask is not None:
        mask = mask[:, :, None]
        x = where(mask, x, 0.0)
    pair = conv1d(x, kernel, bias, padding=(left, right), dilation=dilation)
    value, score = split(pair, 2, axis=-1)
    if gate_mask is not None:
        score = where(gate_mask, score * scale, 0.0)
    gate = sigmoid(score)
    y = x * (1 - gate) + value * gate if skip else value * gate
    return y if mask is None else where(mask, y, 0.0)


# --- Its parts ------------------------------------------------------------------------------------


def _zeroed(x: Any, mask: Any) -> tuple[Any, Any]:
    """Where `mask` is False, and x with zeros there: x itself if it has them already, as after
    another such layer."""
    if mask is None:
        return None, x
    off = ~mask
    if x[off].any():
        x = x.copy()
        x[off] = 0
    return off, x


def _factors(n: int, factor: float, dtype: Any) -> Any:
    """1 for each value, `factor` for each score."""
    factors = np.ones(2 * n, dtype)
    factors[n:] = factor
    return factors


def _pair_gradient(g: Any, gate: Any, y: Any) -> tuple[Any, Any]:
    """The gradients of [v, s], and what x gets past the convolution: with y = (v - x) * gate, or
    v * gate, they are g * gate, y * g * (1 - gate), and g * (1 - gate)."""
    n = gate.shape[-1]
    pair = np.empty((*gate.shape[:-1], 2 * n), gate.dtype)
    by_value, by_score = pair[..., :n], pair[..., n:]
    np.multiply(g, gate, out=by_value)
    past = g - by_value
    np.multiply(past, y, out=by_score)
    return pair, past


class _Windows:
    """The convolution as a product of windows with the kernel; methods as in class Winograd."""

    def __init__(self, kernel: Any, geometry: Geometry, steps: Sizes) -> None:
        self.size, self.channels, filters = kernel.shape
        self.kernel = kernel.reshape(self.size * self.channels, filters)
        self.geometry, self.steps = geometry, steps

    def blocks(self, x: Any, start: int, stop: int) -> Iterator[tuple[slice, Any]]:
        sizes = (self.size,)
        for items, windows in columns_of(x, self.steps, sizes, self.geometry, start, stop):
            yield items, windows[0]

    def forward(self, windows: Any) -> Any:
        return (windows @ self.kernel).reshape(-1, *self.steps, self.kernel.shape[1])

    def map_gradient(self, g: Any) -> Any:
        return g.reshape(-1, g.shape[2])

    def input_gradient(self, g: Any) -> Any:
        (time,), (axis,) = self.steps, self.geometry.axes
        spread = (g @ self.kernel.T).reshape(-1, time, self.size, self.channels)
        dx = np.zeros((len(spread), time, self.channels), spread.dtype)
        for tap in range(self.size):
            low, high, seen = meeting(tap, time, time, axis)
            if low < high:
                dx[:, seen] += spread[:, low:high, tap]
        return dx

    def kernel_gradient(self, windows: Any, g: Any) -> Any:
        return windows.T @ g

    def finish(self, total: Any) -> Any:
        return total.reshape(self.size, self.channels, -1)


def _forward_portable(x, kernel, bias, mask, gate_mask, gating):
    xp, (geometry, skip, scale) = namespace(x), gating
    if mask is not None:
        mask = mask[:, :, None]
        x = xp.where(mask, x, 0)
    pair = convolve(x, kernel, bias, geometry)
    n = kernel.shape[2] // 2
    value, score = pair[:, :, :n], pair[:, :, n:]
    if gate_mask is not None:
        score = score * gate_mask * scale
    gates = xp.tanh(score * 0.5) * 0.5 + 0.5
    y = (value - x) * gates + x if skip else value * gates
    return (y if mask is None else xp.where(mask, y, 0)), (gates, x)


def _backward_portable(g, kernel, mask, gate_mask, gating, out, kept, needs):
    xp, (gates, x), (geometry, skip, scale) = namespace(g), kept, gating
    if mask is not None:
        mask = mask[:, :, None]
        g = xp.where(mask, g, 0)
    by_value = g * gates
    past = g - by_value
    by_score = past * ((out - x) if skip else out)
    if gate_mask is not None:
        by_score = by_score * gate_mask * scale
    pair = xp.concatenate([by_value, by_score], axis=-1)
    dx = transpose(pair, kernel, None, x.shape[1:2], geometry) if needs[0] else None
    if needs[0] and skip:
        dx = dx + past
    if needs[0] and mask is not None:
        dx = xp.where(mask, dx, 0)
    return (
        dx,
        correlate(x, pair, kernel.shape[:1], geometry) if needs[1] else None,
        pair.sum(axis=(0, 1)) if needs[2] else None,
    )
