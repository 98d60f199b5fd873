"""Elementwise mathematics: arithmetic, functions of one variable, choices, types.

Every op broadcasts. Its derivative stands in its row or right under it, written with these same
ops, and so does the interval from which the tests draw its arguments, away from poles and kinks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import Array, current_dtype, in_two, namespace, special
from minidl.errors import DtypeError
from minidl.ops.comparison import SCALARS, equal, logical_and, owner

__all__ = [
    "abs", "absolute", "add", "arccos", "arcsin", "arctan", "astype", "ceil", "clip", "cos", "cosh",
    "divide", "erf", "exp", "expm1", "floor", "floor_divide", "full_like", "log", "log1p",
    "logaddexp", "maximum", "minimum", "mod", "multiply", "negative", "ones_like", "power",
    "reciprocal", "round", "sign", "sin", "sinh", "sqrt", "square", "subtract", "tan", "tanh",
    "where", "zeros_like",
]  # fmt: skip

_SPLIT = 100_000  # elements from which a slow function pays for a hand-over to the other thread


def halves(function: Callable, *arrays: Array) -> Array:
    """function(*arrays), of arrays and result of one shape; where they are large NumPy arrays, as
    function(*arrays, out) on two halves side by side."""
    first = arrays[0]
    if type(first) is not np.ndarray or first.size < _SPLIT or first.shape[0] < 2:
        return function(*arrays)
    out, middle = np.empty_like(first), first.shape[0] // 2
    in_two(
        lambda: function(*(x[:middle] for x in arrays), out[:middle]),
        lambda: function(*(x[middle:] for x in arrays), out[middle:]),
    )
    return out


def _unary(
    name: str,
    formula: str,
    rule: Callable,
    low: float = -2.0,
    high: float = 2.0,
    away: Sequence[float] = (),
    floats: bool = True,
) -> Any:
    """One row of the table below: the array module's function `name`, and its derivative.

    The samples lie in [low, high], clear of `away`. With `floats`, integers become floats first.
    """

    numpy_function = getattr(np, name)

    def body(x: Array) -> Array:
        if type(x) is not np.ndarray:
            return getattr(namespace(x), name)(x)
        small = x.size < _SPLIT or not floats
        return numpy_function(x) if small else halves(numpy_function, x)

    body.__name__ = body.__qualname__ = name
    body.__doc__ = f"{formula}, elementwise."
    op = primitive(floats=floats)(body)
    op.defvjp(x=rule)

    @samples(op)
    def _(draw: Draw):
        return call(draw.array(draw.shape(), low, high, away))

    return op


def _two(draw: Draw, **limits: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays that broadcast together; `limits` are those of `draw.array`."""
    first, second = draw.broadcast_shapes(2)
    return draw.array(first, **limits), draw.array(second, **limits)


# --- Arithmetic -----------------------------------------------------------------------------------


@primitive
def add(x: Array, y: Array) -> Array:
    """x + y, elementwise, broadcasting."""
    return x + y


add.defvjp(x=lambda g: g, y=lambda g: g)


@samples(add)
def _(draw: Draw):
    return call(*_two(draw))


@primitive
def subtract(x: Array, y: Array) -> Array:
    """x - y, elementwise, broadcasting."""
    return x - y


subtract.defvjp(x=lambda g: g, y=lambda g: -g)


@samples(subtract)
def _(draw: Draw):
    return call(*_two(draw))


@primitive
def multiply(x: Array, y: Array) -> Array:
    """x * y, elementwise, broadcasting."""
    return x * y


multiply.defvjp(x=lambda g, y: g * y, y=lambda g, x: g * x)


@samples(multiply)
def _(draw: Draw):
    return call(*_two(draw))


@primitive(floats=True)
def divide(x: Array, y: Array) -> Array:
    """x / y, elementwise, broadcasting; integers give floats."""
    return x / y


divide.defvjp(x=lambda g, y: g / y, y=lambda g, y, out: -(g * out / y))


@samples(divide)
def _(draw: Draw):
    x, y = draw.broadcast_shapes(2)
    return call(draw.array(x), draw.array(y, away=(0.0,), gap=0.5))


@primitive
def mod(x: Array, y: Array) -> Array:
    """x - y * floor(x / y), elementwise, broadcasting: the remainder, of the sign of y."""
    return x % y


mod.defvjp(x=lambda g: g, y=lambda g, x, y: -(g * floor_divide(x, y)))


@primitive
def floor_divide(x: Array, y: Array) -> Array:
    """floor(x / y), elementwise, broadcasting. Flat: its gradient is zero."""
    return x // y


floor_divide.defvjp(x=lambda g: zeros_like(g), y=lambda g: zeros_like(g))


@samples(mod)
@samples(floor_divide)
def _(draw: Draw):
    shape = draw.shape()
    y = draw.array(shape, away=(0.0,), gap=0.5)
    quotient = draw.integers(shape, -2, 2) + draw.array(
        shape, 0.2, 0.8
    )  # the jumps are at integers
    return call(np.asarray(quotient * y, y.dtype), y)


@primitive
def power(x: Array, y: Array) -> Array:
    """x ** y, elementwise, broadcasting; 0 ** 0 is 1. A negative x wants integers in y.

    Either side may be differentiated. Where x is 0, the gradient by y is 0, and so is that by x if
    y is 0 as well. By a negative x, the gradient by y is nan: x ** y is not real next to integers.
    """
    return _power(x, y)


def _power(x: Array, y: Array) -> Array:
    if isinstance(y, SCALARS):  # products are up to 100 times faster than NumPy's power
        if y in (2, 3, 4):
            square_of_x = x * x
            return square_of_x if y == 2 else square_of_x * (x if y == 3 else square_of_x)
        if y in (-0.5, -2, -3) and namespace(x).result_type(x, y).kind == "f":
            return 1.0 / _power(x, -y)
    return x**y


def _power_by_x(g: Array, x: Array, y: Array) -> Array:
    if isinstance(y, SCALARS):
        return zeros_like(g) if y == 0 else g * (y * (x if y == 2 else power(x, y - 1)))
    both_zero = logical_and(equal(x, 0), equal(y, 0))
    return g * (y * power(x, where(both_zero, 1.0, y - 1)))  # y * x ** -1 is no number there


def _power_by_y(g: Array, x: Array, out: Array) -> Array:
    if isinstance(x, SCALARS):
        return g * (out * (math.log(x) if x > 0 else 0.0 if x == 0 else math.nan))
    return g * (out * log(where(equal(x, 0), 1.0, x)))


power.defvjp(x=_power_by_x, y=_power_by_y)


@samples(power)
def _(draw: Draw):
    kind = draw.choice(["two arrays", "array and number", "number and array"])
    if kind == "number and array":
        return call(draw.choice([2, 0.5, 1]), draw.array(draw.shape()))
    if kind == "two arrays":
        x, y = draw.broadcast_shapes(2)
        return call(draw.array(x, 0.3, 2.0), draw.array(y))
    exponent = draw.choice([0, 1, 2, 3, 4, 5, -1, -2, 0.5, -0.5, 1.7])
    whole = isinstance(exponent, int) and exponent >= 0  # then zeros and negatives are welcome
    return call(draw.array(draw.shape(), -2.0 if whole else 0.3, 2.0), exponent)


# --- Functions of one variable: name, formula, derivative, domain ---------------------------------

negative = _unary("negative", "-x", lambda g: -g, floats=False)
absolute = _unary(
    "absolute", "|x| (gradient 0 at 0)", lambda g, x: g * sign(x), away=(0,), floats=False
)
abs = absolute
sign: Any = _unary(
    "sign", "-1, 0 or 1: the sign of x; its gradient is zero", lambda g: zeros_like(g),
    away=(0,), floats=False,
)  # fmt: skip
square = _unary("square", "x * x", lambda g, x: g * (2 * x), floats=False)
reciprocal = _unary(
    "reciprocal", "1 / x", lambda g, out: -(g * out * out), away=(0,), low=-3, high=3
)
sqrt = _unary("sqrt", "The square root of x", lambda g, out: g / (2 * out), 0.3)

exp = _unary("exp", "e to the power of x", lambda g, out: g * out)
expm1 = _unary("expm1", "exp(x) - 1, exact near 0", lambda g, out: g * (out + 1))
log = _unary("log", "The natural logarithm of x", lambda g, x: g / x, 0.3)
log1p = _unary("log1p", "log(1 + x), exact near 0", lambda g, x: g / (1 + x), -0.6)

sin = _unary("sin", "The sine of x", lambda g, x: g * cos(x))
cos: Any = _unary("cos", "The cosine of x", lambda g, x: -(g * sin(x)))
tan = _unary("tan", "The tangent of x", lambda g, out: g * (1 + out * out), -1.0, 1.0)
arcsin = _unary("arcsin", "The angle of sine x", lambda g, x: g / sqrt(1 - x * x), -0.8, 0.8)
arccos = _unary("arccos", "The angle of cosine x", lambda g, x: -g / sqrt(1 - x * x), -0.8, 0.8)
arctan = _unary("arctan", "The angle of tangent x", lambda g, x: g / (1 + x * x))
sinh = _unary("sinh", "(exp(x) - exp(-x)) / 2", lambda g, x: g * cosh(x))
cosh: Any = _unary("cosh", "(exp(x) + exp(-x)) / 2", lambda g, x: g * sinh(x))
tanh = _unary("tanh", "sinh(x) / cosh(x)", lambda g, out: g - g * out * out)

floor = _unary(
    "floor", "The largest integer up to x; its gradient is zero", lambda g: zeros_like(g),
    away=(-2, -1, 0, 1, 2), floats=False,
)  # fmt: skip
ceil = _unary(
    "ceil", "The smallest integer from x on; its gradient is zero", lambda g: zeros_like(g),
    away=(-2, -1, 0, 1, 2), floats=False,
)  # fmt: skip


@primitive
def round(x: Array, decimals: int = 0) -> Array:
    """x rounded to `decimals` places, halves to even digits. Flat: its gradient is zero."""
    return namespace(x).round(x, decimals)


round.defvjp(x=lambda g: zeros_like(g))


@samples(round)
def _(draw: Draw):
    return call(draw.array(draw.shape(), away=(-1.5, -0.5, 0.5, 1.5)))


@primitive(floats=True)
def erf(x: Array) -> Array:
    """The error function, 2 / sqrt(pi) times the integral of exp(-t * t) from 0 to x."""
    return halves(special(x).erf, x).astype(x.dtype, copy=False)  # SciPy knows no float16


erf.defvjp(x=lambda g, x: g * exp(-(x * x)) * (2 / math.sqrt(math.pi)))


@samples(erf)
def _(draw: Draw):
    return call(draw.array(draw.shape()))


# --- Choices --------------------------------------------------------------------------------------


def _winner(g: Array, x: Array, other: Array) -> Array:
    """g where x is above other, half of it where they tie."""
    return 0.5 * (g * (x > other) + g * (x >= other))


@primitive
def maximum(x: Array, y: Array) -> Array:
    """The larger of x and y, elementwise, broadcasting. Ties share the gradient equally."""
    return owner(x, y).maximum(x, y)


maximum.defvjp(x=lambda g, x, y: _winner(g, x, y), y=lambda g, x, y: _winner(g, y, x))


@primitive
def minimum(x: Array, y: Array) -> Array:
    """The smaller of x and y, elementwise, broadcasting. Ties share the gradient equally."""
    return owner(x, y).minimum(x, y)


minimum.defvjp(x=lambda g, x, y: _winner(g, y, x), y=lambda g, x, y: _winner(g, x, y))


def _apart(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays that broadcast together, nowhere equal: whole numbers against halves."""
    first, second = draw.broadcast_shapes(2)
    x = draw.integers(first, -2, 1) + draw.array(first, -0.2, 0.2)
    y = draw.integers(second, -2, 1) + draw.array(second, 0.3, 0.7)
    return np.asarray(x, draw.dtype), np.asarray(y, draw.dtype)


@samples(maximum)
@samples(minimum)
def _(draw: Draw):
    return call(*_apart(draw))


def clip(x: Array, min: Any = None, max: Any = None) -> Array:
    """minimum(maximum(x, min), max), elementwise, broadcasting; None stands for no bound.

    Differentiable in x and in either bound; at a tie x and the bound share the gradient equally.
    """
    if min is not None:
        x = maximum(x, min)
    return x if max is None else minimum(x, max)


@samples(clip)
def _(draw: Draw):
    x, lo = _apart(draw)
    if draw.boolean():
        return call(x, lo, draw.choice([None, 3.0, lo + 1.5]))
    return call(x, draw.choice([None, -0.6]), draw.choice([None, 0.6, 1.4]))


@primitive
def where(condition: Array, x: Array, y: Array) -> Array:
    """x where condition is true, y elsewhere; all three broadcast.

    The side that was not taken gets gradient 0, unless its own derivative is infinite there: then
    change its argument by a `where` before the function that has the pole.
    """
    out = owner(condition, x, y).where(condition, x, y)
    if type(x) in SCALARS and type(y) in SCALARS and out.dtype == np.float64:
        return out.astype(current_dtype())  # plain numbers, not NumPy's scalars
    return out


where.defvjp(
    x=lambda g, condition: where(condition, g, 0.0),
    y=lambda g, condition: where(condition, 0.0, g),
)


@samples(where)
def _(draw: Draw):
    condition, x, y = draw.broadcast_shapes(3)
    return call(draw.mask(condition), draw.array(x), draw.array(y))


@primitive(floats=True)
def logaddexp(x: Array, y: Array) -> Array:
    """log(exp(x) + exp(y)), elementwise, broadcasting, without overflow.

    Where both are -inf it is -inf, with gradient zero.
    """
    return owner(x, y).logaddexp(x, y)


def exp_below(x: Array, total: Array) -> Array:
    """exp(x - total) for x <= total, also where they are infinite: the share of x in logsumexp.

    0 where both are -inf, 1 where both are inf.
    """
    largest = float(np.finfo(total.dtype).max)
    return exp(minimum(x, largest) - clip(total, -largest, largest))


logaddexp.defvjp(
    x=lambda g, x, out: g * exp_below(x, out),
    y=lambda g, y, out: g * exp_below(y, out),
)


@samples(logaddexp)
def _(draw: Draw):
    return call(*_two(draw))


# --- Types and constants --------------------------------------------------------------------------


@primitive(view=True)
def astype(x: Array, dtype: Any) -> Array:
    """x in another dtype; its gradient goes back in x's own. Integers carry no gradient."""
    if np.dtype(dtype).kind not in "fiub":
        raise DtypeError(f"astype: dtype: expected real numbers or booleans, got {np.dtype(dtype)}")
    return x.astype(dtype, copy=False)


astype.defvjp(x=lambda g, x_dtype: astype(g, x_dtype))


@samples(astype, differentiable=False)
def _(draw: Draw):
    return call(draw.array(draw.shape()), draw.choice(["int64", "bool"]))


def _to_own_dtype(x: Array) -> Array:
    return astype(x, x.dtype)  # the checks run in several


@samples(_to_own_dtype, name="astype_of_floats")
def _(draw: Draw):
    return call(draw.array(draw.shape()))


@primitive(differentiable=False)
def full_like(x: Array, fill_value: float, dtype: Any = None) -> Array:
    """An array of x's shape (and dtype, unless given) filled with one number: a constant."""
    return namespace(x).full_like(x, fill_value, dtype=dtype)


@primitive(differentiable=False)
def zeros_like(x: Array, dtype: Any = None) -> Array:
    """Zeros of x's shape (and dtype, unless given): a constant."""
    return namespace(x).zeros_like(x, dtype=dtype)


@primitive(differentiable=False)
def ones_like(x: Array, dtype: Any = None) -> Array:
    """Ones of x's shape (and dtype, unless given): a constant."""
    return namespace(x).ones_like(x, dtype=dtype)


@samples(full_like, differentiable=False)
def _(draw: Draw):
    return call(draw.array(draw.shape()), draw.real(-2, 2))


@samples(zeros_like, differentiable=False)
@samples(ones_like, differentiable=False)
def _(draw: Draw):
    return call(draw.array(draw.shape()))
