"""Checking, for users too: gradients, hypothesis strategies, the strict stand-in for CuPy."""

import importlib
from typing import Any

from minidl.samples import Draw, call, samples
from minidl.testing.diagnosis import GradientCheckError, GradientReport
from minidl.testing.gradients import check_call, check_constant, check_gradients, check_op

__all__ = [
    "Draw", "GradientCheckError", "GradientReport", "call", "check_call", "check_constant",
    "check_gradients", "check_op", "samples",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """`md.testing.strategies` needs hypothesis and `md.testing.strict` SciPy: loaded when asked."""
    if name in ("strategies", "strict"):
        return importlib.import_module(f"minidl.testing.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
