"""Convolution layers, channels last."""

from __future__ import annotations

from typing import Any

from minidl import ops, regularizers
from minidl.errors import ShapeError
from minidl.functional.activations import activation as get_activation
from minidl.graph import Tensor
from minidl.layers.layer import Layer
from minidl.ops.geometry import per_axis
from minidl.ops.shape import count_of, shape_of


class _Conv(Layer):
    """What the layers below share: options, checks, a kernel and a bias."""

    axes: int  # between the first, of the items, and the last, of the channels

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: Any = 1,
        padding: Any = "valid",
        dilation_rate: Any = 1,
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        input_size: int | None = None,
    ) -> None:
        self.filters = count_of(type(self).__name__, "filters", filters, least=1)
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.dilation_rate = dilation_rate
        self.groups = groups
        self.activation = activation
        self.use_bias = use_bias
        self._fused = "relu" if activation in ("relu", ops.relu) else None
        self._activate = get_activation(None if self._fused else activation)
        self._kernel = kernel_initializer, "kernel", None, kernel_regularizer, kernel_constraint
        self._bias = bias_initializer, "bias", None, bias_regularizer, bias_constraint
        self.activity_regularizer = regularizers.get(activity_regularizer)
        if input_size is not None:
            self.build((*(None,) * (self.axes + 1), input_size))

    def build(self, input_shape: Any) -> None:
        channels = input_shape[-1]
        if self.groups < 1 or channels % self.groups or self.filters % self.groups:
            raise ShapeError(
                f"{type(self).__name__}: groups: expected a divisor of {channels} channels and "
                f"{self.filters} filters, got {self.groups}"
            )
        sizes = per_axis(type(self).__name__, "kernel_size", self.kernel_size, self.axes)
        self.kernel = self.add_weight((*sizes, *self._matrix(channels)), *self._kernel)
        self.bias = self.add_weight((self.filters,), *self._bias) if self.use_bias else None

    def _matrix(self, channels: int) -> tuple[int, int]:
        """The last two sides of the kernel."""
        return channels // self.groups, self.filters


class Conv1D(_Conv):
    """activation(convolution over time + bias): (batch, time, channels) -> (batch, steps, filters).

    `kernel` is (kernel_size, channels / groups, filters), `bias` (filters,). padding: "valid",
    "same", "causal", n or (left, right). Built at once where `input_size`, the number of channels,
    is given. Raises ShapeError unless `groups` divides channels and filters.
    """

    axes = 1

    def call(self, x: Any) -> Tensor:
        out = ops.conv1d(
            x, self.kernel, self.bias, self.strides, self.padding, self.dilation_rate,
            self.groups, self._fused,
        )  # fmt: skip
        return self._activate(out)


class Conv2D(_Conv):
    """activation(convolution + bias) of images: (batch, height, width, channels) -> (batch, rows,
    columns, filters).

    `kernel` is (height, width, channels / groups, filters), `bias` (filters,). kernel_size,
    strides, dilation_rate: a number or (along height, along width). padding: "valid", "same", n,
    (n, m) or ((top, bottom), (left, right)). The rest as Conv1D.
    """

    axes = 2

    def call(self, x: Any) -> Tensor:
        out = ops.conv2d(
            x, self.kernel, self.bias, self.strides, self.padding, self.dilation_rate,
            self.groups, self._fused,
        )  # fmt: skip
        return self._activate(out)


class _ConvTranspose(_Conv):
    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, ...],
        strides: Any = 1,
        padding: Any = "valid",
        output_padding: Any = None,
        dilation_rate: Any = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        self.output_padding = output_padding
        super().__init__(filters, kernel_size, strides, padding, dilation_rate, groups, **options)

    def _matrix(self, channels: int) -> tuple[int, int]:
        return self.filters // self.groups, channels


class Conv1DTranspose(_ConvTranspose):
    """activation(transposed convolution over time + bias): (batch, time, channels) -> (batch,
    steps, filters), with "same" padding time * strides steps.

    `kernel` is (kernel_size, filters / groups, channels), `bias` (filters,). padding and
    output_padding as in `md.conv1d_transpose`; all other options as in Conv1D.
    """

    axes = 1

    def call(self, x: Any) -> Tensor:
        out = ops.conv1d_transpose(
            x, self.kernel, self.bias, self.strides, self.padding, self.output_padding,
            self.dilation_rate, self.groups, self._fused,
        )  # fmt: skip
        return self._activate(out)


class Conv2DTranspose(_ConvTranspose):
    """activation(transposed convolution + bias) of images: (batch, height, width, channels) ->
    (batch, rows, columns, filters), with "same" padding height * strides rows.

    `kernel` is (height, width, filters / groups, channels), `bias` (filters,). padding and
    output_padding as in `md.conv2d_transpose`; all other options as in Conv2D.
    """

    axes = 2

    def call(self, x: Any) -> Tensor:
        out = ops.conv2d_transpose(
            x, self.kernel, self.bias, self.strides, self.padding, self.output_padding,
            self.dilation_rate, self.groups, self._fused,
        )  # fmt: skip
        return self._activate(out)


class DepthwiseConv2D(_Conv):
    """activation(convolution of each channel with kernels of its own + bias): (batch, height,
    width, channels) -> (batch, rows, columns, channels * depth_multiplier).

    `kernel` is (height, width, channels, depth_multiplier), `bias` (channels * depth_multiplier,);
    the filters of a channel are neighbours. All other options as in Conv2D.
    """

    axes = 2

    def __init__(
        self,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: Any = "valid",
        depth_multiplier: int = 1,
        dilation_rate: int | tuple[int, int] = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        bias_constraint: Any = None,
        input_size: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.depth_multiplier = count_of(name, "depth_multiplier", depth_multiplier, least=1)
        super().__init__(
            depth_multiplier, kernel_size, strides, padding, dilation_rate, 1, activation, use_bias,
            depthwise_initializer, bias_initializer, depthwise_regularizer, bias_regularizer,
            activity_regularizer, depthwise_constraint, bias_constraint, input_size,
        )  # fmt: skip

    def build(self, input_shape: Any) -> None:
        channels, multiplier = input_shape[-1], self.depth_multiplier
        sizes = per_axis("DepthwiseConv2D", "kernel_size", self.kernel_size, 2)
        self.filters = channels * multiplier  # of one channel there were `multiplier`
        self.kernel = self.add_weight((*sizes, channels, multiplier), *self._kernel)
        self.bias = self.add_weight((self.filters,), *self._bias) if self.use_bias else None

    def call(self, x: Any) -> Tensor:
        return self._activate(_depthwise(x, self.kernel, self.bias, self, self._fused))


class SeparableConv2D(_Conv):
    """A depthwise convolution, then a product that mixes the channels of each place, bias and
    activation: (batch, height, width, channels) -> (batch, rows, columns, filters).

    `depthwise_kernel` is (height, width, channels, depth_multiplier), `pointwise_kernel` (1, 1,
    channels * depth_multiplier, filters), `bias` (filters,). Chollet 2017, section 1. All other
    options as in Conv2D.
    """

    axes = 2

    def __init__(
        self,
        filters: int,
        kernel_size: int | tuple[int, int],
        strides: int | tuple[int, int] = 1,
        padding: Any = "valid",
        dilation_rate: int | tuple[int, int] = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        pointwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        bias_constraint: Any = None,
        input_size: int | None = None,
    ) -> None:
        name = type(self).__name__
        self.depth_multiplier = count_of(name, "depth_multiplier", depth_multiplier, least=1)
        self._depthwise = (
            depthwise_initializer, "depthwise_kernel", None, depthwise_regularizer,
            depthwise_constraint,
        )  # fmt: skip
        self._pointwise = (
            pointwise_initializer, "pointwise_kernel", None, pointwise_regularizer,
            pointwise_constraint,
        )  # fmt: skip
        super().__init__(
            filters, kernel_size, strides, padding, dilation_rate, 1, activation, use_bias, None,
            bias_initializer, None, bias_regularizer, activity_regularizer, None, bias_constraint,
            input_size,
        )  # fmt: skip

    def build(self, input_shape: Any) -> None:
        channels, multiplier = input_shape[-1], self.depth_multiplier
        sizes = per_axis("SeparableConv2D", "kernel_size", self.kernel_size, 2)
        mixed = 1, 1, channels * multiplier, self.filters
        self.depthwise_kernel = self.add_weight((*sizes, channels, multiplier), *self._depthwise)
        self.pointwise_kernel = self.add_weight(mixed, *self._pointwise)
        self.bias = self.add_weight((self.filters,), *self._bias) if self.use_bias else None

    def call(self, x: Any) -> Tensor:
        apart = _depthwise(x, self.depthwise_kernel, None, self)
        return self._activate(
            ops.conv2d(apart, self.pointwise_kernel, self.bias, activation=self._fused)
        )


def _depthwise(x: Any, kernel: Any, bias: Any, layer: Any, activation: str | None = None) -> Tensor:
    """A convolution of as many groups as there are channels, `kernel` as these layers keep it."""
    *sizes, channels, multiplier = kernel.shape
    shape = shape_of(x)
    if len(shape) == 4 and shape[3] != channels:
        raise ShapeError(
            f"{type(layer).__name__}: x: expected {channels} channels, as when it was built, got "
            f"{shape}"
        )
    kernel = ops.reshape(kernel, (*sizes, 1, channels * multiplier))
    return ops.conv2d(
        x, kernel, bias, layer.strides, layer.padding, layer.dilation_rate, channels, activation
    )
