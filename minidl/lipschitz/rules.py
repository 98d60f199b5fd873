"""The constants of minidl's layers and activations, in evaluation mode. Each is proved.

Computed in float64, and rounded up where something is rounded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl import layers, ops
from minidl.autodiff import enable_grad, grad
from minidl.functional.activations import activation as get_activation
from minidl.functional.activations import linear
from minidl.functional.spectral import conv_spectral_bound, spectral_norm
from minidl.graph import Tensor
from minidl.lipschitz.report import Bound, Report, lines_of, output_shape, register, upper_bound
from minidl.ops.geometry import per_axis

ROUNDING = 1 + 1e-10  # far more than LAPACK's singular values in float64 are off

# --- Activations ----------------------------------------------------------------------------------

# Elementwise: the largest slope. softmax: its Jacobian is diag(p) - p p^T, whose rows have absolute
# sums 2 p_i (1 - p_i) <= 1/2. log_softmax: I - 1 p^T, of norm sqrt(n) ||p|| <= sqrt(n).
_ACTIVATIONS: dict[Callable, float | Callable[[int], float]] = {
    linear: 1.0,
    ops.elu: 1.0,
    ops.exp: math.inf,
    ops.gelu: 0.5 * (1 + math.erf(1)) + math.exp(-1) / math.sqrt(math.pi),  # at sqrt(2)
    ops.glu: math.inf,
    ops.hard_sigmoid: 1 / 6,
    ops.hard_silu: 1.5,  # at 3
    ops.hard_tanh: 1.0,
    ops.leaky_relu: 1.0,
    ops.log_sigmoid: 1.0,
    ops.log_softmax: math.sqrt,
    ops.mish: 1.08849817,  # at 1.4906
    ops.relu: 1.0,
    ops.relu6: 1.0,
    ops.selu: ops.activations.SELU_SCALE * ops.activations.SELU_ALPHA,  # at 0 from below
    ops.sigmoid: 0.25,
    ops.silu: 1.09983933,  # at 2.3994
    ops.softmax: 0.5,
    ops.softplus: 1.0,
    ops.softsign: 1.0,
    ops.tanh: 1.0,
}


def register_activation(function: Callable, constant: float) -> None:
    """Make the largest slope of a function known to which layers may be given as `activation`."""
    _ACTIVATIONS[function] = float(constant)


def activation_constant(activation: Any, size: int) -> float:
    """The constant of an activation, by name or function, on vectors of `size` entries."""
    function = get_activation(activation)
    if function not in _ACTIVATIONS:
        name = getattr(function, "__name__", repr(function))
        raise ValueError(
            f"lipschitz: activation {name}: its constant is unknown; give it by "
            f"md.lipschitz.register_activation({name}, constant)"
        )
    found = _ACTIVATIONS[function]
    return found(size) if callable(found) else found


def _activated(bound: Bound, activation: Any, size: int) -> Bound:
    """What a linear map followed by an activation has."""
    if get_activation(activation) is linear:
        return bound
    constant = activation_constant(activation, size)
    both = bound.constant * constant if bound.constant else 0.0  # also times inf
    name = getattr(activation, "__name__", activation)
    return Bound(both, f"{bound.constant:.4g}, {bound.why}; {name} {constant:.4g}")


@register(layers.Activation)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(activation_constant(layer.activation, input_shape[-1]), "the largest slope")


@register(layers.Softmax)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(0.5, "diag(p) - p p^T")


@register(layers.ReLU)
def _(layer: Any, input_shape: tuple) -> Bound:
    if layer.threshold:
        return Bound(math.inf, "it jumps at the threshold")
    return Bound(max(1.0, abs(layer.negative_slope)), "the largest slope")


@register(layers.LeakyReLU)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(max(1.0, abs(layer.negative_slope)), "the largest slope")


@register(layers.ELU)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(max(1.0, abs(layer.alpha)), "the largest slope")


@register(layers.PReLU)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(float(np.abs(_host(layer.alpha)).max(initial=1.0)), "the largest slope")


# --- Linear layers --------------------------------------------------------------------------------


def _host(x: Any) -> np.ndarray:
    return np.asarray(x.numpy(), np.float64)


def _matrix(kernel: Any) -> float:
    values = _host(kernel)
    if not np.isfinite(values).all():
        return math.nan  # a decomposition would raise
    return ROUNDING * float(spectral_norm(values))


@register(layers.Dense)
def _(layer: Any, input_shape: tuple) -> Bound:
    return _activated(Bound(_matrix(layer.kernel), "exact, by SVD"), layer.activation, layer.units)


def _convolution(kernel: np.ndarray, layer: Any, input_shape: tuple, groups: int) -> float:
    """Zero padding is part of a convolution that goes round on a larger grid, whose norm is exact:
    see `conv_spectral_bound`. Stride, dilation and groups are in it."""
    options = layer.strides, layer.padding, layer.dilation_rate, groups
    return ROUNDING * conv_spectral_bound(kernel, input_shape, *options)


@register(layers.Conv1D)
@register(layers.Conv2D)
def _(layer: Any, input_shape: tuple) -> Bound:
    norm = _convolution(_host(layer.kernel), layer, input_shape, layer.groups)
    return _activated(Bound(norm, "bound, by FFT"), layer.activation, layer.filters)


@register(layers.Conv1DTranspose)
@register(layers.Conv2DTranspose)
def _(layer: Any, input_shape: tuple) -> Bound:
    """A map and its transpose have one norm; that one goes from this layer's output."""
    outputs = output_shape(layer, input_shape)
    norm = _convolution(_host(layer.kernel), layer, outputs, layer.groups)
    return _activated(
        Bound(norm, "bound of the transpose, by FFT"), layer.activation, layer.filters
    )


def _depthwise(kernel: np.ndarray, layer: Any, input_shape: tuple) -> float:
    *sizes, channels, multiplier = kernel.shape
    kernel = kernel.reshape(*sizes, 1, channels * multiplier)
    return _convolution(kernel, layer, input_shape, channels)


@register(layers.DepthwiseConv2D)
def _(layer: Any, input_shape: tuple) -> Bound:
    norm = _depthwise(_host(layer.kernel), layer, input_shape)
    channels = output_shape(layer, input_shape)[-1]
    return _activated(Bound(norm, "bound, by FFT"), layer.activation, channels)


@register(layers.SeparableConv2D)
def _(layer: Any, input_shape: tuple) -> Bound:
    norm = _depthwise(_host(layer.depthwise_kernel), layer, input_shape)
    norm *= _matrix(layer.pointwise_kernel[0, 0])
    return _activated(Bound(norm, "bound, by FFT and SVD"), layer.activation, layer.filters)


@register(layers.SpectralNormalization)
def _(layer: Any, input_shape: tuple) -> Bound:
    """What the kernel divided by its estimate really has: at least what the layer claims, as the
    estimate comes from below, and more where a reshaped kernel is not the operator."""
    inner = copy.copy(layer.layer)
    vars(inner)[layer._name] = layer.normalized_kernel()
    found = upper_bound(inner, input_shape)
    return Bound(found.product, f"kernel / sigma: {'; '.join(x.why for x in found.layers)}")


@register(layers.BatchNormalization)
def _(layer: Any, input_shape: tuple) -> Bound:
    gamma = 1.0 if layer.gamma is None else np.abs(_host(layer.gamma))
    factors = gamma / np.sqrt(_host(layer.moving_variance) + layer.epsilon)
    return Bound(
        ROUNDING * float(factors.max(initial=0)), "max |gamma| / sqrt(moving_variance + eps)"
    )


@register(layers.LayerNormalization)
@register(layers.GroupNormalization)
def _(layer: Any, input_shape: tuple) -> Bound:
    """The Jacobian of the normalised, I - 1 1^T / n - y y^T / n over s, is a contraction over s."""
    gamma = 1.0 if layer.gamma is None else float(np.abs(_host(layer.gamma)).max(initial=0))
    slope = gamma / math.sqrt(layer.epsilon) if layer.epsilon else math.inf
    return Bound(ROUNDING * slope, "max |gamma| / sqrt(eps)")


@register(layers.ScaleShift)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(
        float(np.exp(_host(layer.log_scale)).max(initial=0)) * ROUNDING, "the largest scale"
    )


# --- Layers without parameters --------------------------------------------------------------------


@register(layers.Identity)
@register(layers.ActivityRegularization)
@register(layers.Dropout)
@register(layers.AlphaDropout)
@register(layers.GaussianDropout)
@register(layers.GaussianNoise)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(1.0, "the identity, in evaluation")


@register(layers.ManifoldMixing)
def _(layer: Any, input_shape: tuple) -> Report:
    return Report(tuple(lines_of("model", layer.model, input_shape)))


@register(layers.Flatten)
@register(layers.Reshape)
@register(layers.Permute)
@register(layers.PixelShuffle)
@register(layers.ZeroPadding1D)
@register(layers.ZeroPadding2D)
@register(layers.Cropping1D)
@register(layers.Cropping2D)
@register(layers.Concatenate)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(1.0, "moves entries, or leaves some out")


@register(layers.UpSampling1D)
@register(layers.UpSampling2D)
@register(layers.RepeatVector)
def _(layer: Any, input_shape: tuple) -> Bound:
    times = math.prod(output_shape(layer, input_shape)) / max(1, math.prod(input_shape))
    return Bound(math.sqrt(times), f"each entry {times:g} times")


@register(layers.MaxPooling1D)
@register(layers.MaxPooling2D)
def _(layer: Any, input_shape: tuple) -> Bound:
    """A maximum moves no more than the entry of its window that moves most."""
    axes = len(input_shape) - 1
    sizes = per_axis("lipschitz", "pool_size", layer.pool_size, axes)
    strides = per_axis("lipschitz", "strides", layer.strides or layer.pool_size, axes)
    windows = math.prod(-(-size // stride) for size, stride in zip(sizes, strides, strict=True))
    why = f"an entry is in up to {windows} windows" if windows > 1 else "windows do not overlap"
    return Bound(math.sqrt(windows), why)


@register(layers.GlobalMaxPooling1D)
@register(layers.GlobalMaxPooling2D)
def _(layer: Any, input_shape: tuple) -> Bound:
    return Bound(1.0, "an entry is in one window")


@register(layers.AveragePooling1D)
@register(layers.AveragePooling2D)
@register(layers.GlobalAveragePooling1D)
@register(layers.GlobalAveragePooling2D)
def _(layer: Any, input_shape: tuple) -> Bound:
    """Schur's test: no norm exceeds sqrt(largest row sum * largest column sum); rows sum to 1, and
    the column sums are the gradient of the sum of all outputs."""
    x = Tensor(np.zeros((1, *input_shape[:-1], 1)), requires_grad=True, dtype=np.float64)
    with enable_grad():
        (columns,) = grad(ops.sum(layer.call(x)), [x])
    return Bound(ROUNDING * math.sqrt(columns.numpy().max(initial=0)), "means, by Schur's test")


@register(layers.Add)
@register(layers.Subtract)
@register(layers.Average)
@register(layers.Maximum)
@register(layers.Minimum)
def _(layer: Any, input_shape: tuple) -> Bound:
    """Of all inputs as one long vector."""
    if len(set(input_shape)) > 1:
        return Bound(math.inf, "not for inputs that broadcast")
    if isinstance(layer, (layers.Maximum, layers.Minimum)):
        return Bound(1.0, "moves no more than what moves most")
    count = len(input_shape)
    average = isinstance(layer, layers.Average)
    return Bound(math.sqrt(count) / (count if average else 1), f"of {count} inputs together")
