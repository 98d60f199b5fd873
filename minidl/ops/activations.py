"""Activation functions: each elementwise, stable, with its derivative and its domain under it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples, stop_gradient
from minidl.backend import Array, namespace
from minidl.errors import ShapeError
from minidl.ops.elementwise import absolute, clip, erf, exp, halves, minimum, tanh
from minidl.ops.shape import one_axis, shape_of

__all__ = [
    "elu", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu", "log_sigmoid",
    "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softsign",
]  # fmt: skip


def _exponent_limit(dtype: Any) -> float:
    """The z up to which exp(z) and 1 / (1 + exp(z)) are normal numbers of `dtype`."""
    return {2: 9.5, 4: 87.0, 8: 708.0}[dtype.itemsize]


@primitive(floats=True)
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), elementwise, to full relative precision; never exactly 0 (2e-38)."""
    return halves(_sigmoid, x)


def _sigmoid(x: Array, out: Array = None) -> Array:
    xp, limit = namespace(x), _exponent_limit(x.dtype)
    out = xp.empty_like(x) if out is None else out
    xp.negative(x, out=out)
    xp.clip(out, -limit, limit, out=out)  # neither overflow nor underflow
    xp.exp(out, out=out)
    xp.add(out, 1, out=out)
    return xp.reciprocal(out, out=out)


sigmoid.defvjp(x=lambda g, out: g * (out * (1 - out)))


@primitive(floats=True)
def softplus(x: Array) -> Array:
    """log(1 + exp(x)), elementwise, as max(x, 0) + log(1 + exp(-|x|)): no overflow."""
    return halves(_softplus, x)


def _softplus(x: Array, out: Array = None) -> Array:
    xp = namespace(x)
    out = xp.empty_like(x) if out is None else out
    xp.absolute(x, out=out)
    xp.minimum(out, _exponent_limit(x.dtype), out=out)
    xp.negative(out, out=out)
    xp.exp(out, out=out)
    xp.log1p(out, out=out)
    return xp.add(out, xp.maximum(x, 0), out=out)


softplus.defvjp(x=lambda g, x: g * sigmoid(x))


def silu(x: Array) -> Array:
    """x * sigmoid(x), elementwise (Elfwing et al. 2017, "swish")."""
    return x * sigmoid(x)


def mish(x: Array) -> Array:
    """x * tanh(softplus(x)), elementwise (Misra 2019)."""
    return x * tanh(softplus(x))


def log_sigmoid(x: Array) -> Array:
    """log(sigmoid(x)) = -softplus(-x), elementwise: no underflow."""
    return -softplus(-x)


def softsign(x: Array) -> Array:
    """x / (1 + |x|), elementwise."""
    return x / (1 + absolute(x))


def glu(x: Array, axis: int = -1) -> Array:
    """a * sigmoid(b), where a and b are the halves of `x` along `axis` (Dauphin et al. 2016).

    Raises ShapeError for a side of odd length.
    """
    shape = shape_of(x)
    axis = one_axis("glu", axis, len(shape))
    if shape[axis] % 2:
        raise ShapeError(
            f"glu: x: expected an even number of entries along axis {axis}, got shape {shape}; "
            "give it values and gates, as many of each"
        )
    before, half = (slice(None),) * axis, shape[axis] // 2
    return x[(*before, slice(None, half))] * sigmoid(x[(*before, slice(half, None))])


def gelu(x: Array, approximate: str | None = None) -> Array:
    """x times the normal distribution function of x, elementwise (Hendrycks and Gimpel 2016).

    `approximate="tanh"` takes the paper's approximation, several times faster on the CPU. Raises
    ValueError for any other approximation.
    """
    if approximate not in (None, "tanh"):
        raise ValueError(f"gelu: approximate: expected None or 'tanh', got {approximate!r}")
    return x * _normal_cdf(x) if approximate is None else _gelu_tanh(x)


@primitive(floats=True)
def _normal_cdf(x: Array) -> Array:
    """The normal distribution function, elementwise."""
    return (erf(x * math.sqrt(0.5)) + 1) * 0.5


_normal_cdf.defvjp(x=lambda g, x: g * exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)))


@primitive(floats=True)
def _gelu_tanh(x: Array) -> Array:
    """0.5 x (1 + tanh(u)), where u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    return (namespace(x).tanh(_gelu_argument(x)) + 1) * (0.5 * x)


def _gelu_argument(x: Array) -> Array:
    return x * (math.sqrt(2 / math.pi) + math.sqrt(2 / math.pi) * 0.044715 * (x * x))


def _gelu_tanh_by_x(g: Array, x: Array) -> Array:
    t = tanh(_gelu_argument(x))
    slope = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * (x * x))
    return g * (0.5 * (1 + t + x * slope * (1 - t * t)))


_gelu_tanh.defvjp(x=_gelu_tanh_by_x)


@samples(sigmoid)
@samples(softplus)
@samples(silu)
@samples(mish)
@samples(log_sigmoid)
def _(draw: Draw):
    return call(draw.array(draw.shape(), -4.0, 4.0))


@samples(softsign)
def _(draw: Draw):
    return call(draw.array(draw.shape(), away=(0.0,)))  # the second derivative jumps there


@samples(glu)
def _(draw: Draw):
    shape = list(draw.shape(min_dims=1))
    axis = draw.integer(-len(shape), len(shape) - 1)
    shape[axis] *= 2
    return call(draw.array(shape), axis)


@samples(gelu)
def _(draw: Draw):
    return call(draw.array(draw.shape()), approximate=draw.choice([None, "tanh"]))


# Below, products with (x > 0): np.where takes fifteen times longer.


@primitive
def relu(x: Array) -> Array:
    """max(x, 0), elementwise. The gradient at 0 is 0, as in the other libraries."""
    return positive_part(x)


def positive_part(x: Array, out: Array = None) -> Array:
    """max(x, 0) of an array. On NumPy clip is the faster: maximum with a number goes one by one."""
    if type(x) is np.ndarray and x.size > 4096 and x.dtype.kind == "f":
        return np.clip(x, 0, np.inf, out=out)
    return namespace(x).maximum(x, 0, out=out)


relu.defvjp(x=lambda g, out: gate(g, stop_gradient(out)))


@primitive
def gate(x: Array, y: Array, slope: float = 0.0) -> Array:
    """x where `y` is positive, else slope * x: what the two derivatives do to a gradient."""

    def gated(x: Array, y: Array, out: Array = None) -> Array:
        xp = namespace(x)
        if slope == 0:
            return xp.multiply(x, y > 0, out=out)
        low = x.dtype.type(slope)
        factor = xp.empty(x.shape, x.dtype)
        factor[...] = y > 0
        factor *= 1 - low
        factor += low
        return xp.multiply(x, factor, out=factor if out is None else out)

    return halves(gated, x, y)


gate.defvjp(x=lambda g, y, slope: gate(g, y, slope))


@samples(gate)
def _(draw: Draw):
    x = draw.array(draw.shape())
    return call(x, draw.integers(x.shape, -1, 1), draw.choice([0.0, 0.2, -0.5]))


@samples(relu)
def _(draw: Draw):
    return call(draw.array(draw.shape(), away=(0.0,)))


@primitive(floats=True)
def leaky_relu(x: Array, negative_slope: float = 0.01) -> Array:
    """x where x > 0, else negative_slope * x, elementwise; the gradient at 0 is negative_slope."""
    xp, negative_slope = namespace(x), float(negative_slope)  # NumPy's scalar could make float64
    if 0 < negative_slope <= 1:
        out = xp.multiply(x, negative_slope, out=xp.empty_like(x))
        return xp.maximum(x, out, out=out)
    return xp.maximum(x, 0) + negative_slope * xp.minimum(x, 0)


leaky_relu.defvjp(
    x=lambda g, x, negative_slope: gate(g, stop_gradient(x), float(negative_slope)),
)


@samples(leaky_relu)
def _(draw: Draw):
    return call(draw.array(draw.shape(), away=(0.0,)), draw.choice([0.01, 0.3, 0.0, -0.5, 2.0]))


@primitive(floats=True)
def elu(x: Array, alpha: float = 1.0) -> Array:
    """x where x > 0, else alpha * (exp(x) - 1), elementwise (Clevert et al. 2015).

    The gradient at 0 is alpha.
    """
    xp = namespace(x)
    return float(alpha) * xp.expm1(xp.minimum(x, 0)) + xp.maximum(x, 0)


elu.defvjp(x=lambda g, x, alpha: g * (x > 0) + g * (float(alpha) * exp(minimum(x, 0))) * (x <= 0))


@samples(elu)
def _(draw: Draw):
    return call(draw.array(draw.shape(), away=(0.0,)), draw.choice([1.0, 0.5]))


SELU_SCALE, SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def selu(x: Array) -> Array:
    """scale * elu(x, alpha), elementwise, with the two constants that keep mean 0 and variance 1
    from layer to layer (Klambauer et al. 2017)."""
    return SELU_SCALE * elu(x, SELU_ALPHA)


def relu6(x: Array) -> Array:
    """min(max(x, 0), 6), elementwise."""
    return clip(x, 0.0, 6.0)


def hard_sigmoid(x: Array) -> Array:
    """min(max(x / 6 + 1/2, 0), 1), elementwise: sigmoid in three straight pieces."""
    return clip(x * (1 / 6) + 0.5, 0.0, 1.0)


def hard_silu(x: Array) -> Array:
    """x * hard_sigmoid(x), elementwise (Howard et al. 2019, "hard swish")."""
    return x * hard_sigmoid(x)


def hard_tanh(x: Array) -> Array:
    """min(max(x, -1), 1), elementwise."""
    return clip(x, -1.0, 1.0)


@samples(selu)
def _(draw: Draw):
    return call(draw.array(draw.shape(), away=(0.0,)))


@samples(relu6)
@samples(hard_sigmoid)
@samples(hard_silu)
@samples(hard_tanh)
def _(draw: Draw):
    return call(draw.array(draw.shape(), -8.0, 8.0, away=(-3.0, -1.0, 0.0, 1.0, 3.0, 6.0)))
