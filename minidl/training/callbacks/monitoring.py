"""Callbacks that watch a number: keep, save or restore the best, stop, lower the learning rate."""

from __future__ import annotations

import math
import os
import string
from typing import TYPE_CHECKING, Any

import numpy as np

from minidl import serialization
from minidl.training.callbacks.callback import Callback
from minidl.training.callbacks.rates import optimizer_of, require_number

if TYPE_CHECKING:
    from minidl.training.loop import Run

_LESS = ("loss", "error", "perplexity", "entropy", "mse", "mae", "distance")
_MORE = (
    "acc", "accuracy", "auc", "precision", "recall", "f1", "score", "bleu", "iou", "exact_match",
    "rouge", "rouge_1", "rouge_2", "rouge_l", "similarity",
)  # fmt: skip


class Monitor(Callback):
    """Base of callbacks that compare `monitor` with the best so far, at the end of each epoch.

    mode: "min" if less is better, "max" if more, "auto": by the end of the name ("..._loss" is
    better if less, "..._accuracy" if more). min_delta: a smaller change is no improvement. NaN
    never is. Raises ValueError for another mode, and where "auto" does not know the name.
    """

    def __init__(
        self, monitor: str = "val_loss", mode: str = "auto", min_delta: float = 0.0
    ) -> None:
        name = type(self).__name__
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"{name}: mode: expected 'auto', 'min' or 'max', got {mode!r}")
        if mode == "auto":
            ends = {
                way: any(monitor == end or monitor.endswith(f"_{end}") for end in known)
                for way, known in (("min", _LESS), ("max", _MORE))
            }
            if not any(ends.values()):
                raise ValueError(
                    f"{name}: mode: 'auto' does not know which way {monitor!r} is better; give "
                    "'min' or 'max'"
                )
            mode = "min" if ends["min"] else "max"
        self.monitor, self.mode, self.min_delta = monitor, mode, abs(min_delta)
        self.reads = (monitor,)
        self.best = self._worst()

    def _worst(self) -> float:
        return math.inf if self.mode == "min" else -math.inf

    def improves(self, value: float, best: float) -> bool:
        """Whether `value` is better than `best`."""
        if self.mode == "min":
            return value < best - self.min_delta
        return value > best + self.min_delta

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


class ModelCheckpoint(Monitor):
    """Save the model alone at the end of each epoch; with `save_best_only` when `monitor` improves.

    `path` may hold `{epoch}` and names of logs: "model-{epoch:02d}-{val_loss:.3f}.npz". Load with
    `md.load(path, model=model)`. mode: see `Monitor`.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        monitor: str = "val_loss",
        mode: str = "auto",
        save_best_only: bool = False,
    ) -> None:
        super().__init__(monitor, mode)
        self.path = os.fspath(path)
        self.save_best_only = save_best_only
        fields = [name for _, name, _, _ in string.Formatter().parse(self.path) if name]
        self.reads = tuple(name for name in fields if name != "epoch")
        self.reads += (monitor,) if save_best_only else ()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if any(name not in logs for name in self.reads):
            return  # an epoch without validation
        if self.save_best_only:
            if not self.improves(logs[self.monitor], self.best):
                return
            self.best = logs[self.monitor]
        if self.run.saves:
            serialization.save(self.path.format(epoch=epoch + 1, **logs), model=self.run.model)


class BestWeights(Monitor):
    """Give the model, when the training ends, the weights of the epoch in which `monitor` was best.

    They are kept in memory, and in the training's checkpoint. Epochs before `start_from_epoch`
    (the first is 0) do not count. After `fit`: `best`, and `best_epoch`. mode, min_delta: see
    `Monitor`.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: str = "auto",
        min_delta: float = 0.0,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.start_from_epoch = start_from_epoch
        self.restore_best_weights = True
        self._reset()

    def _reset(self) -> None:
        self.best, self.best_epoch = self._worst(), -1
        self.weights: dict[str, Any] = {}

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        self._reset()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if epoch >= self.start_from_epoch and self.monitor in logs:
            self._look(epoch, logs[self.monitor])

    def _look(self, epoch: int, value: float) -> bool:
        """Take in the number of an epoch; whether it is the best."""
        better = self.improves(value, self.best)
        if better:
            self.best, self.best_epoch = value, epoch
        if self.restore_best_weights and (better or not self.weights):
            self.weights = self.run.model.state_dict()
        return better

    def on_train_end(self) -> None:
        if self.weights:
            self.run.model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        names = ("best", "best_epoch", "weights")
        return {name: getattr(self, name) for name in names}


class EarlyStopping(BestWeights):
    """End the training when `monitor` has not improved for `patience` epochs.

    restore_best_weights: see `BestWeights`. baseline: waiting ends only when it too is surpassed.
    After `fit`, `stopped_epoch` is the last epoch, or -1 where nothing was stopped. A run that was
    stopped is not taken up again by `resume`. mode, min_delta: see `Monitor`.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta, start_from_epoch)
        self.patience, self.baseline = patience, baseline
        self.restore_best_weights = restore_best_weights

    def _reset(self) -> None:
        super()._reset()
        self.wait, self.stopped_epoch = 0, -1

    def on_train_begin(self) -> None:
        if self.stopped_epoch >= 0:
            self.run.stop = True

    def _look(self, epoch: int, value: float) -> bool:
        better = super()._look(epoch, value)
        self.wait += 1
        if better and (self.baseline is None or self.improves(value, self.baseline)):
            self.wait = 0
        elif not better and self.wait >= self.patience and epoch > 0:
            self.stopped_epoch, self.run.stop = epoch, True
        return better

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "wait": self.wait, "stopped_epoch": self.stopped_epoch}


class ReduceLROnPlateau(Monitor):
    """Multiply the learning rate by `factor` when `monitor` has not improved for `patience` epochs.

    cooldown: for so many epochs after that, nothing is counted. min_lr: no further down.
    optimizer: the name of one, where `fit` has several. Raises ValueError where it has a schedule,
    and for a factor of 1 or more. mode, min_delta: see `Monitor`.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if not 0 < factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor: expected between 0 and 1, got {factor}")
        self.factor, self.patience, self.cooldown, self.min_lr = factor, patience, cooldown, min_lr
        self.optimizer = optimizer

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        require_number(self)
        self.best, self.wait, self.resting = self._worst(), 0, 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        if self.monitor not in logs:
            return
        rests = self.resting > 0
        self.resting -= rests
        if self.improves(logs[self.monitor], self.best):
            self.best, self.wait = logs[self.monitor], 0
        elif not rests:
            self.wait += 1
            if self.wait >= self.patience:
                optimizer = optimizer_of(self)
                rate = optimizer.rate
                optimizer.learning_rate = max(rate * self.factor, min(rate, self.min_lr))
                self.resting, self.wait = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "wait": self.wait, "resting": self.resting}


class TerminateOnNaN(Callback):
    """End the training when a loss ("loss", "..._loss") is NaN or infinite, and save nothing more.

    It looks when the loss is read anyway: every `read_every` steps of `fit`, and after each epoch.
    Since that is the mean of the epoch so far, no step between goes unseen. Before anything is
    saved it looks at the weights, so that what was saved before they were spoilt stays.
    """

    ended = False

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        self.ended = False

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        for name, value in logs.items():
            is_loss = name == "loss" or (name.endswith("_loss") and not name.startswith("val_"))
            if is_loss and not math.isfinite(value) and not self.ended:
                self.ended = self.run.stop = True
                what = "the loss" if name == "loss" else name
                print(f"step {self.run.step}: {what} is {value}; the training ends")

    def lets_save(self) -> bool:
        weights = self.run.model.parameters()
        return not self.ended and all(np.isfinite(p.numpy()).all() for p in weights)

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.on_train_batch_end(self.run.batch, logs)
