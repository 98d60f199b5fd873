"""Callbacks that write files: the whole training, and its figures."""

from __future__ import annotations

import os
from pathlib import Path

from minidl.training.callbacks.callback import Callback
from minidl.training.history import History


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


class CSVLogger(Callback):
    """Write the history to `filename` after each epoch: a row an epoch, also of those before a
    resume. Raises ValueError for another ending than .csv."""

    SUFFIX = ".csv"

    def __init__(self, filename: str | os.PathLike) -> None:
        if Path(filename).suffix != self.SUFFIX:
            raise ValueError(
                f"{type(self).__name__}: filename: expected one in {self.SUFFIX}, got {filename}"
            )
        self.filename = filename

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        history = History()  # the run's own gets this epoch's row when all callbacks have seen it
        history.load_state_dict(self.run.history.state_dict())
        history.append(epoch, logs)
        history.save(self.filename)


class JSONLogger(CSVLogger):
    """Write the history to `filename` after each epoch: a list a column. Raises ValueError for
    another ending than .json."""

    SUFFIX = ".json"
