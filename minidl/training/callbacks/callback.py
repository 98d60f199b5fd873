"""The base of callbacks, and the simplest two."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minidl.training.loop import Run


class Callback:
    """Base of callbacks. `self.run` is the training under way: its model, optimizer, history, step.

    `logs` holds the numbers known by then: at the end of an epoch all of them, after a step those
    of the last reading, which `fit` makes every `read_every` steps. Set `self.run.stop = True` to
    end the training after the step. Numbers that must survive a resume go through `state_dict` and
    `load_state_dict`.

    adds: the names that `on_epoch_end` puts into `logs`; who has some is called before who has not.
    reads: the names that it needs there; `fit` refuses to begin where nobody gives them.
    """

    run: Run
    adds: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()

    def set_run(self, run: Run) -> None:
        """Called by `fit` before anything else, also before a resumed state is loaded."""
        self.run = run

    def on_train_begin(self) -> None: ...
    def on_train_end(self) -> None: ...
    def on_epoch_begin(self, epoch: int) -> None: ...
    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None: ...
    def on_train_batch_begin(self, batch: int) -> None: ...
    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None: ...
    def on_interrupt(self) -> None: ...

    def measuring(self) -> AbstractContextManager:
        """What holds while an epoch is measured: around validation and every `on_epoch_end`."""
        return nullcontext()

    def lets_save(self) -> bool:
        """Asked before a file is written: False leaves it as it is."""
        return True

    def state_dict(self) -> dict[str, Any]:
        """What the callback must remember over a resume; JSON values and arrays."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class LambdaCallback(Callback):
    """Call functions at the events of their names: `LambdaCallback(on_epoch_end=f)` calls
    `f(epoch, logs)` after each epoch. Raises TypeError for a name that is no event."""

    EVENTS = (
        "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end",
        "on_train_batch_begin", "on_train_batch_end", "on_interrupt",
    )  # fmt: skip

    def __init__(self, **functions: Callable) -> None:
        for name, function in functions.items():
            if name not in self.EVENTS:
                raise TypeError(f"LambdaCallback: {name}: expected one of {', '.join(self.EVENTS)}")
            setattr(self, name, function)


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
