"""What a training minimises and measures: a loss, or one for each output, and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidl import backend
from minidl.data import Batch
from minidl.errors import SerializationError, ShapeError
from minidl.graph import Tensor, unwrap, wrap
from minidl.layers.layer import Layer
from minidl.losses import Loss
from minidl.training.metrics.base import Mean, Metric, as_metric, items

_LOSS = "md.losses.MeanSquaredError() or any function (targets, output)"
_METRICS = "md.metrics or functions of (targets, output)"


@dataclass
class _Part:
    """A loss or a metric of the output `key`, or, where that is None, of all the model gives."""

    name: str
    key: Any
    measure: Any
    weight: float = 1.0

    def arguments(self, batch: Batch, output: Any) -> tuple[Any, ...]:
        """(targets, output) or (targets, output, mask)."""
        targets = None
        if getattr(self.measure, "needs_target", True):
            targets = _of("targets", batch.targets, self.key)
            if targets is None and isinstance(self.measure, Loss):
                raise ValueError(
                    f"fit: {self.name}: {type(self.measure).__name__} needs targets, and the "
                    "batches have none; give them, as Batches(inputs, targets) does"
                )
        given = [targets, _of("output", output, self.key)]
        mask = batch.mask
        if self.key is not None and isinstance(mask, dict):
            mask = mask.get(self.key)
        elif self.key is not None and _listed(mask):
            mask = mask[self.key]
        return (*given, *(() if mask is None else (mask,)))


class Objective:
    """The losses and metrics given to `fit`, and what they have come to so far.

    loss, metrics: for the whole output; or a dict, list or tuple with one entry (None: nothing) for
    each output, where an entry of `metrics` may be several. loss_weights: numbers to match.
    """

    def __init__(self, loss: Any, metrics: Any = (), loss_weights: Any = None) -> None:
        several = isinstance(loss, (dict, list, tuple))
        if loss_weights is not None and not several:
            raise ValueError(
                "fit: loss_weights: only for a loss for each output, in a dict or list"
            )
        self.count = len(loss) if _listed(loss) else None
        entries = list(_entries(loss)) if several else [(None, loss)]
        weights: dict = {}
        if loss_weights is not None:
            _check_like("loss_weights", loss_weights, loss)
            weights = dict(_entries(loss_weights))
        if unknown := [str(key) for key in weights if key not in dict(entries)]:
            raise ValueError(f"fit: loss_weights: no loss for {', '.join(unknown)}")
        self.losses = [
            _Part(f"{_name(key)}_loss" if several else "loss", key, one, weights.get(key, 1.0))
            for key, one in entries
            if one is not None
        ]
        each = isinstance(metrics, dict) or (_listed(loss) and bool(metrics))
        if each and not isinstance(metrics, dict):
            _check_like("metrics", metrics, loss)
        self.metrics = [
            _Part(metric.name if key is None else f"{_name(key)}_{metric.name}", key, metric)
            for key, some in (_entries(metrics) if each else [(None, metrics)])
            for metric in _metrics(some)
        ]
        self._check()
        self._means = [Mean(name=part.name) for part in self.losses]
        self._added, self._adds = Mean(name="added"), False  # what layers added, if any did

    def _check(self) -> None:
        for part in self.losses:
            if not callable(part.measure) or isinstance(part.measure, type):
                raise TypeError(f"fit: loss: expected {_LOSS}, got {part.measure!r}")
        names = ["loss", *(part.name for part in self.losses if part.key is not None)]
        names += [part.name for part in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(
                f"fit: metrics: expected different names, none of them 'loss', got {names[1:]}; "
                "pass name= to one"
            )
        if len({id(part.measure) for part in self.metrics}) < len(self.metrics):
            raise ValueError("fit: metrics: one object measures several outputs; make one for each")

    @property
    def names(self) -> list[str]:
        """What `results` holds."""
        several = [part.name for part in self.losses if part.key is not None]
        return ["loss", *several, *(part.name for part in self.metrics)]

    # A batch

    def forward(self, model: Layer, batch: Batch) -> tuple[Tensor, list[Tensor], Any]:
        """The loss of a batch; what it is made of, last what layers added; the model's output."""
        inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
        model.forget_losses()  # of calls outside of training
        output = model(*inputs)
        given = len(output) if _listed(output) else 1
        if self.count is not None and given != self.count:
            raise ValueError(
                f"fit: loss: expected one for each output of the model, {given}, got {self.count}; "
                "None where there is none"
            )
        values = [part.measure(*part.arguments(batch, output)) for part in self.losses]
        weighted = [
            value if part.weight == 1 else value * part.weight
            for part, value in zip(self.losses, values, strict=True)
        ]
        if added := model.losses():
            values.append(_sum(added))
            weighted.append(values[-1])
        for value in values:
            _check_value(value)
        if not values:
            raise ValueError("fit: loss: got None, and no layer added a loss; give a loss function")
        return _sum(weighted), values, output

    def measure(self, model: Layer, batch: Batch) -> None:
        """Take in a batch that is not trained on."""
        _, values, output = self.forward(model, batch)
        self.update(batch, values, output)

    def update(self, batch: Batch, values: list[Tensor], output: Any) -> None:
        """Take in what `forward` found."""
        for part, mean, value in zip(self.losses, self._means, values, strict=False):
            mean.add(value, _weight(part, batch, output))
        if len(values) > len(self.losses):
            self._adds = True
            self._added.add(values[-1], items(batch.inputs))
        for part in self.metrics:
            part.measure.update_state(*part.arguments(batch, output))

    def weight(self, batch: Batch, output: Any) -> Any:
        """What a batch counts among others: over how much the mean is that its loss is."""
        if len(self.losses) == 1:
            return _weight(self.losses[0], batch, output)
        return items(batch.inputs)

    # All batches so far

    def reset_state(self) -> None:
        self._adds = False
        for measure in self._measures():
            measure.reset_state()

    def results(self) -> dict[str, float]:
        """All numbers by name, the loss first. Waits for the device."""
        values = [mean.result() for mean in self._means]
        total = sum(part.weight * v for part, v in zip(self.losses, values, strict=True))
        if self._adds:
            total += self._added.result()
        found = [total, *(v for p, v in zip(self.losses, values, strict=True) if p.key is not None)]
        found += [part.measure.result() for part in self.metrics]
        return dict(zip(self.names, found, strict=True))

    def _measures(self) -> list[Metric]:
        return [*self._means, self._added, *(part.measure for part in self.metrics)]

    def state_dict(self) -> dict[str, Any]:
        states = [measure.state_dict() for measure in self._measures()]
        return {"names": self.names, "adds": self._adds, "measures": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises SerializationError for the state of other losses or metrics."""
        if state["names"] != self.names or "measures" not in state:
            raise SerializationError(
                f"resume: saved with other metrics: {', '.join(state['names'])}"
                f"{'' if 'measures' in state else ', of a step of the model'}; these are "
                f"{', '.join(self.names)}"
            )
        self._adds = state["adds"]
        for measure, own in zip(self._measures(), state["measures"], strict=True):
            measure.load_state_dict(own)


def place(batch: Any, device: str, dtype: Any) -> Batch:
    """A batch as Tensors on `device`, floats in `dtype`; Tensors are left as they are."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            items = [convert(item) for item in value]
            return value._make(items) if hasattr(value, "_make") else type(value)(items)
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


def _entries(values: Any) -> Iterable[tuple[Any, Any]]:
    return values.items() if isinstance(values, dict) else enumerate(values)


def _check_like(name: str, given: Any, loss: Any) -> None:
    """Raise unless `given` has the form of `loss`: a dict, or a list as long."""
    like = isinstance(given, dict) if isinstance(loss, dict) else _listed(given)
    if not like or (_listed(loss) and len(given) != len(loss)):
        form = "a dict" if isinstance(loss, dict) else f"a list of {len(loss)}"
        raise ValueError(f"fit: {name}: expected {form}, as loss is, got {given!r}")


def _name(key: Any) -> str:
    return key if isinstance(key, str) else f"output_{key}"


def _metrics(given: Any) -> Sequence[Metric]:
    """One or several metrics as Metrics."""
    several = [] if given is None else given if isinstance(given, (list, tuple)) else [given]
    for metric in several:
        if isinstance(metric, type) or not (callable(metric) or isinstance(metric, Metric)):
            raise TypeError(f"fit: metrics: expected {_METRICS}, got {metric!r}")
    return [as_metric(metric) for metric in several]


def _of(what: str, value: Any, key: Any) -> Any:
    """The part of targets or outputs that belongs to `key`."""
    if key is None:
        return value
    there = value if isinstance(value, dict) else range(len(value)) if _listed(value) else ()
    if key not in there:
        got = ", ".join(map(str, there)) or type(value).__name__
        raise ValueError(f"fit: {what}: expected one for the loss or metric of {key!r}, got {got}")
    return value[key]


def _listed(value: Any) -> bool:
    return isinstance(value, (list, tuple))


def _weight(part: _Part, batch: Batch, output: Any) -> Any:
    """What the loss's own `count` says, else the number of items."""
    count: Callable | None = getattr(part.measure, "count", None)
    return unwrap(count(*part.arguments(batch, output))) if callable(count) else items(batch.inputs)


def _sum(terms: Sequence[Any]) -> Any:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _check_value(value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"fit: loss: expected a Tensor, got {type(value).__name__}, which has no gradient; "
            "compute it with minidl's ops"
        )
    if np.shape(value) != ():
        raise ShapeError(f"fit: loss: expected a scalar, got {np.shape(value)}; take its mean")
