"""What the examples share: options, a folder, training that can be resumed, and the figures left.

An example is an `Experiment` whose `work` loads, trains, measures and draws.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import minidl as md
from minidl.errors import SerializationError


def parser(name: str, description: str | None, epochs: int) -> argparse.ArgumentParser:
    """The options that every example has; `epochs` is what stands in the help."""
    parser = argparse.ArgumentParser(f"python -m examples {name}", description=description)
    add = parser.add_argument
    add("--epochs", type=natural, help=f"passes over the training split (default: {epochs})")
    add("--quick", action="store_true", help="little data and one epoch: does it all work?")
    add("--seed", type=_seed, default=0, help="of initial weights, order and dropout (default: 0)")
    add("--device", default="cpu", help="cpu, gpu, gpu:N, or strict: NumPy with CuPy's manners")
    add(
        "--out",
        type=Path,
        help=f"folder for what is written (default: runs/{name}; {name}-quick with --quick)",
    )
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    parser.set_defaults(example=name)
    return parser


def natural(text: str) -> int:
    """An option's integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an integer of at least 0, got {text!r}")
    return int(text)


class Interrupted(Exception):
    """Ctrl-C ended a training, which is saved."""


class Experiment:
    """One run of an example. Subclasses write `work()`, and `EPOCHS`, the usual number of them."""

    EPOCHS = 1

    def __init__(self, options: argparse.Namespace) -> None:
        if options.epochs is None:
            options.epochs = 1 if options.quick else self.EPOCHS
        if options.out is None:  # a quick look must not write over a run
            options.out = Path("runs", options.example + ("-quick" if options.quick else ""))
        with md.device(options.device):
            pass  # an unknown one is told before the data are read
        self.options = options
        self.out: Path = options.out
        self.histories: dict[str, md.History] = {}
        self.seconds: dict[str, float] = {}

    def work(self) -> None:
        """Load, train with `self.fit`, measure, draw, `self.write`."""
        raise NotImplementedError(f"{type(self).__name__}: write work(self)")

    def run(self) -> int:
        """Do the work in the folder and on the device of the options; the process's exit status."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SerializationError(
                f"--out: cannot make the folder {self.out} ({error.strerror}); give another one"
            ) from error
        if self.options.resume and not any(self.out.glob(self.checkpoint("*").name)):
            raise SerializationError(
                f"--resume: expected a checkpoint in {self.out}, found none; leave --resume out"
            )
        with md.device(self.options.device), md.threads(min(2, os.cpu_count() or 1)):
            try:
                self.work()
            except Interrupted:
                print(f"interrupted; saved in {self.out}: the same command with --resume goes on")
                return 130
        return 0

    def checkpoint(self, name: str) -> Path:
        """The file from which the training `name` can go on."""
        return self.out / f"{name}.checkpoint.npz"

    def fit(
        self,
        name: str,
        model: md.layers.Layer,
        loss: Callable | None,
        optimizer: md.optimizers.Optimizer,
        batches: Iterable,
        callbacks: Sequence[md.callbacks.Callback] = (),
        settings: dict[str, Any] | None = None,
        epochs: int | None = None,
        **options: Any,
    ) -> md.History:
        """`md.fit` with a checkpoint, from which `--resume` goes on.

        settings: what else the checkpoint of a run must agree in, fit for JSON: data, size, ...
        epochs: where they are not those of the options.
        Raises Interrupted after Ctrl-C, once everything is saved.
        """
        size = sum(parameter.size for parameter in model.parameters())
        print(f"\n{type(model).__name__}, {name}: {size:,} parameters")
        path = self.checkpoint(name)
        common = {key: getattr(self.options, key) for key in ("seed", "epochs", "quick")}
        start = time.perf_counter()
        history = md.fit(
            model,
            loss,
            optimizer,
            batches,
            epochs=epochs or self.options.epochs,
            callbacks=[
                *callbacks,
                SameSettings(common | (settings or {})),
                md.callbacks.Checkpoint(path),
            ],
            resume=path if self.options.resume and path.is_file() else None,
            **options,
        )
        self.histories[name] = history
        self.seconds[name] = time.perf_counter() - start
        if history.interrupted:
            raise Interrupted
        return history

    def write(self, **results: Any) -> None:
        """Leave the options, `results`, and how the training went, in results.json."""
        options = {k: v for k, v in vars(self.options).items() if k != "out"}
        contents = {
            "options": options,
            **results,
            "history": {name: history.history for name, history in self.histories.items()},
            "seconds": {name: round(value, 1) for name, value in self.seconds.items()},
            "versions": {"minidl": md.__version__, "numpy": np.__version__},
        }
        text = json.dumps(_without_nan(contents), indent=1, ensure_ascii=False)
        (self.out / "results.json").write_text(text + "\n", encoding="utf-8")
        print(f"figures in {self.out / 'results.json'}, weights beside them")


@dataclass
class SameSettings(md.callbacks.Callback):
    """Refuses to go on from the checkpoint of a run with other settings."""

    settings: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        return self.settings

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state != self.settings:
            names = [name for name in self.settings if state.get(name) != self.settings[name]]
            was = ", ".join(f"{name} {state.get(name)!r}" for name in names)
            now = ", ".join(f"{name} {self.settings[name]!r}" for name in names)
            raise SerializationError(
                f"--resume: the checkpoint is of a run with {was}, this one has {now}; give the "
                "same options, or another --out"
            )


def fingerprint(texts: Iterable[str]) -> str:
    """Tells training texts from others, also from a file of the same name."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _without_nan(value: Any) -> Any:
    """JSON has no NaN, and no paths."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not np.isfinite(value) else value
