"""What is wrong with a gradient, in words: where it is worst and what the likely cause is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidl.testing.differences import Tolerance, agrees, kink, within

Arrays = Sequence[np.ndarray]


class GradientCheckError(AssertionError):
    """A gradient is wrong; the message is the report.

    Attributes: `stage` (a word for the property that failed), `op` (the op to blame), `argument`,
    `index`, `analytic`, `numeric`, `cause`; None where they do not apply.
    """

    def __init__(self, stage: str, op: str, message: str, **details: Any):
        self.stage, self.op = stage, op
        self.argument: str | None = details.get("argument")
        self.index: tuple[int, ...] | None = details.get("index")
        self.analytic: float | None = details.get("analytic")
        self.numeric: float | None = details.get("numeric")
        self.cause: str | None = details.get("cause")
        super().__init__(f"{op}: {stage}: {message}")


@dataclass
class GradientReport:
    """What was checked. `worst` is the largest relative distance between slopes and differences;
    `order` the highest one compared: 1 at a kink, whatever was asked for."""

    op: str
    order: int
    arguments: tuple[str, ...] = ()
    comparisons: int = 0
    worst: float = 0.0
    kinks: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{self.op}: gradients of order {self.order} agree with differences",
            f"  arguments: {', '.join(self.arguments) or 'none that is floating'}",
            f"  comparisons: {self.comparisons}, worst relative distance {self.worst:.1e}",
        ]
        return "\n".join(lines + [f"  kink: {where}" for where in self.kinks])


@dataclass
class Coordinates:
    """One argument's gradient entry by entry; entries that were not visited are NaN in `numeric`.

    `kinks` gives, by index, the slopes on both sides.
    """

    name: str
    analytic: np.ndarray
    numeric: np.ndarray
    wrong: np.ndarray
    kinks: dict[tuple[int, ...], tuple[float, float]]

    def worst(self) -> tuple[int, ...]:
        """The index whose entry is farthest off among the wrong ones."""
        distance = np.abs(self.analytic - self.numeric)
        distance = np.where(np.isnan(distance), np.inf, distance)
        flat = int(np.argmax(np.where(self.wrong, distance, -1.0)))
        return tuple(int(i) for i in np.unravel_index(flat, self.analytic.shape))


def by_coordinate(
    phi: Callable[[Arrays], float],
    point: Arrays,
    analytic: Arrays,
    names: Sequence[str],
    tolerance: Tolerance,
    limit: int = 1000,
    seed: int = 0,
    kinks_first: bool = False,
) -> list[Coordinates]:
    """Compare every entry of every gradient with its own difference; of large arrays, `limit`.

    `kinks_first`: look for kinks also where the gradient agrees.
    """
    generator = np.random.default_rng(seed)
    found = []
    for k, (name, slopes) in enumerate(zip(names, analytic, strict=True)):
        numeric = np.full(slopes.shape, np.nan)
        wrong, kinks = np.zeros(slopes.shape, bool), {}
        visited = np.arange(slopes.size)
        if slopes.size > limit:
            visited = generator.choice(slopes.size, limit, replace=False)
        for flat in visited:
            index = tuple(int(i) for i in np.unravel_index(flat, slopes.shape))
            along = _along(phi, point, k, index)
            slope = float(slopes[index])
            own = Tolerance(tolerance.rtol, tolerance.atol, abs(slope), tolerance.noise)
            right, numeric[index] = agrees(along, slope, own)
            if right and not kinks_first:
                continue
            sides = kink(along, own)
            if sides is not None:
                kinks[index] = sides
            wrong[index] = not right and not within(slope, sides, own)
        found.append(Coordinates(name, slopes, numeric, wrong, kinks))
    return found


def _along(phi: Callable[[Arrays], float], point: Arrays, k: int, index: tuple) -> Callable:
    """phi as a function of a change in one entry of the k-th array."""

    def along(t: float) -> float:
        moved = list(point)
        moved[k] = np.array(point[k])
        moved[k][index] += t
        return phi(moved)

    return along


def likely_cause(analytic: np.ndarray, numeric: np.ndarray, out_shapes: Sequence[tuple]) -> str:
    """Name the mistake that would turn the numeric gradient into the analytic one.

    Shapes: both arrays alike, NaN in `numeric` where an entry was not visited.
    """
    seen = ~np.isnan(numeric)
    a, n = analytic[seen], numeric[seen]
    scale = max(float(np.max(np.abs(n), initial=0.0)), 1e-12)

    def close(x: Any, y: Any) -> bool:
        return bool(np.allclose(x, y, rtol=1e-4, atol=1e-5 * scale))

    if a.size == 0:
        return "the differences are not finite: the inputs are at the edge of the domain"
    if not np.all(np.isfinite(a)):
        return "the gradient is not finite: a division by zero, or inf - inf, in the rule"
    if close(n, 0.0):
        return "the function does not depend on this argument, its rule says that it does"
    if close(a, 0.0):
        return "the gradient is zero: a dependence was dropped or detached, or a mask is wrong"
    if close(a, -n):
        return "the sign"
    if np.array_equal(np.abs(a) > 1e-5 * scale, np.abs(n) <= 1e-5 * scale):
        return "an inverted mask: the gradient is zero where it should not be, and only there"
    factor = float(a @ n / (n @ n))
    if close(a, factor * n):
        return f"a factor: the gradient is {factor:.6g} times what it should be"
    if np.all(seen):
        moved = _moved(analytic, numeric, close)
        if moved:
            return moved
    if close(a - n, np.mean(a - n)):
        return f"a constant term: {np.mean(a - n):.6g} is added to every entry"
    off = np.abs(a - n) > 1e-4 * np.abs(n) + 1e-5 * scale
    if a.size > 2 and np.sum(off) <= a.size / 2:
        return (
            f"{np.sum(off)} of {a.size} entries are wrong, the others right: off by one, a wrong "
            "mask, ties, or repeated indices that are assigned instead of added"
        )
    if all(analytic.shape != shape for shape in out_shapes):
        return "a sum over a broadcast or reduced axis is missing or over the wrong axis, perhaps"
    return "the formula: no simple pattern"


def _moved(analytic: np.ndarray, numeric: np.ndarray, close: Callable) -> str | None:
    """Whether the right entries stand in wrong places, and how they got there."""
    ndim = analytic.ndim
    if ndim == 0 or not close(np.sort(analytic.ravel()), np.sort(numeric.ravel())):
        return None
    for i in range(ndim):
        if close(analytic, np.flip(numeric, i)):
            return f"the order along axis {i}: reversed"
        for shift in (1, -1):
            if close(analytic, np.roll(numeric, shift, i)):
                return f"an index along axis {i}: off by one"
        for j in range(i):
            if analytic.shape[i] == analytic.shape[j] and close(analytic, numeric.swapaxes(i, j)):
                return f"a transpose: axes {j} and {i} are swapped"
    return "the right numbers in the wrong places: a transpose, a reshape, or an index"
