"""Convolution along one axis or two, and its transpose, channels last.

Three ops, closed under differentiation: the convolution, its transpose, which is its gradient for
the input, and its gradient for the kernel. Each is bilinear, and the derivatives of each are the
other two, so that a gradient of any order runs at full speed. `convolution_definition` and
`transpose_definition` say the same readably, and are the tests' oracle.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

from minidl.autodiff import Draw, call, primitive, samples, stop_gradient
from minidl.backend import namespace
from minidl.errors import ShapeError
from minidl.graph import unwrap
from minidl.ops.activations import gate, relu
from minidl.ops.geometry import Axis, Geometry, Sizes, paddings, per_axis
from minidl.ops.joining import concatenate, pad
from minidl.ops.products import matmul
from minidl.ops.shape import count_of, reshape, shape_of, swapaxes
from minidl.ops.windows import convolve, correlate, transpose

__all__ = ["conv1d", "conv1d_transpose", "conv2d", "conv2d_transpose"]


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
    return _convolved("conv1d", x, kernel, bias, stride, (padding,), dilation, groups, activation)


def conv2d(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: int | Sizes = 1,
    padding: Any = "valid",
    dilation: int | Sizes = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """Convolve `x` (batch, height, width, channels) with `kernel` (height, width,
    channels // groups, filters), giving (batch, rows, columns, filters).

    As conv1d, along both axes. `stride` and `dilation` are an integer or (along height, along
    width); `padding` is "valid", "same", n, (n, m) for n at the top and the bottom and m on the
    left and the right, or ((top, bottom), (left, right)). Raises as conv1d.
    """
    padding = _of_both_axes("conv2d", padding)
    return _convolved("conv2d", x, kernel, bias, stride, padding, dilation, groups, activation)


def conv1d_transpose(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: int = 1,
    padding: str | int | tuple[int, int] = "valid",
    output_padding: int | None = None,
    dilation: int = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """The transpose of the linear map `conv1d` with this kernel, stride, padding, dilation and
    groups: `x` (batch, time, channels) and `kernel` (size, filters // groups, channels) give
    (batch, out_time, filters).

    Each step of x adds its row times kernel[tap] to out[t * stride + tap * dilation], of which the
    padding is cut off; bias and activation follow. conv1d makes x's time of several lengths;
    `output_padding`, less than the stride, is how far out_time exceeds the least of them. None is
    Keras's choice: out_time = time * stride where padding is "same", at least as much where it is
    "valid", and the least length for padding in numbers. Raises as conv1d.
    """
    return _transposed_of(
        "conv1d_transpose", x, kernel, bias, stride, (padding,), output_padding, dilation, groups,
        activation,
    )  # fmt: skip


def conv2d_transpose(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: int | Sizes = 1,
    padding: Any = "valid",
    output_padding: int | Sizes | None = None,
    dilation: int | Sizes = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """The transpose of the linear map `conv2d` with this kernel: `x` (batch, height, width,
    channels) and `kernel` (height, width, filters // groups, channels) give (batch, rows, columns,
    filters).

    As conv1d_transpose, along both axes; the options as in conv2d. Raises as conv1d.
    """
    padding = _of_both_axes("conv2d_transpose", padding)
    return _transposed_of(
        "conv2d_transpose", x, kernel, bias, stride, padding, output_padding, dilation, groups,
        activation,
    )  # fmt: skip


# --- Checks ---------------------------------------------------------------------------------------


def _convolved(op, x, kernel, bias, stride, padding, dilation, groups, activation):
    axes = len(padding)
    _check_activation(op, activation)
    _check_padding(op, padding, ("valid", "same", "causal") if axes == 1 else ("valid", "same"))
    groups = count_of(op, "groups", groups)
    check_shapes(op, shape_of(x), shape_of(kernel), _shape(bias), groups, axes)
    strides, dilations = _strides_and_dilations(op, stride, dilation, axes)
    found = []
    sides, sizes, units = shape_of(x)[1:-1], shape_of(kernel)[:axes], _UNITS[axes]
    for n, size, s, d, p, unit in zip(
        sides, sizes, strides, dilations, padding, units, strict=True
    ):
        axis = Axis(s, *paddings(p, n, size, s, d, op), d)
        if 0 < n < axis.reach(size) + 1 - axis.left - axis.right:
            raise ShapeError(
                f"{op}: x: expected at least {axis.reach(size) + 1} {unit} for a kernel of size "
                f"{size} and dilation {d}, got {n} and padding {axis[1:3]}; pad x or use "
                "padding='same'"
            )
        found.append(axis)
    made = _convolution_relu if activation == "relu" else _convolution
    return made(x, kernel, bias, Geometry(tuple(found), groups))


def _transposed_of(
    op, x, kernel, bias, stride, padding, output_padding, dilation, groups, activation
):
    axes = len(padding)
    _check_activation(op, activation)
    _check_padding(op, padding, ("valid", "same"))
    groups = count_of(op, "groups", groups)
    _check_transposed(op, shape_of(x), shape_of(kernel), _shape(bias), groups, axes)
    strides, dilations = _strides_and_dilations(op, stride, dilation, axes)
    more = output_padding if isinstance(output_padding, (tuple, list)) else (output_padding,) * axes
    if len(more) != axes:
        raise ShapeError(
            f"{op}: output_padding: expected a number or {axes} of them, got {output_padding}"
        )
    found, lengths = [], []
    sides, sizes = shape_of(x)[1:-1], shape_of(kernel)[:axes]
    for args in zip(sides, sizes, strides, dilations, padding, more, strict=True):
        axis, length = _growing(op, *args)
        found.append(axis)
        lengths.append(length)
    made = _transposed_relu if activation == "relu" else _transposed
    return made(x, kernel, bias, tuple(lengths), Geometry(tuple(found), groups))


def _growing(
    op: str, steps: int, size: int, stride: int, dilation: int, padding: Any, more: int | None
) -> tuple[Axis, int]:
    """The axis, and the length of the transpose's result along it."""
    reach = dilation * (size - 1)
    if more is None:
        whole = {"same": stride - 1, "valid": max(stride - reach - 1, 0)}
        more = whole.get(padding, 0) if isinstance(padding, str) else 0
    if count_of(op, "output_padding", more) >= stride:
        raise ShapeError(
            f"{op}: output_padding: expected less than the stride, {stride}, got {more}; a longer "
            "result would have more steps of its own"
        )
    before = (steps - 1) * stride + 1 + more
    if isinstance(padding, str) and padding == "same":
        length = before
    else:
        length = before + reach - sum(paddings(padding, 0, size, stride, dilation, op))
    if length < 0:
        raise ShapeError(
            f"{op}: padding: expected less than the {before + reach} steps of the result, got "
            f"{padding!r}; use 0"
        )
    return Axis(stride, *paddings(padding, length, size, stride, dilation, op), dilation), length


def _strides_and_dilations(op: str, stride: Any, dilation: Any, axes: int) -> tuple[Sizes, Sizes]:
    return per_axis(op, "stride", stride, axes), per_axis(op, "dilation", dilation, axes)


def _shape(bias: Any) -> tuple | None:
    return None if bias is None else shape_of(bias)


def _of_both_axes(op: str, padding: Any) -> tuple:
    """What to put around height, and around width."""
    if not isinstance(padding, (tuple, list)):
        return padding, padding
    if len(padding) != 2:
        raise ShapeError(
            f"{op}: padding: expected (n, m) or ((top, bottom), (left, right)), got {padding}"
        )
    return tuple(padding)


def _check_padding(op: str, padding: tuple, known: tuple[str, ...]) -> None:
    """Whether what is put around each axis is a known word, a number, or two of them."""
    for each in padding:
        if isinstance(each, str) and each not in known:
            words = ", ".join(map(repr, known))
            raise ValueError(
                f"{op}: padding: expected {words} or numbers, got {each!r}; use one of them"
            )
        if isinstance(each, (tuple, list)) and len(each) != 2:
            raise ShapeError(
                f"{op}: padding: expected n or (before, after) along an axis, got {each}"
            )


def _check_activation(op: str, activation: str | None) -> None:
    if activation not in (None, "relu"):
        raise ValueError(
            f"{op}: activation: expected None or 'relu', got {activation!r}; apply others to the "
            "result"
        )


_UNITS = {1: ("steps",), 2: ("rows", "columns")}
_FORMS = {
    1: ("(batch, time, channels)", "size", "three"),
    2: ("(batch, height, width, channels)", "height, width", "four"),
}


def _check_axes(op: str, x: tuple, kernel: tuple, last: str, axes: int) -> None:
    form, sizes, number = _FORMS[axes]
    if len(x) != axes + 2:
        raise ShapeError(
            f"{op}: x: expected {form}, got {x}; use x[None] for one item, x[..., None] for one "
            "channel"
        )
    if len(kernel) != axes + 2 or 0 in kernel[:axes]:
        raise ShapeError(
            f"{op}: kernel: expected ({sizes}, {last}) with {sizes} of 1 or more, got {kernel}; "
            f"give kernel {number} such axes"
        )


def check_shapes(
    op: str, x: tuple, kernel: tuple, bias: tuple | None, groups: int = 1, axes: int = 1
) -> None:
    _check_axes(op, x, kernel, "channels // groups, filters", axes)
    if groups < 1 or x[-1] % groups or kernel[-1] % groups:
        raise ShapeError(
            f"{op}: groups: expected a divisor of {x[-1]} channels and {kernel[-1]} filters, got "
            f"{groups}; use 1"
        )
    if kernel[-2] != x[-1] // groups:
        raise ShapeError(
            f"{op}: kernel: expected shape {(*kernel[:-2], x[-1] // groups, kernel[-1])}, got "
            f"{kernel}; make kernel.shape[{axes}] equal x.shape[{axes + 1}] // groups (channels "
            "stand last)"
        )
    if bias is not None and bias != kernel[-1:]:
        raise ShapeError(
            f"{op}: bias: expected shape {kernel[-1:]}, got {bias}; make bias.shape[0] equal "
            f"kernel.shape[{axes + 1}]"
        )


def _check_transposed(
    op: str, x: tuple, kernel: tuple, bias: tuple | None, groups: int, axes: int
) -> None:
    _check_axes(op, x, kernel, "filters // groups, channels", axes)
    if groups < 1 or x[-1] % groups:
        raise ShapeError(
            f"{op}: groups: expected a divisor of {x[-1]} channels, got {groups}; use 1"
        )
    if kernel[-1] != x[-1]:
        raise ShapeError(
            f"{op}: kernel: expected shape {(*kernel[:-1], x[-1])}, got {kernel}; make "
            f"kernel.shape[{axes + 1}] equal x.shape[{axes + 1}]"
        )
    filters = kernel[-2] * groups
    if bias is not None and bias != (filters,):
        raise ShapeError(
            f"{op}: bias: expected shape {(filters,)}, got {bias}; make bias.shape[0] equal "
            f"kernel.shape[{axes}] * groups"
        )


# --- Definitions ----------------------------------------------------------------------------------


def convolution_definition(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = "valid",
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """A convolution as it is defined: for each tap, the entries that it meets times its matrix;
    summed."""
    *sizes, channels, filters = shape_of(kernel)
    axes = _axes_of("convolution_definition", shape_of(x)[1:-1], sizes, stride, padding, dilation)
    x = pad(x, ((0, 0), *((a.left, a.right) for a in axes), (0, 0)))
    sides = zip(shape_of(x)[1:-1], axes, sizes, strict=True)
    steps = [max(n - a.reach(k), 0) for n, a, k in sides]
    parts = []
    for group in range(groups):
        ins = slice(group * channels, (group + 1) * channels)
        outs = slice(group * filters // groups, (group + 1) * filters // groups)
        total = 0
        for taps in product(*(range(size) for size in sizes)):
            starts = [tap * axis.dilation for tap, axis in zip(taps, axes, strict=True)]
            seen = (slice(f, f + n, a.stride) for f, n, a in zip(starts, steps, axes, strict=True))
            total = total + matmul(x[(slice(None), *seen, ins)], kernel[(*taps, slice(None), outs)])
        parts.append(total)
    out = concatenate(parts, axis=-1)
    out = out if bias is None else out + bias
    return relu(out) if activation == "relu" else out


def transpose_definition(
    x: Any,
    kernel: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = "valid",
    output_padding: Any = None,
    dilation: Any = 1,
    groups: int = 1,
    activation: str | None = None,
) -> Any:
    """A transposed convolution as it is defined: the entries of x, `stride` apart, times each tap's
    matrix, each product `dilation` further than the last; summed, and the padding cut off."""
    *sizes, _, channels = shape_of(kernel)
    n = len(sizes)
    strides, dilations = _strides_and_dilations("", stride, dilation, n)
    padding = (padding,) if n == 1 else _of_both_axes("", padding)
    more = output_padding if isinstance(output_padding, tuple) else (output_padding,) * n
    grown = [
        _growing("", *args)
        for args in zip(shape_of(x)[1:-1], sizes, strides, dilations, padding, more, strict=True)
    ]
    for i, s in enumerate(strides, 1):  # zeros between the entries
        shape = shape_of(x)
        x = reshape(x, (*shape[: i + 1], 1, *shape[i + 1 :]))
        x = pad(x, [(0, s - 1 if j == i + 1 else 0) for j in range(len(shape) + 1)])
        x = reshape(x, (*shape[:i], shape[i] * s, *shape[i + 1 :]))
    parts = []
    for group in range(groups):
        ins = slice(group * channels // groups, (group + 1) * channels // groups)
        total = 0
        for taps in product(*(range(size) for size in sizes)):
            matrix = swapaxes(kernel[(*taps, slice(None), ins)], 0, 1)
            shifts = ((t * d, (k - 1 - t) * d) for t, k, d in zip(taps, sizes, dilations))
            total = total + pad(matmul(x[..., ins], matrix), ((0, 0), *shifts, (0, 0)))
        parts.append(total)
    out = concatenate(parts, axis=-1)
    out = out[(slice(None), *(slice(a.left, a.left + length) for a, length in grown))]
    out = out if bias is None else out + bias
    return relu(out) if activation == "relu" else out


def _axes_of(op: str, lengths: Any, sizes: Any, stride: Any, padding: Any, dilation: Any) -> list:
    n = len(sizes)
    strides, dilations = _strides_and_dilations(op, stride, dilation, n)
    padding = (padding,) if n == 1 else _of_both_axes(op, padding)
    return [
        Axis(s, *paddings(p, length, k, s, d, op), d)
        for length, k, s, p, d in zip(lengths, sizes, strides, padding, dilations, strict=True)
    ]


# --- The ops --------------------------------------------------------------------------------------


@primitive
def _convolution(x, kernel, bias, geometry):
    return convolve(x, kernel, bias, geometry)


@primitive
def _convolution_relu(x, kernel, bias, geometry):
    return convolve(x, kernel, bias, geometry, positive=True)


@primitive
def _transposed(y, kernel, bias, lengths, geometry):
    return transpose(y, kernel, bias, lengths, geometry)


@primitive
def _transposed_relu(y, kernel, bias, lengths, geometry):
    return transpose(y, kernel, bias, lengths, geometry, positive=True)


@primitive
def _correlation(x, y, sizes, geometry):
    """The kernel's gradient: what `y`, of the output's shape, gives to it."""
    return correlate(x, y, sizes, geometry)


def _sum_rows(g: Any) -> Any:
    """The sum over all axes but the last, as a product with ones: faster than sum."""
    rows = math.prod(g.shape[:-1])
    ones = namespace(unwrap(g)).ones(rows, g.dtype)
    return matmul(ones, reshape(g, (rows, g.shape[-1])))


def _convolution_relu_vjp(g, x, kernel, out, geometry, needs):
    g = gate(g, stop_gradient(out))
    return (
        _transposed(g, kernel, None, x.shape[1:-1], geometry) if needs[0] else None,
        _correlation(x, g, kernel.shape[:-2], geometry) if needs[1] else None,
        _sum_rows(g) if needs[2] else None,
    )


def _transposed_relu_vjp(g, y, kernel, out, geometry, needs):
    g = gate(g, stop_gradient(out))
    return (
        _convolution(g, kernel, None, geometry) if needs[0] else None,
        _correlation(g, y, kernel.shape[:-2], geometry) if needs[1] else None,
        _sum_rows(g) if needs[2] else None,
    )


_convolution.defvjp(
    x=lambda g, kernel, x_shape, geometry: _transposed(g, kernel, None, x_shape[1:-1], geometry),
    kernel=lambda g, x, kernel_shape, geometry: _correlation(x, g, kernel_shape[:-2], geometry),
    bias=_sum_rows,
)
_convolution_relu.defvjp(joint=_convolution_relu_vjp, of=("x", "kernel", "bias"))
_transposed.defvjp(
    y=lambda g, kernel, geometry: _convolution(g, kernel, None, geometry),
    kernel=lambda g, y, kernel_shape, geometry: _correlation(g, y, kernel_shape[:-2], geometry),
    bias=_sum_rows,
)
_transposed_relu.defvjp(joint=_transposed_relu_vjp, of=("y", "kernel", "bias"))
_correlation.defvjp(
    x=lambda g, y, x_shape, geometry: _transposed(y, g, None, x_shape[1:-1], geometry),
    y=lambda g, x, geometry: _convolution(x, g, None, geometry),
)


# --- Samples --------------------------------------------------------------------------------------


def _drawn(draw: Draw, axes: int) -> tuple:
    """Sides, kernel sizes, batch, groups, channels, filters, and options of all four ops."""
    sizes = tuple(draw.integer(1, 3 if axes == 1 else 2) for _ in range(axes))
    sides = tuple(draw.integer(3, 6 if axes == 1 else 4) for _ in range(axes))
    groups = draw.integer(1, 2)
    channels, filters = groups * draw.integer(1, 2), groups * draw.integer(1, 2)
    batch = draw.shape(min_dims=1, max_dims=1, max_side=3)[0]
    options = {
        "stride": draw.integer(1, 3),
        "dilation": draw.integer(1, 2) if max(sizes) < 3 else 1,
        "groups": groups,
        "activation": draw.choice([None, "relu"]),
    }
    return sides, sizes, batch, channels, filters, options


def _drawn_call(draw: Draw, x_shape: tuple, kernel_shape: tuple, filters: int, options: dict):
    # a bias that the rest, of 3.6 at most, cannot undo, keeps relu off its kink
    gap = 0.0 if options["activation"] is None else 4.0
    x = draw.array(x_shape, low=-1.0, high=1.0)
    kernel = draw.array(kernel_shape, low=-0.3, high=0.3)
    bias = draw.array((filters,), low=-5.0, high=5.0, away=(0,), gap=gap)
    return call(x, kernel, bias if gap or draw.boolean() else None, **options)


@samples(conv1d)
def _(draw: Draw):
    sides, sizes, batch, channels, filters, options = _drawn(draw, 1)
    options["padding"] = draw.choice(["valid", "same", "causal", 3, (0, 2), (5, 1)])
    kernel = (*sizes, channels // options["groups"], filters)
    return _drawn_call(draw, (batch, *sides, channels), kernel, filters, options)


@samples(conv2d)
def _(draw: Draw):
    sides, sizes, batch, channels, filters, options = _drawn(draw, 2)
    options["padding"] = draw.choice(["valid", "same", 2, (0, 1), ((3, 0), (1, 2))])
    kernel = (*sizes, channels // options["groups"], filters)
    return _drawn_call(draw, (batch, *sides, channels), kernel, filters, options)


@samples(conv1d_transpose)
def _(draw: Draw):
    sides, sizes, batch, channels, filters, options = _drawn(draw, 1)
    options["padding"] = draw.choice(["valid", "same", 1, (0, 2)])
    options["output_padding"] = draw.choice([None, 0, options["stride"] - 1])
    kernel = (*sizes, filters // options["groups"], channels)
    return _drawn_call(draw, (batch, *sides, channels), kernel, filters, options)


@samples(conv2d_transpose)
def _(draw: Draw):
    sides, sizes, batch, channels, filters, options = _drawn(draw, 2)
    options["padding"] = draw.choice(["valid", "same", 1, (0, 1), ((1, 0), (1, 1))])
    options["output_padding"] = draw.choice([None, 0, options["stride"] - 1])
    kernel = (*sizes, filters // options["groups"], channels)
    return _drawn_call(draw, (batch, *sides, channels), kernel, filters, options)
