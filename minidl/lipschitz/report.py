"""Upper bounds of networks: a proved constant for each layer, multiplied, and shown in a table."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from minidl.graph import Tensor
from minidl.layers.container import Sequential
from minidl.layers.layer import Layer
from minidl.training.loop import evaluating

# --- The report -----------------------------------------------------------------------------------


class Bound(NamedTuple):
    """A layer's constant, and in a few words why it is one."""

    constant: float
    why: str


@dataclass(frozen=True)
class Line:
    """A layer in a report, named as its parameters are."""

    name: str
    kind: str
    constant: float
    why: str


@dataclass(frozen=True)
class Report:
    """The constants of the layers that an input goes through, one after another.

    `product` bounds the whole; `float(report)` is the same, `str(report)` a table.
    """

    layers: tuple[Line, ...]

    @property
    def constants(self) -> list[float]:
        """Those of the layers, in order."""
        return [line.constant for line in self.layers]

    @property
    def product(self) -> float:
        """No two inputs differ more in the output than so many times their own distance."""
        return 0.0 if 0.0 in self.constants else math.prod(self.constants)  # 0 times inf too

    def __float__(self) -> float:
        return self.product

    def __str__(self) -> str:
        rows = [("layer", "constant", "why")]
        for line in self.layers:
            label = f"{line.name} ({line.kind})" if line.name else line.kind
            rows.append((label, f"{line.constant:.4g}", line.why))
        rows.append(("all of them", f"{self.product:.4g}", "the product"))
        wide = [max(len(row[i]) for row in rows) for i in range(2)]
        return "\n".join(f"{a:<{wide[0]}}  {b:>{wide[1]}}  {c}" for a, b, c in rows)


# --- The upper bound ------------------------------------------------------------------------------


def upper_bound(model: Layer, input_shape: Sequence) -> Report:
    """A proved Lipschitz constant of `model` in evaluation mode, layer by layer.

    input_shape: that of an item, without the batch; a list of shapes for a layer that takes a list.
    Layers that are not built yet are built. Raises TypeError for a layer that has no rule (see
    `register`) and ValueError for an activation that has none (see `register_activation`).
    """
    several = bool(input_shape) and isinstance(input_shape[0], (tuple, list))
    shape = tuple(map(tuple, input_shape)) if several else tuple(input_shape)
    with evaluating(model):
        return Report(tuple(lines_of("", model, shape)))


@functools.singledispatch
def _rule(layer: Layer, input_shape: tuple) -> Any:
    raise NotImplementedError


def register(kind: type[Layer]) -> Callable[[Callable], Callable]:
    """Make the function under this decorator the rule for layers of a class.

    rule(layer, input_shape) returns a Lipschitz constant of the layer in evaluation mode for items
    of that shape (without the batch): a number, a `Bound`, or the `Report` of layers inside. Rules
    of layers made of layers take theirs from `upper_bound`: one after another multiply, side by
    side add, so `x + f(x)` has 1 + L.

    A subclass has its parent's rule as long as it leaves `call` alone.
    """
    return _rule.register(kind)


def _rule_of(layer: Layer) -> Callable[[Layer, tuple], Any]:
    kind = type(layer)
    owner = next((c for c in kind.__mro__ if c in _rule.registry and c is not object), None)
    if owner is not None and kind.call is getattr(owner, "call", None):
        return _rule.registry[owner]
    also = f", other than {owner.__name__}, has a call() of its own and" if owner else ""
    raise TypeError(
        f"lipschitz: {kind.__name__}{also} has no rule; register one: "
        f"@md.lipschitz.register({kind.__name__}) over a function of (layer, input_shape) that "
        "returns a Lipschitz constant"
    )


def lines_of(name: str, layer: Layer, shape: tuple) -> list[Line]:
    """What the report says of a layer, and of those inside."""
    rule = _rule_of(layer)
    output_shape(layer, shape)  # builds it
    found = rule(layer, shape)
    if isinstance(found, Report):
        return [
            replace(line, name=".".join(filter(None, (name, line.name)))) for line in found.layers
        ]
    bound = found if isinstance(found, Bound) else Bound(float(found), "registered")
    if not bound.constant >= 0:
        raise ValueError(
            f"lipschitz: {type(layer).__name__}: expected a rule that returns a number >= 0, got "
            f"{bound.constant}; look for NaN in the weights"
        )
    return [Line(name, type(layer).__name__, float(bound.constant), bound.why)]


def output_shape(layer: Layer, input_shape: tuple) -> tuple[int, ...]:
    """The shape of an item that `layer` makes of one, found by giving it zeros."""
    several = bool(input_shape) and isinstance(input_shape[0], tuple)
    shapes = input_shape if several else [input_shape]
    zeros = [Tensor(np.zeros((1, *s)), dtype=layer.dtype, device=layer.device) for s in shapes]
    shape = layer(zeros if several else zeros[0]).shape[1:]
    layer.forget_losses()  # of zeros: they are none of the model's
    return shape


@register(Sequential)
def _(layer: Any, input_shape: tuple) -> Report:
    found: list[Line] = []
    for i, inner in enumerate(layer.layers):
        try:
            found += lines_of(str(i), inner, input_shape)
        except Exception as error:
            error.add_note(f"in layer {i} ({type(inner).__name__}) of {type(layer).__name__}")
            raise
        input_shape = output_shape(inner, input_shape)
    return Report(tuple(found))
