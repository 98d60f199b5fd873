"""Slopes of functions of one number, by differences, and whether there is a kink."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEPS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
_WIDE, _NARROW = 1e-4, 1e-5  # steps to look for a kink: wider than the last of those above, so that
# a kink is either farther than a step that agrees, or near enough to be seen
_EPSILON = float(np.finfo(np.float64).eps)

Phi = Callable[[float], float]


@dataclass(frozen=True)
class Tolerance:
    """How far a slope may be from its difference quotient.

    `scale` is the sum of the absolute terms that make up the slope, `noise` that of the terms that
    make up the function's value: rounding in them is amplified by 1 / step.
    """

    rtol: float
    atol: float
    scale: float
    noise: float

    def at(self, step: float) -> float:
        """The allowed distance for differences taken at `step`."""
        return self.atol + self.rtol * self.scale + 50 * _EPSILON * self.noise / step


def central(phi: Phi, step: float) -> float:
    """phi'(0) by the four-point central difference, whose error is of order step^4."""
    near = phi(step) - phi(-step)
    far = phi(2 * step) - phi(-2 * step)
    return (8 * near - far) / (12 * step)


def one_sided(phi: Phi, step: float) -> tuple[float, float]:
    """The slopes of phi at 0 from the left and from the right, each to order step^2."""
    here = phi(0.0)
    right = (4 * phi(step) - phi(2 * step) - 3 * here) / (2 * step)
    left = (3 * here - 4 * phi(-step) + phi(-2 * step)) / (2 * step)
    return left, right


def agrees(phi: Phi, slope: float, tolerance: Tolerance) -> tuple[bool, float]:
    """Whether `slope` is phi'(0) at some step, and the difference quotient that came closest.

    The largest step is the most exact one and nearly always the only one taken; smaller ones help
    where phi bends sharply or where its domain or a kink is near.
    """
    closest = np.nan
    for step in STEPS:
        numeric = central(phi, step)
        if abs(numeric - slope) <= tolerance.at(step):
            return True, numeric
        if not abs(numeric - slope) >= abs(closest - slope):
            closest = numeric
    return False, closest


def kink(phi: Phi, tolerance: Tolerance) -> tuple[float, float] | None:
    """The slopes on both sides if phi has a kink at 0, else None.

    Where phi is smooth the two slopes approach each other as the step shrinks (as step^2); at a
    kink they stay apart.
    """
    wide_left, wide_right = one_sided(phi, _WIDE)
    left, right = one_sided(phi, _NARROW)
    jump = abs(right - left)
    if jump > 0.5 * abs(wide_right - wide_left) and jump > 100 * tolerance.at(_NARROW):
        return min(left, right), max(left, right)
    return None


def within(slope: float, sides: tuple[float, float] | None, tolerance: Tolerance) -> bool:
    """Whether `slope` is one that a kink with these slopes on its sides allows."""
    slack = 100 * tolerance.at(_NARROW)
    return sides is not None and sides[0] - slack <= slope <= sides[1] + slack
