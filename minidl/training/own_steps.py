"""Steps that a model makes or measures itself: `train_step` and `test_step`."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.data import Batch
from minidl.errors import SerializationError, ShapeError
from minidl.layers.layer import Layer
from minidl.training.metrics.base import Mean, items
from minidl.training.objective import Objective


class OwnStep:
    """The numbers that `method` of a model returns for a batch, and what they have come to so far.

    method: "train_step" or "test_step". The model says what they are called: `train_names`, and
    `test_names` for `test_step`, the same where it has none. A batch need not give all of them:
    each is the mean over the batches that gave it, by their items.

    Raises TypeError where the model does not say it.
    """

    def __init__(self, model: Layer, method: str) -> None:
        self.model, self.method = model, method
        names = getattr(model, "train_names", None)
        if method == "test_step":
            names = getattr(model, "test_names", names)
        if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
            attribute = method.replace("step", "names")
            raise TypeError(
                f"fit: {type(model).__name__} has a {method}, but does not say what the numbers "
                f'that it returns are called; give it {attribute} = ("loss",), or what they are'
            )
        self.names = list(names)
        self._means: dict[str, Mean] = {}  # of those that have been given

    def run(self, batch: Batch, *optimizer: Any) -> None:
        """Let the model make its step, and take in what it returns. Waits for nothing."""
        self.model.forget_losses()  # of calls outside of training
        found = getattr(self.model, self.method)(batch, *optimizer)
        self.model.forget_losses()  # those that the model did not ask for keep no graph alive
        who = f"fit: {type(self.model).__name__}.{self.method}"
        if not isinstance(found, dict):
            raise TypeError(
                f"{who}: expected a dict of numbers by name, got {type(found).__name__}"
            )
        for name, value in found.items():
            if name not in self.names:
                raise ValueError(
                    f"{who}: returned {name!r}, which is not among its names: "
                    f"{', '.join(self.names) or 'none'}"
                )
            if shape := np.shape(value):
                raise ShapeError(f"{who}: {name}: expected a scalar, got {shape}; take its mean")
            self._means.setdefault(name, Mean(name=name)).add(value, items(batch.inputs))

    def measure(self, model: Layer, batch: Batch) -> None:
        """As `run`; the model is the one that it was made with."""
        self.run(batch)

    def reset_state(self) -> None:
        """Forget all batches."""
        self._means = {}

    def results(self) -> dict[str, float]:
        """The means of what has been given. Waits for the device."""
        return {n: self._means[n].result() for n in self.names if n in self._means}

    def state_dict(self) -> dict[str, Any]:
        states = {name: mean.state_dict() for name, mean in self._means.items()}
        return {"names": self.names, "means": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises SerializationError for the state of other numbers."""
        if state["names"] != self.names or "means" not in state:
            raise SerializationError(
                f"resume: saved with other numbers: {', '.join(state['names'])}"
                f"{'' if 'means' in state else ', of a loss and metrics'}; these are "
                f"{', '.join(self.names)}, of the model's own step"
            )
        self._means = {name: Mean(name=name) for name in state["means"]}
        for name, mean in self._means.items():
            mean.load_state_dict(state["means"][name])


def steps(
    model: Layer, loss: Any, metrics: Any, weights: Any, validates: bool
) -> tuple[Objective | OwnStep, Objective | OwnStep]:
    """What trains the model and what measures it: its own steps, else the loss and the metrics.

    Raises ValueError for a loss or metrics that neither uses, and where one is missing.
    """
    trains, tests = hasattr(model, "train_step"), hasattr(model, "test_step")
    kind = type(model).__name__
    if trains and (tests or not validates):
        if loss is not None or metrics:
            raise ValueError(
                f"fit: loss, metrics: {kind} has a train_step"
                + (" and a test_step" if tests else "")
                + ", which take none; give None and ()"
            )
        own = OwnStep(model, "train_step")
        return own, OwnStep(model, "test_step") if tests else own
    if trains and loss is None:
        raise ValueError(
            f"fit: validation: {kind} has a train_step, but no test_step to measure it by; write "
            "one, or give a loss"
        )
    objective = Objective(loss, metrics, weights)
    return (
        OwnStep(model, "train_step") if trains else objective,
        OwnStep(model, "test_step") if tests else objective,
    )
