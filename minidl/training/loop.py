"""The training loop: forward, backward, step, and callbacks between."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import islice
from typing import Any

import numpy as np

from minidl import autodiff, backend, random, serialization
from minidl.errors import SerializationError
from minidl.graph import Parameter, Tensor, tensor
from minidl.layers.dense import Dense
from minidl.layers.layer import Layer
from minidl.optimizers import Optimizer, Optimizers
from minidl.training.callbacks import Callback, ProgressBar
from minidl.training.history import History
from minidl.training.objective import Objective, place
from minidl.training.own_steps import OwnStep, steps


def fit(
    model: Layer,
    loss: Any,
    optimizer: Optimizer | Mapping[str, Optimizer],
    train: Iterable,
    validation: Iterable | None = None,
    epochs: int = 1,
    callbacks: Sequence[Callback] | Callback = (),
    metrics: Any = (),
    *,
    loss_weights: Any = None,
    accumulate: int = 1,
    validation_freq: int = 1,
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
    scalar, to which the losses that layers added are added. None: these alone. What it says it is
    the mean over, `loss.count(targets, output[, mask])`, weighs the batch in means over batches;
    the number of items where it says nothing.
    metrics: objects or functions called like the loss.
    Several outputs: `loss` is a dict, or a list, with a function or None for each output of the
    model, which gets the targets (and the mask, if there are several) of that name or place; its
    mean is called "<name>_loss", or "output_0_loss". `metrics` may be a dict or list to match,
    and `loss_weights` numbers to match: the loss is the weighted sum.
    optimizer: one, or several by name in a dict, each for parameters of its own.
    Steps of the model's own: where the model has a method `train_step(batch, optimizer)` it makes
    each step itself and returns a dict of scalars, whose names the model declares in `train_names`
    and whose means become the epoch's numbers; where it has `test_step(batch)` (`test_names`) that
    measures it. loss and metrics are for what is left of the two, or None and ().
    accumulate: make a step of the optimiser once in so many batches, and at the epoch's end, with
    the gradient of them all as if they were one (for losses that are means).
    validation_freq: validate after every so many epochs, and the last.
    resume: a file that `callbacks.Checkpoint` wrote: go on from there, bit for bit.
    read_every: read the loss, which waits for the device, once in so many batches and an epoch.
    threads: run inside `md.threads` of this many (None: two, or one on a machine with one core);
    where all parameters are those of Dense layers, BLAS divides the matrix products.
    allocator: call `md.tune_allocator()`, which concerns the whole process and cannot be undone.
    verbose: show progress, unless `callbacks` has a ProgressBar.

    The model is left in training mode: `model.eval()` before it is used.

    Ctrl-C ends the training after the batch (or the validation) under way: callbacks get
    `on_interrupt`, a Checkpoint saves, and the history comes back with `interrupted` set. A second
    Ctrl-C stops at once.
    """
    if isinstance(callbacks, Callback):
        callbacks = [callbacks]
    if verbose and not any(isinstance(callback, ProgressBar) for callback in callbacks):
        callbacks = [*callbacks, ProgressBar()]
    objective, validator = steps(model, loss, metrics, loss_weights, validation is not None)
    run = Run(
        model, objective, optimizer, train, validation, epochs, callbacks,
        accumulate, validation_freq, read_every, validator,
    )  # fmt: skip
    if resume is not None:
        run.load(resume)
    if allocator:
        backend.tune_allocator()
    with threads_for(model, threads), run.interruptible():
        return run.go()


def threads_for(model: Layer, count: int | None = None) -> AbstractContextManager[None]:
    """`md.threads` as `fit` sets it. All that a network of dense layers alone has to divide is
    matrix products, which BLAS does at less cost."""
    count = min(2, os.cpu_count() or 1) if count is None else count
    owners = {
        type(layer)
        for _, layer in model.walk()
        if layer._waits() or any(isinstance(member, Parameter) for _, member in layer.members())
    }
    return backend.threads(count, blas=count if owners == {Dense} else None)


def evaluate(
    model: Layer, loss: Any, data: Iterable, metrics: Any = (), loss_weights: Any = None
) -> dict[str, float]:
    """The loss and the metrics of `model` on `data`, in evaluation mode and unrecorded.

    The arguments are those of `fit`. Layers get their modes back. Raises ValueError where `data`
    gives no batch.
    """
    return _measure(steps(model, loss, metrics, loss_weights, True)[1], model, data)


def _measure(objective: Objective | OwnStep, model: Layer, data: Iterable) -> dict[str, float]:
    objective.reset_state()
    device, dtype = model.device, model.dtype
    batch = None
    with evaluating(model):
        for batch in data:
            batch = place(batch, device, dtype)
            objective.measure(model, batch)
    if batch is None:
        raise ValueError(f"evaluate: data or validation: expected batches, got none; {_NO_BATCHES}")
    return objective.results()


@contextmanager
def evaluating(model: Layer) -> Iterator[None]:
    """Evaluation mode, and nothing recorded, inside; each layer gets its own mode back."""
    modes = [(layer, layer.training) for _, layer in model.walk()]
    model.eval()
    try:
        with autodiff.no_grad():
            yield
    finally:
        for layer, mode in modes:
            layer.training = mode


_NO_BATCHES = (
    "give a list or md.data.Batches with an item at least (with drop_last, batch_size items): a "
    "generator can be iterated once only"
)

# What `Run.save` writes, all of which `Run.load` needs.
_PARTS = (
    "model", "optimizer", "random", "data", "held_out", "history", "callbacks", "objective",
    "place", "gathered", "logs",
)  # fmt: skip


class Run:
    """A training under way: what `fit` was given, and how far it has come.

    epoch, batch and step count what is finished: epochs, batches within the epoch, batches over all
    epochs. (The optimiser's own `iterations` are fewer where gradients are accumulated.)
    """

    def __init__(
        self,
        model: Layer,
        objective: Objective | OwnStep,
        optimizer: Optimizer | Mapping[str, Optimizer],
        train: Iterable,
        validation: Iterable | None = None,
        epochs: int = 1,
        callbacks: Sequence[Callback] = (),
        accumulate: int = 1,
        validation_freq: int = 1,
        read_every: int = 50,
        validator: Objective | OwnStep | None = None,
    ) -> None:
        if isinstance(optimizer, Mapping):
            optimizer = Optimizers(optimizer)
        self.model, self.objective, self.optimizer = model, objective, optimizer
        self.validator = validator or objective
        self.train, self.validation, self.epochs = train, validation, epochs
        self.callbacks = list(callbacks)
        self.accumulate, self.read_every = accumulate, read_every
        self.validation_freq = validation_freq
        self.history = History()
        self.epoch = self.batch = self.step = 0
        self.stop = False
        self.logs: dict[str, float] = {}  # the last reading
        self._gathered, self._weight = 0, 0  # batches whose gradients wait, and their weight
        self._batches: Any = None  # the iteration of `train` under way
        self._save_to: list[str | os.PathLike] = []
        self._check()
        for callback in self.callbacks:
            callback.set_run(self)
        self._check_reads()

    def _check(self) -> None:
        """TypeError and ValueError for what cannot be trained with."""
        if not hasattr(self.optimizer, "zero_grad"):
            raise TypeError(
                "fit: optimizer: expected one such as md.optimizers.Adam(model), got "
                f"{self.optimizer!r}"
            )
        for callback in self.callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(
                    "fit: callbacks: expected a list of callbacks such as "
                    f"md.callbacks.EarlyStopping(), got {callback!r} in it"
                )
        own = set() if self.model.unbuilt() else {id(p) for p in self.model.parameters()}
        if own and own.isdisjoint(map(id, self.optimizer.parameters)):
            raise ValueError(
                "fit: optimizer: none of its parameters is the model's, which would stay as it is; "
                "make it of this model, e.g. md.optimizers.Adam(model)"
            )
        for name in ("accumulate", "validation_freq", "read_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"fit: {name}: expected 1 or more, got {getattr(self, name)}")
        if self.accumulate > 1 and isinstance(self.objective, OwnStep):
            raise ValueError(
                f"fit: accumulate: {type(self.model).__name__} makes its own steps; let its "
                "train_step accumulate"
            )
        self._numbers()

    def _check_reads(self) -> None:
        """ValueError for a callback that reads what nobody measures."""
        known = self.names
        for callback in self.callbacks:
            if missing := [name for name in callback.reads if name not in known]:
                raise ValueError(
                    f"{type(callback).__name__}: {missing[0]!r} is not measured, only "
                    f"{', '.join(known)}; give fit a validation or a metric, or, where a callback "
                    "adds it, name it in that one's `adds`"
                )

    def _numbers(self) -> dict[str, float]:
        """What has been measured so far. TypeError for a metric whose result is an array."""
        found = self.objective.results()
        for name, value in found.items():
            if shape := np.shape(value):
                raise TypeError(
                    f"fit: metrics: {name}: expected a metric whose result is a number, got one of "
                    f"shape {shape}; measure it with md.evaluate, or average it"
                )
        return found

    @property
    def names(self) -> list[str]:
        """The numbers that `on_epoch_end` will find in `logs`, as far as is declared."""
        own, other = self.objective.names, self.validator.names
        held_out = [f"val_{name}" for name in other] if self.validation is not None else []
        return [*own, *held_out, *(name for c in self.callbacks for name in c.adds)]

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
            self.objective.reset_state()
        self._call("on_epoch_begin", self.epoch)
        self._device, self._dtype = self.model.device, self.model.dtype
        batches: Iterator = iter(self.train)
        self._batches = batches
        if self.batch and not hasattr(self.train, "load_state_dict"):
            batches = islice(batches, self.batch, None)  # what keeps no place is begun anew
        for batch in batches:
            self._call("on_train_batch_begin", self.batch)
            self._train_step(batch)
            self.batch += 1
            self.step += 1
            if self.step % self.read_every == 0:
                self.logs = self._numbers()  # waits for the device
            self._call("on_train_batch_end", self.batch - 1, self.logs)
            if self.stop:
                break
            self._save_now()
        else:
            if self.batch == 0:
                raise ValueError(
                    f"fit: train: expected batches, got none in epoch {self.epoch + 1}; "
                    f"{_NO_BATCHES}"
                )
            self._end_epoch()
        self._save_now()

    def _train_step(self, batch: Any) -> None:
        batch = place(batch, self._device, self._dtype)
        if isinstance(self.objective, OwnStep):
            self.objective.run(batch, self.optimizer)
            return
        if self._gathered == 0:
            self.optimizer.zero_grad()
        total, values, output = self.objective.forward(self.model, batch)
        if self.accumulate == 1:
            total.backward()
            self.optimizer.step()
        else:
            self._gather(total, self.objective.weight(batch, output))
        with autodiff.no_grad():
            self.objective.update(batch, values, output)

    def _gather(self, total: Tensor, weight: Any) -> None:
        """Add a batch's gradients, as many times as it has items, to those that wait."""
        if isinstance(weight, np.generic):
            weight = weight.item()  # as it comes back from a file
        factor = weight.astype(total.dtype) if backend.is_array(weight) else weight
        (total * factor).backward()
        self._weight = self._weight + weight
        self._gathered += 1
        if self._gathered == self.accumulate:
            self._step_gathered()

    def _step_gathered(self) -> None:
        """Make a step with the mean of the gradients that wait."""
        weight = self._weight
        if backend.is_array(weight):
            weight = backend.namespace(weight).where(weight > 0, weight, 1)
        self.optimizer.step(1.0 / (weight if backend.is_array(weight) else weight or 1))
        self._gathered, self._weight = 0, 0

    def _end_epoch(self) -> None:
        if self._gathered:
            self._step_gathered()
        logs = self._numbers()
        with ExitStack() as stack:
            for callback in self.callbacks:
                stack.enter_context(callback.measuring())
            last = self.epoch + 1 == self.epochs
            if self.validation is not None and (
                last or (self.epoch + 1) % self.validation_freq == 0
            ):
                # Its own means: the metrics' must not lose what training has gathered.
                before = self.validator.state_dict()
                measured = _measure(self.validator, self.model, self.validation)
                self.validator.load_state_dict(before)
                logs |= {f"val_{name}": value for name, value in measured.items()}
            for callback in sorted(self.callbacks, key=lambda c: not c.adds):
                callback.on_epoch_end(self.epoch, logs)
        self.history.append(self.epoch, logs)
        self.epoch, self.batch = self.epoch + 1, 0
        self.logs = {}

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
        if self._save_to and self.saves:
            for path in self._save_to:
                self.save(path)
        self._save_to = []

    @property
    def saves(self) -> bool:
        """Whether all callbacks let files be written."""
        return all(callback.lets_save() for callback in self.callbacks)

    def save(self, path: str | os.PathLike) -> None:
        """Write everything that the next steps depend on; in `on_epoch_end` use `save_soon`."""
        data = _state(self._batches) or _state(self.train)
        waiting = self.optimizer.parameters if self._gathered else []
        serialization.save(
            path,
            model=self.model,
            optimizer=self.optimizer,
            random=random.generator(),
            data=data,
            held_out=_state(self.validation),
            history=self.history,
            callbacks={name: c.state_dict() for name, c in self._lasting().items()},
            objective=self.objective,
            place={"epoch": self.epoch, "batch": self.batch, "step": self.step},
            gathered={
                "batches": self._gathered,
                "weight": float(self._weight),
                "gradients": {str(i): p.grad for i, p in enumerate(waiting) if p.grad is not None},
            },
            logs=self.logs,
        )

    def load(self, path: str | os.PathLike) -> None:
        """Go on from what `save` wrote, with the same model, data, callbacks and metrics."""
        name, state = os.fspath(path), serialization.load(path)
        if missing := [part for part in _PARTS if part not in state]:
            raise SerializationError(
                f"resume: {name} holds no {', '.join(missing)}; give a file of callbacks.Checkpoint"
            )
        lasting = self._lasting()
        if set(state["callbacks"]) != set(lasting):
            raise SerializationError(
                f"resume: {name} was saved with other callbacks: "
                f"{', '.join(state['callbacks']) or 'none'}; "
                f"these are {', '.join(lasting) or 'none'}"
            )
        if (state["data"] is None) == hasattr(self.train, "load_state_dict"):
            raise SerializationError(f"resume: {name} was saved with another kind of train")
        for key, callback in lasting.items():
            callback.load_state_dict(state["callbacks"][key])  # first: it can refuse the whole
        self.objective.load_state_dict(state["objective"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if hasattr(self.train, "load_state_dict"):
            self.train.load_state_dict(state["data"])
        held_out: Any = self.validation
        if hasattr(held_out, "load_state_dict") and state["held_out"] is not None:
            held_out.load_state_dict(state["held_out"])  # the order decides how sums round
        random.generator().set_state(state["random"])
        self.history.load_state_dict(state["history"])
        self.epoch, self.batch, self.step = (state["place"][k] for k in ("epoch", "batch", "step"))
        self._load_gathered(state["gathered"])
        self.logs = state["logs"]

    def _load_gathered(self, state: dict[str, Any]) -> None:
        self._gathered, self._weight = state["batches"], state["weight"]
        for i, gradient in state["gradients"].items():
            p = self.optimizer.parameters[int(i)]
            p.grad = tensor(gradient, device=p.device)

    def _lasting(self) -> dict[str, Callback]:
        """The callbacks that remember something, by name, by what they monitor and by the name of
        their optimiser; those alike in all by their order."""
        found: dict[str, Callback] = {}
        seen: Counter[str] = Counter()
        for callback in self.callbacks:
            if type(callback).state_dict is not Callback.state_dict:
                name = type(callback).__name__
                if monitor := getattr(callback, "monitor", None):
                    name = f"{name}({monitor})"
                if isinstance(optimizer := getattr(callback, "optimizer", None), str):
                    name = f"{name} of {optimizer}"
                seen[name] += 1
                found[f"{name} {seen[name]}" if seen[name] > 1 else name] = callback
        return found


def _state(data: Any) -> Any:
    return data.state_dict() if hasattr(data, "state_dict") else None
