"""Convolution along time, channels last.

Three ops, closed under differentiation: the convolution, its gradient for the input, and its
gradient for the kernel. Each is bilinear, and the derivatives of each are the other two, so that a
gradient of any order runs at full speed. `conv1d_definition` says the same readably, and is the
tests' oracle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples, stop_gradient
from minidl.backend import in_two, namespace
from minidl.errors import ShapeError
from minidl.graph import unwrap
from minidl.ops.activations import relu
from minidl.ops.elementwise import halves
from minidl.ops.joining import concatenate, pad
from minidl.ops.products import SPLIT, matmul
from minidl.ops.shape import count_of, reshape, shape_of

__all__ = ["conv1d"]

BLOCK = 3 << 19  # bytes of the buffer that holds some items' windows: within a core's cache


def conv1d(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: int = 1,
    padding: str | int | tuple[int, int] = "valid",
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """Convolve `x` (batch, time, channels) with `kernel` (size, channels // groups, filters).

    out[b, t, f] = bias[f] + sum over tap and c of x[b, t * stride + tap * dilation, c] *
    kernel[tap, c, f], as (batch, out_time, filters). `padding` puts zeros around the time axis:
    "valid" none, "same" for out_time = ceil(time / stride) with the odd one on the right as in
    Keras, "causal" on the left only, n on both sides, or (left, right). Of several `groups`, each
    has its own equal share of channels and of filters. `activation` "relu" costs less than one
    applied afterwards. Raises ShapeError when the shapes do not fit, ValueError for an unknown
    padding or activation.
    """
    if activation not in (None, "relu"):
        raise ValueError(
            f"conv1d: activation: expected None or 'relu', got {activation!r}; apply others to the "
            "result"
        )
    vector = None if bias is None else shape_of(bias)
    check_shapes("conv1d", shape_of(x), shape_of(kernel), vector, groups)
    for name, value in (("stride", stride), ("dilation", dilation)):
        if count_of("conv1d", name, value) == 0:
            raise ShapeError(f"conv1d: {name}: expected 1 or more, got 0; use 1")
    time, size = shape_of(x)[1], shape_of(kernel)[0]
    widths = paddings(padding, time, size, stride, dilation)
    if 0 < time < dilation * (size - 1) + 1 - sum(widths):
        raise ShapeError(
            f"conv1d: x: expected at least {dilation * (size - 1) + 1} steps for a kernel of size "
            f"{size} and dilation {dilation}, got {time} and padding {widths}; pad x or use "
            "padding='same'"
        )
    op = _conv1d_relu if activation == "relu" else _conv1d
    return op(x, kernel, bias, Geometry(stride, *widths, dilation, groups))


def check_shapes(op: str, x: tuple, kernel: tuple, bias: tuple | None, groups: int = 1) -> None:
    if len(x) != 3:
        raise ShapeError(
            f"{op}: x: expected (batch, time, channels), got {x}; use x[None] for one item, "
            "x[..., None] for one channel"
        )
    if len(kernel) != 3 or kernel[0] == 0:
        raise ShapeError(
            f"{op}: kernel: expected (size, channels // groups, filters) with size 1 or more, got "
            f"{kernel}; give kernel three such axes"
        )
    if groups < 1 or x[2] % groups or kernel[2] % groups:
        raise ShapeError(
            f"{op}: groups: expected a divisor of {x[2]} channels and {kernel[2]} filters, got "
            f"{groups}; use 1"
        )
    if kernel[1] != x[2] // groups:
        raise ShapeError(
            f"{op}: kernel: expected shape ({kernel[0]}, {x[2] // groups}, {kernel[2]}), got "
            f"{kernel}; make kernel.shape[1] equal x.shape[2] // groups"
        )
    if bias is not None and bias != kernel[2:]:
        raise ShapeError(
            f"{op}: bias: expected shape {kernel[2:]}, got {bias}; make bias.shape[0] equal "
            "kernel.shape[2]"
        )


def paddings(padding: Any, time: int, size: int, stride: int, dilation: int) -> tuple[int, int]:
    """`padding` as zeros on the left and on the right."""
    reach = dilation * (size - 1)
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding == "causal":
            return reach, 0
        if padding == "same":
            total = max((-(-time // stride) - 1) * stride + reach + 1 - time, 0)
            return total // 2, total - total // 2
        raise ValueError(
            "conv1d: padding: expected 'valid', 'same', 'causal', an integer or (left, right), got "
            f"{padding!r}; use one of them"
        )
    left, right = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    return count_of("conv1d", "padding", left), count_of("conv1d", "padding", right)


@samples(conv1d)
def _(draw: Draw):
    groups, size, time = draw.integer(1, 2), draw.integer(1, 3), draw.integer(3, 6)
    channels, filters = groups * draw.integer(1, 2), groups * draw.integer(1, 2)
    batch = draw.shape(min_dims=1, max_dims=1, max_side=3)[0]
    activation = draw.choice([None, "relu"])
    gap = 0.0 if activation is None else 4.0  # a bias that the rest, of 3.6 at most, cannot undo
    x = draw.array((batch, time, channels), low=-1.0, high=1.0)
    kernel = draw.array((size, channels // groups, filters), low=-0.3, high=0.3)
    bias = draw.array((filters,), low=-5.0, high=5.0, away=(0,), gap=gap)
    return call(
        x,
        kernel,
        bias if gap or draw.boolean() else None,
        stride=draw.integer(1, 3),
        padding=draw.choice(["valid", "same", "causal", 3, (0, 2), (5, 1)]),
        dilation=draw.integer(1, 2) if size < 3 else 1,
        groups=groups,
        activation=activation,
    )


def conv1d_definition(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: int = 1,
    padding: Any = "valid",
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """conv1d as it is defined: for each tap, the steps that it meets times its matrix; summed."""
    size, channels, filters = shape_of(kernel)
    left, right = paddings(padding, shape_of(x)[1], size, stride, dilation)
    x = pad(x, ((0, 0), (left, right), (0, 0)))
    steps = shape_of(x)[1] - dilation * (size - 1)
    parts = []
    for group in range(groups):
        ins = slice(group * channels, (group + 1) * channels)
        outs = slice(group * filters // groups, (group + 1) * filters // groups)
        taps = range(size)
        parts.append(
            sum(
                matmul(x[:, t * dilation : t * dilation + steps : stride, ins], kernel[t, :, outs])
                for t in taps
            )
        )
    out = concatenate(parts, axis=-1)
    out = out if bias is None else out + bias
    return relu(out) if activation == "relu" else out


# --- Windows as the rows of a matrix --------------------------------------------------------------


class Geometry(NamedTuple):
    """How outputs meet inputs; `left` and `right` are widths of padding."""

    stride: int
    left: int
    right: int
    dilation: int
    groups: int


def matrices_of(kernel: Any, groups: int) -> Any:
    """The kernel as one matrix a group: (groups, size * channels // groups, filters // groups)."""
    size, channels, filters = kernel.shape
    return kernel.reshape(size * channels, groups, filters // groups).transpose(1, 0, 2)


def _by_group(x: Any, groups: int) -> Any:
    """(batch, time, channels) as (groups, batch * time, channels // groups); a view if it can."""
    batch, time, channels = x.shape
    return x.reshape(batch * time, groups, channels // groups).transpose(1, 0, 2)


def columns_of(
    x: Any, steps: int, size: int, geometry: Geometry, start: int, stop: int
) -> Iterator:
    """The windows that `steps` outputs see, as (groups, rows, size * channels // groups).

    Goes through the items `start` to `stop` of `x` in blocks, giving (items, windows) for each; all
    blocks share one buffer. On NumPy a block fits the cache; elsewhere it is everything: few calls.
    """
    xp, channels = namespace(x), x.shape[2]
    stride, left, right, _, groups = geometry
    count = max(stop - start, 1)
    if xp is np:
        item = steps * size * channels * x.dtype.itemsize
        count = min(count, max(BLOCK // max(item, 1), 1))
    direct = size == stride == groups == 1 and left == right == 0  # a row of x is a window
    buffer = None
    if not direct:
        buffer = xp.empty((groups, count, steps, size, channels // groups), x.dtype)
    for first in range(start, stop, count):
        block = x[first : min(first + count, stop)]
        items = block.shape[0]
        if buffer is not None:
            _gather(block, buffer[:, :items], geometry, fresh=first == start)
            block = buffer[:, :items]
        rows = block.reshape(groups, items * steps, size * (channels // groups))
        yield slice(first, first + items), rows


def _gather(x: Any, windows: Any, geometry: Geometry, fresh: bool) -> None:
    """Write x[b, t * stride - left + tap * dilation] to windows[:, b, t, tap], tap after tap; what
    lies outside of x, the same in all blocks, becomes 0 in `fresh` windows."""
    groups = geometry.groups
    items, time, channels = x.shape
    steps, size = windows.shape[2:4]
    by_group = x.reshape(items, time, groups, channels // groups).transpose(2, 0, 1, 3)
    for tap in range(size):
        low, high, seen = meeting(tap, steps, time, geometry)
        if fresh:
            windows[:, :, :low, tap] = windows[:, :, high:, tap] = 0
        if low < high:
            windows[:, :, low:high, tap] = by_group[:, :, seen]


def meeting(tap: int, steps: int, time: int, geometry: Geometry) -> tuple[int, int, slice]:
    """The outputs low to high - 1 that see one of `time` inputs through `tap`, and those inputs."""
    stride, offset = geometry.stride, tap * geometry.dilation - geometry.left
    low = max(0, -(offset // stride))
    high = max(low, min(steps, -((offset - time) // stride)))
    return low, high, slice(low * stride + offset, (high - 1) * stride + offset + 1, stride)


def _products(x: Any, y: Any, out: Any = None) -> Any:
    """One matrix product a group; of a single group a plain one, as CuPy copies what is batched."""
    if x.shape[0] > 1:
        return namespace(x).matmul(x, y, out=out)
    return namespace(x).matmul(x[0], y[0], out=None if out is None else out[0])


def over_batch(work: Callable[[int, int], Any], x: Any, products: int) -> list:
    """The results of `work(start, stop)` over the batch of `x`: in two halves, where that pays."""
    batch = x.shape[0]
    if namespace(x) is not np or batch < 2 or products < SPLIT:
        return [work(0, batch)]
    half = (batch + 1) // 2
    return list(in_two(lambda: work(0, half), lambda: work(half, batch)))


# --- The three ops --------------------------------------------------------------------------------


def convolve(x: Any, kernel: Any, bias: Any, geometry: Geometry, positive: bool = False) -> Any:
    """One matrix product a block of windows; bias and relu while the block is in cache."""
    xp, (size, channels, filters) = namespace(x), kernel.shape
    stride, left, right, dilation, groups = geometry
    steps = max((left + x.shape[1] + right - dilation * (size - 1) - 1) // stride + 1, 0)
    out = xp.empty((x.shape[0], steps, filters), np.result_type(x.dtype, kernel.dtype))
    matrices = matrices_of(kernel, groups)

    def work(start: int, stop: int) -> None:
        for items, columns in columns_of(x, steps, size, geometry, start, stop):
            block = out[items]
            _products(columns, matrices, _by_group(block, groups))
            if bias is not None:
                block += bias
            if positive:
                xp.maximum(block, 0, out=block)

    over_batch(work, x, out.size * size * channels)
    return out


@primitive
def _conv1d(x, kernel, bias, geometry):
    return convolve(x, kernel, bias, geometry)


@primitive
def _conv1d_relu(x, kernel, bias, geometry):
    return convolve(x, kernel, bias, geometry, positive=True)


@primitive
def input_gradient(y, kernel, time, geometry):
    """What `y`, of the output's shape, gives to each of the input's `time` steps."""
    stride, left, right, dilation, groups = geometry
    if stride > 1 or time == 0:
        return _scatter(y, kernel, time, geometry)
    # Each step gathers: a convolution of y with the kernel reversed and transposed. Where padding
    # is wider than the kernel reaches, the ends of y met nothing but zeros.
    size, channels, filters = kernel.shape
    reverse = kernel[::-1].reshape(size, channels, groups, filters // groups)
    reverse = reverse.transpose(0, 3, 2, 1).reshape(size, filters // groups, groups * channels)
    left, right = dilation * (size - 1) - left, dilation * (size - 1) - right
    y = y[:, max(-left, 0) : y.shape[1] - max(-right, 0)]
    return convolve(y, reverse, None, Geometry(1, max(left, 0), max(right, 0), dilation, groups))


def _scatter(y: Any, kernel: Any, time: int, geometry: Geometry) -> Any:
    """`input_gradient` for any stride: one product, then one addition a tap."""
    xp, (size, channels, _), (batch, steps, _) = namespace(y), kernel.shape, y.shape
    stride, left, right, dilation, groups = geometry
    spread = _products(_by_group(y, groups), matrices_of(kernel, groups).swapaxes(1, 2))
    spread = spread.reshape(groups, batch, steps, size, channels).transpose(1, 2, 3, 0, 4)
    spread = spread.reshape(batch, steps, size, groups * channels)
    out = xp.zeros((batch, left + time + right, groups * channels), spread.dtype)
    for tap in range(size):
        first = tap * dilation
        out[:, first : first + steps * stride : stride] += spread[:, :, tap]
    return out[:, left : left + time]


@primitive
def kernel_gradient(x, y, size, geometry):
    """What `y`, of the output's shape, gives to the kernel."""
    xp, groups = namespace(x), geometry.groups
    steps, filters = y.shape[1:]
    channels = x.shape[2] // groups
    dtype = np.result_type(x.dtype, y.dtype)

    def work(start: int, stop: int) -> Any:
        total = xp.zeros((groups, size * channels, filters // groups), dtype)
        part = xp.empty_like(total)
        for items, columns in columns_of(x, steps, size, geometry, start, stop):
            _products(columns.swapaxes(1, 2), _by_group(y[items], groups), part)
            total += part
        return total

    first, *second = over_batch(work, x, y.size * size * channels)
    total = first + second[0] if second else first
    return total.transpose(1, 0, 2).reshape(size, channels, filters)


def _sum_steps(g: Any) -> Any:
    """The sum over batch and time, as a product with ones: faster than sum."""
    rows = g.shape[0] * g.shape[1]
    ones = namespace(unwrap(g)).ones(rows, g.dtype)
    return matmul(ones, reshape(g, (rows, g.shape[2])))


@primitive
def _gate(x, y):
    """x where `y` is positive, else 0: what relu's derivative does to a gradient, in two halves."""

    def gate(x: Any, y: Any, result: Any = None) -> Any:
        return namespace(x).multiply(x, y > 0, out=result)

    return halves(gate, x, y)


_gate.defvjp(x=lambda g, y: _gate(g, y))


@samples(_gate)
def _(draw: Draw):
    x = draw.array(draw.shape())
    return call(x, draw.integers(x.shape, -1, 1))


def _conv1d_relu_vjp(g, x, kernel, out, geometry, needs):
    g = _gate(g, stop_gradient(out))
    return (
        input_gradient(g, kernel, x.shape[1], geometry) if needs[0] else None,
        kernel_gradient(x, g, kernel.shape[0], geometry) if needs[1] else None,
        _sum_steps(g) if needs[2] else None,
    )


_conv1d.defvjp(
    x=lambda g, kernel, x_shape, geometry: input_gradient(g, kernel, x_shape[1], geometry),
    kernel=lambda g, x, kernel_shape, geometry: kernel_gradient(x, g, kernel_shape[0], geometry),
    bias=_sum_steps,
)
_conv1d_relu.defvjp(joint=_conv1d_relu_vjp, of=("x", "kernel", "bias"))
input_gradient.defvjp(
    y=lambda g, kernel, geometry: _conv1d(g, kernel, None, geometry),
    kernel=lambda g, y, kernel_shape, geometry: kernel_gradient(g, y, kernel_shape[0], geometry),
)
kernel_gradient.defvjp(
    x=lambda g, y, x_shape, geometry: input_gradient(y, g, x_shape[1], geometry),
    y=lambda g, x, geometry: _conv1d(x, g, None, geometry),
)
