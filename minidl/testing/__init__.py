"""Checking, for users too: gradients, hypothesis strategies, the strict stand-in for CuPy."""

from minidl.samples import Draw, call, samples
from minidl.testing.diagnosis import GradientCheckError, GradientReport
from minidl.testing.gradients import check_call, check_constant, check_gradients, check_op

__all__ = [
    "Draw", "GradientCheckError", "GradientReport", "call", "check_call", "check_constant",
    "check_gradients", "check_op", "samples",
]  # fmt: skip
