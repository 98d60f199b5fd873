"""Comparisons, logic and tests: elementwise, of booleans, without gradient."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.autodiff import Draw, call, primitive, samples
from minidl.backend import Array, namespace

__all__ = [
    "equal", "greater", "greater_equal", "isfinite", "isinf", "isnan", "less", "less_equal",
    "logical_and", "logical_not", "logical_or", "not_equal",
]  # fmt: skip

SCALARS = (bool, int, float)


def owner(*values: Any) -> Any:
    """The module of the first argument that is not a plain number."""
    for value in values:
        if not isinstance(value, SCALARS):
            return namespace(value)
    return np


def _comparison(name: str, meaning: str) -> Any:
    """The array module's function `name` of two arguments, as an op without rules."""

    def body(x: Array, y: Array) -> Array:
        return getattr(owner(x, y), name)(x, y)

    body.__name__ = body.__qualname__ = name
    body.__doc__ = f"{meaning}, elementwise, broadcasting. No gradient."
    op = primitive(body, differentiable=False)

    @samples(op, differentiable=False)
    def _(draw: Draw):
        return call(*(draw.array(shape, ties=True) for shape in draw.broadcast_shapes(2)))

    return op


def _test(name: str, meaning: str) -> Any:
    """The array module's function `name` of one argument, as an op without rules."""

    def body(x: Array) -> Array:
        return getattr(namespace(x), name)(x)

    body.__name__ = body.__qualname__ = name
    body.__doc__ = f"{meaning}, elementwise. No gradient."
    op = primitive(body, differentiable=False)

    @samples(op, differentiable=False)
    def _(draw: Draw):
        return call(draw.array(draw.shape()))

    return op


equal = _comparison("equal", "x == y")
not_equal = _comparison("not_equal", "x != y")
less = _comparison("less", "x < y")
less_equal = _comparison("less_equal", "x <= y")
greater = _comparison("greater", "x > y")
greater_equal = _comparison("greater_equal", "x >= y")
logical_and = _comparison("logical_and", "True where both are true")
logical_or = _comparison("logical_or", "True where either is true")
logical_not = _test("logical_not", "True where x is false")
isnan = _test("isnan", "True where x is not a number")
isinf = _test("isinf", "True where x is infinite")
isfinite = _test("isfinite", "True where x is a number and finite")
