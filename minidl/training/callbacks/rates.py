"""Callbacks about the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from minidl.training.callbacks.callback import Callback

if TYPE_CHECKING:
    from minidl.training.loop import Run


class LearningRateLog(Callback):
    """Add the learning rate of each epoch's last step to the history."""

    adds = ("learning_rate",)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        rate = self.run.optimizer.learning_rate
        last = self.run.optimizer.iterations - 1
        logs["learning_rate"] = float(rate(last) if callable(rate) else rate)


class LearningRateScheduler(Callback):
    """Set the learning rate at the beginning of each epoch to `schedule(epoch, rate)`, given the
    rate so far. For a rate that changes from step to step give the optimiser a schedule instead.

    Raises ValueError where the optimiser has a schedule.
    """

    def __init__(self, schedule: Callable[[int, float], float]) -> None:
        self.schedule = schedule

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        require_number(self)

    def on_epoch_begin(self, epoch: int) -> None:
        if self.run.batch == 0:  # else the run was resumed within the epoch, whose rate is set
            optimizer = self.run.optimizer
            optimizer.learning_rate = float(self.schedule(epoch, optimizer.rate))


def require_number(callback: Callback) -> None:
    """ValueError where the optimiser's rate is a schedule, which the callback cannot change."""
    rate = callback.run.optimizer.learning_rate
    if callable(rate):
        raise ValueError(
            f"{type(callback).__name__}: the optimiser's learning rate is a schedule, {rate!r}; "
            "give the optimiser a number, or leave the callback out"
        )
