"""The training loop: forward, backward, step, and callbacks between."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np

from minidl import autodiff, backend, random, serialization
from minidl.data import Batch
from minidl.errors import SerializationError, ShapeError
from minidl.graph import Tensor, wrap
from minidl.layers.layer import Layer
from minidl.optimizers import Optimizer
from minidl.training.callbacks import Callback, ProgressBar
from minidl.training.history import History
from minidl.training.metrics import Mean, Metric, as_metric, items


def fit(
    model: Layer,
    loss: Callable | None,
    optimizer: Optimizer,
    train: Iterable,
    validation: Iterable | None = None,
    epochs: int = 1,
    callbacks: Sequence[Callback] = (),
    metrics: Sequence[Metric | Callable] = (),
    *,
    resume: str | os.PathLike | None = None,
    read_every: int = 50,
    threads: int | None = None,
    allocator: bool = True,
    verbose: bool = True,
) -> History:
    """Train `model` for `epochs` passes over `train`; returns what was measured.

    train, validation: iterables, anew each epoch, of `(inputs, targets)` or `(inputs, targets,
    mask)`, as `md.data.Batches` gives them. Where inputs is a tuple the model gets its items as
    arguments. NumPy arrays are moved to the model's device, floats cast to its dtype.
    loss: called as `loss(targets, output)`, or with a mask `loss(targets, output, mask)`; returns a
    scalar, to which the losses that layers added are added. None: these alone.
    metrics: objects or functions called like the loss.
    resume: a file that `callbacks.Checkpoint` wrote: go on from there, bit for bit.
    read_every: read the loss, which waits for the device, once in so many steps and an epoch.
    threads: run inside `md.threads` of this many (None: two, or one on a machine with one core).
    allocator: call `md.tune_allocator()`, which concerns the whole process and cannot be undone.
    verbose: show progress, unless `callbacks` has a ProgressBar.

    The model is left in training mode: `model.eval()` before it is used.

    Ctrl-C ends the training after the step (or the validation) under way: callbacks get
    `on_interrupt`, a Checkpoint saves, and the history comes back with `interrupted` set. A second
    Ctrl-C stops at once.
    """
    if verbose and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks = [*callbacks, ProgressBar()]
    run = Run(model, loss, optimizer, train, validation, epochs, callbacks, metrics, read_every)
    if resume is not None:
        run.load(resume)
    if allocator:
        backend.tune_allocator()
    with backend.threads(threads or min(2, os.cpu_count() or 1)), run.interruptible():
        return run.go()


def evaluate(
    model: Layer, loss: Callable | None, data: Iterable, metrics: Sequence[Metric | Callable] = ()
) -> dict[str, float]:
    """The loss and the metrics of `model` on `data`, in evaluation mode and unrecorded.

    A batch counts by its items, or by the positions that its mask keeps. Layers get their modes
    back.
    """
    measures = [as_metric(metric) for metric in metrics]
    for measure in measures:
        measure.reset_state()
    mean = Mean(name="loss")
    modes = [(layer, layer.training) for _, layer in model.walk()]
    device, dtype = model.device, model.dtype
    model.eval()
    try:
        with autodiff.no_grad():
            for batch in data:
                batch = place(batch, device, dtype)
                value, output = forward(model, loss, batch)
                _add(mean, value, batch)
                for measure in measures:
                    measure.update_state(batch.targets, output, batch.mask)
    finally:
        for layer, mode in modes:
            layer.training = mode
    return {"loss": mean.result(), **{m.name: m.result() for m in measures}}


def forward(model: Layer, loss: Callable | None, batch: Batch) -> tuple[Tensor, Any]:
    """The loss of a batch, with what layers added, and the model's output."""
    inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
    model.losses()  # forgets what calls outside of training have added
    output = model(*inputs)
    mask = () if batch.mask is None else (batch.mask,)
    terms = [] if loss is None else [loss(batch.targets, output, *mask)]
    terms += model.losses()
    if not terms:
        raise ValueError("fit: loss: got None, and no layer added a loss; give a loss function")
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    if not isinstance(total, Tensor):
        raise TypeError(
            f"fit: loss: expected a Tensor, got {type(total).__name__}, which has no gradient; "
            "compute it with minidl's ops"
        )
    if np.shape(total) != ():
        raise ShapeError(f"fit: loss: expected a scalar, got {np.shape(total)}; take its mean")
    return total, output


def place(batch: Any, device: str, dtype: Any) -> Batch:
    """A batch as Tensors on `device`, floats in `dtype`; Tensors are left as they are."""

    def convert(value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(convert(item) for item in value)
        if not backend.is_array(value):
            return value
        array = value.astype(dtype) if value.dtype.kind == "f" and value.dtype != dtype else value
        return wrap(backend.to_device(array, device), None, None)

    if not isinstance(batch, tuple) or not 2 <= len(batch) <= 3:
        raise ValueError(
            "fit: expected batches (inputs, targets) or (inputs, targets, mask), got "
            f"{type(batch).__name__}; use md.data.Batches"
        )
    return Batch(*(convert(part) for part in batch))


def _add(mean: Mean, value: Tensor, batch: Batch) -> None:
    count = items(batch.inputs) if batch.mask is None else batch.mask.sum()
    mean.add(value, count)


# What `Run.save` writes, all of which `Run.load` needs.
_PARTS = (
    "model", "optimizer", "random", "data", "history", "callbacks", "measures", "place", "logs",
)  # fmt: skip


class Run:
    """A training under way: what `fit` was given, and how far it has come.

    epoch, batch and step count the finished ones: batch within the epoch, step over all epochs.
    """

    def __init__(
        self,
        model: Layer,
        loss: Callable | None,
        optimizer: Optimizer,
        train: Iterable,
        validation: Iterable | None = None,
        epochs: int = 1,
        callbacks: Sequence[Callback] = (),
        metrics: Sequence[Metric | Callable] = (),
        read_every: int = 50,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.train, self.validation, self.epochs = train, validation, epochs
        self.callbacks = list(callbacks)
        self.metrics = [as_metric(metric) for metric in metrics]
        self.read_every = read_every
        self.history = History()
        self.epoch = self.batch = self.step = 0
        self.stop = False
        self.logs: dict[str, float] = {}  # the last reading
        self._mean = Mean(name="loss")
        self._save_to: list[str | os.PathLike] = []
        for callback in self.callbacks:
            callback.run = self
        self._check(metrics)

    def _check(self, metrics: Sequence) -> None:
        """TypeError and ValueError for what cannot be trained with."""
        for name, value, mend in (
            ("loss", self.loss, "md.losses.MeanSquaredError() or any function (targets, output)"),
            *(("metrics", m, "md.metrics or functions of (targets, output)") for m in metrics),
        ):
            if value is not None and not callable(value) and not isinstance(value, Metric):
                raise TypeError(f"fit: {name}: expected {mend}, got {value!r}")
        if not hasattr(self.optimizer, "zero_grad"):
            raise TypeError(
                "fit: optimizer: expected one such as md.optimizers.Adam(model), got "
                f"{self.optimizer!r}"
            )
        names = ["loss", *(metric.name for metric in self.metrics)]
        if len(set(names)) < len(names):
            raise ValueError(
                f"fit: metrics: expected different names, none of them 'loss', got {names[1:]}; "
                "pass name= to one"
            )

    @property
    def batches(self) -> int | None:
        """The number of batches in an epoch, where `train` knows it."""
        return len(self.train) if isinstance(self.train, Sized) else None

    def go(self) -> History:
        """Train until the last epoch, or until `stop` is set."""
        self._call("on_train_begin")
        self.model.train()
        try:
            while self.epoch < self.epochs and not self.stop:
                self._run_epoch()
            if self.history.interrupted:
                self._call("on_interrupt")
                self._save_now()
        finally:
            self._call("on_train_end")
        return self.history

    def _run_epoch(self) -> None:
        if self.batch == 0:
            for measure in (self._mean, *self.metrics):
                measure.reset_state()
        self._call("on_epoch_begin", self.epoch)
        self._device, self._dtype = self.model.device, self.model.dtype
        batches: Iterator = iter(self.train)
        if self.batch and not hasattr(self.train, "load_state_dict"):
            batches = islice(batches, self.batch, None)  # what keeps no place is begun anew
        for batch in batches:
            self._call("on_train_batch_begin", self.batch)
            self._train_step(batch)
            self.batch += 1
            self.step += 1
            if self.step % self.read_every == 0:
                self.logs = self._read()
            self._call("on_train_batch_end", self.batch - 1, self.logs)
            if self.stop:
                break
            self._save_now()
        else:
            if self.batch == 0:
                raise ValueError(
                    f"fit: train: expected batches, got none in epoch {self.epoch + 1}; give a "
                    "list or md.data.Batches: a generator can be iterated once only"
                )
            self._end_epoch()
        self._save_now()

    def _train_step(self, batch: Any) -> None:
        batch = place(batch, self._device, self._dtype)
        self.optimizer.zero_grad()
        value, output = forward(self.model, self.loss, batch)
        value.backward()
        self.optimizer.step()
        with autodiff.no_grad():
            _add(self._mean, value, batch)
            for metric in self.metrics:
                metric.update_state(batch.targets, output, batch.mask)

    def _end_epoch(self) -> None:
        logs = self._read()
        if self.validation is not None:
            # Its own means: the metrics' must not lose what training has gathered.
            before = [metric.state_dict() for metric in self.metrics]
            measured = evaluate(self.model, self.loss, self.validation, self.metrics)
            for metric, state in zip(self.metrics, before, strict=True):
                metric.load_state_dict(state)
            logs |= {f"val_{name}": value for name, value in measured.items()}
        self._call("on_epoch_end", self.epoch, logs)
        self.history.append(self.epoch, logs)
        self.epoch, self.batch = self.epoch + 1, 0
        self.logs = {}

    def _read(self) -> dict[str, float]:
        """Loss and metrics of this epoch so far: waits for the device."""
        return {m.name: m.result() for m in (self._mean, *self.metrics)}

    def _call(self, event: str, *args: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(*args)

    # Ctrl-C

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C sets `stop` inside; a second one raises KeyboardInterrupt."""
        usual = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or usual is None:
            yield
            return

        def interrupt(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, usual)
            self.stop = self.history.interrupted = True

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, usual)

    # Saving and resuming

    def save_soon(self, path: str | os.PathLike) -> None:
        """Save to `path` once all callbacks have seen the event under way."""
        if path not in self._save_to:
            self._save_to.append(path)

    def _save_now(self) -> None:
        for path in self._save_to:
            self.save(path)
        self._save_to = []

    def save(self, path: str | os.PathLike) -> None:
        """Write everything that the next steps depend on."""
        data = self.train.state_dict() if hasattr(self.train, "state_dict") else None
        serialization.save(
            path,
            model=self.model,
            optimizer=self.optimizer,
            random=random.generator(),
            data=data,
            history=self.history,
            callbacks=[callback.state_dict() for callback in self._lasting()],
            measures=[m.state_dict() for m in (self._mean, *self.metrics)],
            place={"epoch": self.epoch, "batch": self.batch, "step": self.step},
            logs=self.logs,
        )

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what `save` wrote, with the same model, data, callbacks and metrics."""
        name, state = os.fspath(path), serialization.load(path)
        if missing := [part for part in _PARTS if part not in state]:
            raise SerializationError(
                f"resume: {name} holds no {', '.join(missing)}; give a file of callbacks.Checkpoint"
            )
        lasting: list[Any] = [*self._lasting()]
        measures: list[Any] = [self._mean, *self.metrics]
        for own, saved, what in (
            (lasting, state["callbacks"], "callbacks"),
            (measures, state["measures"], "metrics"),
        ):
            if len(own) != len(saved):
                raise SerializationError(f"resume: {name} was saved with other {what}")
        if (state["data"] is None) == hasattr(self.train, "load_state_dict"):
            raise SerializationError(f"resume: {name} was saved with another kind of train")
        both = state["callbacks"] + state["measures"]
        for one, values in zip(lasting + measures, both, strict=True):
            one.load_state_dict(values)  # first, so that a callback can refuse the whole
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if hasattr(self.train, "load_state_dict"):
            self.train.load_state_dict(state["data"])
        random.generator().set_state(state["random"])
        self.history.load_state_dict(state["history"])
        self.epoch, self.batch, self.step = (state["place"][k] for k in ("epoch", "batch", "step"))
        self.logs = state["logs"]

    def _lasting(self) -> list[Callback]:
        """The callbacks that remember something."""
        return [c for c in self.callbacks if type(c).state_dict is not Callback.state_dict]
