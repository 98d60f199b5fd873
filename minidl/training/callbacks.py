"""Callbacks: what happens beside the steps of a training."""

from __future__ import annotations

import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from minidl import serialization

if TYPE_CHECKING:
    from minidl.training.loop import Run

__all__ = ["Callback", "Checkpoint", "LearningRateLog", "ModelCheckpoint", "ProgressBar"]


class Callback:
    """Base of callbacks. `self.run` is the training under way: its model, optimizer, history, step.

    `logs` holds the numbers known by then: at the end of an epoch all of them, after a step those
    of the last reading, which `fit` makes every `read_every` steps. Set `self.run.stop = True` to
    end the training after the step. Numbers that must survive a resume go through `state_dict` and
    `load_state_dict`.
    """

    run: Run

    def on_train_begin(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_epoch_begin(self, epoch: int) -> None: ...
    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None: ...
    def on_train_batch_begin(self, batch: int) -> None: ...
    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None: ...
    def on_interrupt(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What the callback must remember over a resume; JSON values and arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class ProgressBar(Callback):
    """A line an epoch, and until then a bar where tqdm is installed and a terminal looks on."""

    def __init__(self, file: Any = None) -> None:
        self.file = file or sys.stdout
        self._bar: Any = None

    def on_epoch_begin(self, epoch: int) -> None:
        self._start = time.perf_counter()
        self._bar = None
        if not (hasattr(self.file, "isatty") and self.file.isatty()):
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        title = f"epoch {epoch + 1}/{self.run.epochs}"
        self._bar = tqdm(
            total=self.run.batches, initial=self.run.batch, desc=title, leave=False, file=self.file
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if self._bar is not None:
            self._bar.update()
            if logs:
                self._bar.set_postfix_str(_line(logs), refresh=False)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._close()
        seconds = time.perf_counter() - self._start
        title = f"epoch {epoch + 1}/{self.run.epochs}"
        print(f"{title}  {_line(logs)}  {seconds:.1f} s", file=self.file, flush=True)

    def on_train_end(self) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _line(logs: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in logs.items())


class Checkpoint(Callback):
    """Save the whole training to `path`, so that `fit(..., resume=path)` goes on bit for bit.

    Saved at the end of every `every_epochs`th epoch, after every `every_steps`th step if given, and
    when Ctrl-C ends the training.
    """

    def __init__(
        self, path: str | os.PathLike, every_epochs: int = 1, every_steps: int | None = None
    ) -> None:
        self.path = path
        self.every_epochs = every_epochs
        self.every_steps = every_steps

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if self.every_steps and self.run.step % self.every_steps == 0:
            self.run.save_soon(self.path)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if (epoch + 1) % self.every_epochs == 0:
            self.run.save_soon(self.path)

    def on_interrupt(self) -> None:
        self.run.save_soon(self.path)


class ModelCheckpoint(Callback):
    """Save the model alone at the end of each epoch; with `save_best_only` when `monitor` improves.

    `path` may hold `{epoch}` and names of logs: "model-{epoch:02d}-{val_loss:.3f}.npz". mode: "min"
    if less is better, "max" if more. Load with `md.load(path, model=model)`. Raises KeyError where
    `monitor` is not measured.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        monitor: str = "val_loss",
        mode: str = "min",
        save_best_only: bool = False,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"ModelCheckpoint: mode: expected 'min' or 'max', got {mode!r}")
        self.path = os.fspath(path)
        self.monitor = monitor
        self.mode = mode
        self.save_best_only = save_best_only
        self.best = math.inf if mode == "min" else -math.inf

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self.save_best_only:
            if self.monitor not in logs:
                raise KeyError(
                    f"ModelCheckpoint: {self.monitor!r} is not measured, only {', '.join(logs)}"
                )
            value = logs[self.monitor]
            if not (value < self.best if self.mode == "min" else value > self.best):
                return
            self.best = value
        serialization.save(self.path.format(epoch=epoch + 1, **logs), model=self.run.model)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]


class LearningRateLog(Callback):
    """Add the learning rate of each epoch's last step to the history."""

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        rate = self.run.optimizer.learning_rate
        last = self.run.optimizer.iterations - 1
        logs["learning_rate"] = float(rate(last) if callable(rate) else rate)
