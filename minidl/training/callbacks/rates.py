"""Callbacks about the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minidl.optimizers import Optimizer, Optimizers
from minidl.training.callbacks.callback import Callback

if TYPE_CHECKING:
    from minidl.training.loop import Run


class LearningRateLog(Callback):
    """Add the learning rate of each epoch's last step to the history: `learning_rate`, or with
    several optimisers `<name>_learning_rate` of each."""

    adds: tuple[str, ...] = ("learning_rate",)

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        found = run.optimizer
        self._each = (
            {f"{name}_learning_rate": each for name, each in found.items()}
            if isinstance(found, Optimizers)
            else {"learning_rate": found}
        )
        self.adds = tuple(self._each)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        for name, optimizer in self._each.items():
            rate, last = optimizer.learning_rate, optimizer.iterations - 1
            logs[name] = float(rate(max(last, 0)) if callable(rate) else rate)


class LearningRateScheduler(Callback):
    """Set the learning rate at the beginning of each epoch to `schedule(epoch, rate)`, given the
    rate so far. For a rate that changes from step to step give the optimiser a schedule instead.

    optimizer: the name of one, where `fit` has several. Raises ValueError where it has a schedule.
    """

    def __init__(
        self, schedule: Callable[[int, float], float], optimizer: str | None = None
    ) -> None:
        self.schedule = schedule
        self.optimizer = optimizer

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        require_number(self)

    def on_epoch_begin(self, epoch: int) -> None:
        if self.run.batch == 0:  # else the run was resumed within the epoch, whose rate is set
            optimizer = optimizer_of(self)
            optimizer.learning_rate = float(self.schedule(epoch, optimizer.rate))


def require_number(callback: Callback) -> None:
    """ValueError where the optimiser's rate is a schedule, which the callback cannot change."""
    rate = optimizer_of(callback).learning_rate
    if callable(rate):
        raise ValueError(
            f"{type(callback).__name__}: the optimiser's learning rate is a schedule, {rate!r}; "
            "give the optimiser a number, or leave the callback out"
        )


def optimizer_of(callback: Callback) -> Optimizer:
    """That of the training, or of several the one that the callback's `optimizer` names.

    Raises ValueError where it names none of several, or one of one.
    """
    found, name = callback.run.optimizer, getattr(callback, "optimizer", None)
    kind = type(callback).__name__
    if not isinstance(found, Optimizers):
        if name is not None:
            raise ValueError(f"{kind}: optimizer: fit has one optimiser only, and no {name!r}")
        return found
    if name is None or name not in found:
        raise ValueError(
            f"{kind}: optimizer: expected the name of one of {', '.join(found)}, got {name!r}"
        )
    return found[name]
