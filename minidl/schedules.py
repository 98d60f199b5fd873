"""Learning-rate schedules: callables `schedule(step) -> rate`, step 0 being the first.

A schedule is a pure function of the step, so a checkpoint holds its arguments only.
"""

from __future__ import annotations

import dataclasses
import math
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from minidl.errors import SerializationError

_KINDS: dict[str, type[Schedule]] = {}


class Schedule:
    """Base of schedules: a frozen dataclass with `__call__(step)`. Its fields are JSON values, or
    schedules."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _KINDS[cls.__name__] = cls

    def __call__(self, step: int) -> float:
        """The learning rate of step number `step`."""
        raise NotImplementedError(f"{type(self).__name__}: write __call__(self, step)")

    def state_dict(self) -> dict[str, Any]:
        """The class's name and the arguments, fit for JSON; see `from_state`."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        inner = {k: v.state_dict() if isinstance(v, Schedule) else v for k, v in values.items()}
        return {"kind": type(self).__name__, **inner}


def from_state(state: dict[str, Any]) -> Schedule:
    """The schedule that gave `state`. Raises SerializationError for a class that is not defined."""
    arguments = dict(state)
    name = arguments.pop("kind", None)
    if name not in _KINDS:
        raise SerializationError(
            f"schedule {name!r} is unknown; import the module that defines it before loading"
        )
    built = {k: from_state(v) if isinstance(v, dict) else v for k, v in arguments.items()}
    return _KINDS[name](**built)


@dataclass(frozen=True)
class Constant(Schedule):
    """The same rate at every step."""

    learning_rate: float

    def __call__(self, step: int) -> float:
        return self.learning_rate


@dataclass(frozen=True)
class StepDecay(Schedule):
    """initial_learning_rate * decay_rate ** (step // decay_steps)."""

    initial_learning_rate: float
    decay_steps: int
    decay_rate: float = 0.1

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate * self.decay_rate ** (step // self.decay_steps)


@dataclass(frozen=True)
class PiecewiseConstantDecay(Schedule):
    """values[0] up to and with step boundaries[0], values[1] up to boundaries[1], ...

    One value more than boundaries, which ascend; else ValueError.
    """

    boundaries: tuple[int, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("boundaries", "values"):  # JSON gives lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"PiecewiseConstantDecay: values: expected {len(self.boundaries) + 1}, one more "
                f"than boundaries, got {len(self.values)}"
            )
        if list(self.boundaries) != sorted(self.boundaries):
            raise ValueError(
                f"PiecewiseConstantDecay: boundaries: expected in order, got {self.boundaries}"
            )

    def __call__(self, step: int) -> float:
        return self.values[bisect_left(self.boundaries, step)]


@dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """initial_learning_rate * decay_rate ** (step / decay_steps); in steps if `staircase`."""

    initial_learning_rate: float
    decay_steps: int
    decay_rate: float
    staircase: bool = False

    def __call__(self, step: int) -> float:
        power = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate * self.decay_rate**power


@dataclass(frozen=True)
class InverseTimeDecay(Schedule):
    """initial_learning_rate / (1 + decay_rate * step / decay_steps); in steps if `staircase`."""

    initial_learning_rate: float
    decay_steps: int
    decay_rate: float
    staircase: bool = False

    def __call__(self, step: int) -> float:
        time = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate / (1 + self.decay_rate * time)


@dataclass(frozen=True)
class PolynomialDecay(Schedule):
    """From `initial_learning_rate` to `end_learning_rate` at `decay_steps`, then constant: a
    straight line for power 1."""

    initial_learning_rate: float
    decay_steps: int
    end_learning_rate: float = 1e-4
    power: float = 1.0

    def __call__(self, step: int) -> float:
        left = 1 - min(step, self.decay_steps) / self.decay_steps
        span = self.initial_learning_rate - self.end_learning_rate
        return self.end_learning_rate + span * left**self.power


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """A straight line up to `peak` at step number `warmup_steps`, then down as 1 / sqrt(step).

    With peak = (size * warmup_steps) ** -0.5 it is that of Vaswani et al. 2017, eq. 3, where the
    first step is number 1.
    """

    peak: float
    warmup_steps: int

    def __call__(self, step: int) -> float:
        progress = (step + 1) / self.warmup_steps
        return self.peak * min(progress, progress**-0.5)


@dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from `initial_learning_rate` to `alpha` times that over `decay_steps`, then
    constant (Loshchilov and Hutter 2017, eq. 5, without restarts)."""

    initial_learning_rate: float
    decay_steps: int
    alpha: float = 0.0

    def __call__(self, step: int) -> float:
        progress = min(step, self.decay_steps) / self.decay_steps
        return self.initial_learning_rate * _cosine(1.0, self.alpha, progress)


@dataclass(frozen=True)
class CosineDecayRestarts(Schedule):
    """Cosines one after the other (Loshchilov and Hutter 2017, eq. 5): the first over
    `first_decay_steps`, each `t_mul` times as long as the one before, and starting from `m_mul`
    times its rate; all go down to `alpha` times where they start."""

    initial_learning_rate: float
    first_decay_steps: int
    t_mul: float = 2.0
    m_mul: float = 1.0
    alpha: float = 0.0

    def __call__(self, step: int) -> float:
        begin, length, rate = 0.0, float(self.first_decay_steps), self.initial_learning_rate
        while step >= begin + length:
            begin, length, rate = begin + length, length * self.t_mul, rate * self.m_mul
        return rate * _cosine(1.0, self.alpha, (step - begin) / length)

    def __post_init__(self) -> None:
        if not (self.first_decay_steps >= 1 and self.t_mul >= 1):
            raise ValueError(
                "CosineDecayRestarts: first_decay_steps and t_mul: expected 1 or more, got "
                f"{self.first_decay_steps} and {self.t_mul}"
            )


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A straight line from `start` times the first rate of `schedule` up to it, over
    `warmup_steps`; then `schedule` from its beginning."""

    schedule: Schedule | float
    warmup_steps: int
    start: float = 0.0

    def __call__(self, step: int) -> float:
        after = step - self.warmup_steps
        rate = self.schedule(max(0, after)) if callable(self.schedule) else self.schedule
        if after >= 0:
            return rate
        return rate * (self.start + (1 - self.start) * step / self.warmup_steps)


@dataclass(frozen=True)
class OneCycle(Schedule):
    """From peak / div up to `peak` over the first `rise` of `total_steps`, down to
    peak / div / final_div at the last step; both ways along a cosine (Smith and Topin 2018)."""

    peak: float
    total_steps: int
    rise: float = 0.3
    div: float = 25.0
    final_div: float = 1e4

    def __call__(self, step: int) -> float:
        low = self.peak / self.div
        top = self.rise * self.total_steps - 1
        last = self.total_steps - 1
        if step <= top:
            return _cosine(low, self.peak, step / top if top > 0 else 1.0)
        progress = (min(step, last) - top) / (last - top) if last > top else 1.0
        return _cosine(self.peak, low / self.final_div, progress)


def _cosine(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at 1, flat at both."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))
