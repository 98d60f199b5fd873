"""Learning-rate schedules: callables `schedule(step) -> rate`, step 0 being the first.

A schedule is a pure function of the step, so a checkpoint holds its arguments only.
"""

from __future__ import annotations

import dataclasses
import math
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
