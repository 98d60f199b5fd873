"""Mixing the items of a batch inside a network."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minidl.layers.layer import Layer
from minidl.transforms import Mix, mixed

_one_at_a_time = threading.RLock()  # two threads would undo each other's changes


class ManifoldMixing(Layer):
    """`model`, with its inputs or hidden values mixed where `md.transforms.ManifoldMixup` says
    (Verma et al. 2019).

    at: the names of the layers inside `model`, as `model.walk()` gives them, whose outputs can be
    mixed: places 1, 2, ... (place 0 is the input). Any model will do, unchanged. Called without a
    `Mix` behind the inputs, as in validation, it is `model`. A layer that is called several times
    mixes each output. `md.recompute` around such a layer would forget the mixing: leave it out.

    Raises ValueError for names and places that there are not.
    """

    def __init__(self, model: Layer, at: Sequence[str] = ()) -> None:
        self.model = model
        self.at = list(at)
        for name in self.at:
            self._layer(name)

    @property
    def places(self) -> int:
        """The number of places: for `ManifoldMixup(places, ...)`."""
        return 1 + len(self.at)

    def call(self, *inputs: Any) -> Any:
        if not inputs or not isinstance(inputs[-1], Mix):
            return self.model(*inputs)
        *rest, mix = inputs
        if not 0 <= mix.place < self.places:
            raise ValueError(
                f"ManifoldMixing: place: expected 0 to {self.places - 1}, got {mix.place}; give "
                "ManifoldMixup places=mixing.places"
            )
        if mix.place == 0:
            return self.model(*(mixed(x, mix, "ManifoldMixing: inputs") for x in rest))
        name = self.at[mix.place - 1]
        with _one_at_a_time, _mixing(name, self._layer(name), mix):
            return self.model(*rest)

    def _layer(self, name: str) -> Layer:
        known = dict(self.model.walk())
        if name not in known:
            raise ValueError(
                f"ManifoldMixing: at: no layer is named {name!r}; there are "
                f"{', '.join(filter(None, known))}"
            )
        return known[name]


@contextmanager
def _mixing(name: str, layer: Layer, mix: Mix) -> Iterator[None]:
    """What `layer` returns is mixed inside, in this thread alone; also what a shallow copy of it
    does, as is called where another layer gives it other weights: so it is of another class for
    that time."""
    kind, thread, calls = type(layer), threading.get_ident(), []

    @functools.wraps(kind.call)
    def mixing(self: Layer, *args: Any, **kwargs: Any) -> Any:
        output = kind.call(self, *args, **kwargs)
        if threading.get_ident() != thread:
            return output
        calls.append(1)
        return mixed(output, mix, f"ManifoldMixing: output of {name}")

    layer.__class__ = type(kind.__name__, (kind,), {"call": mixing, "__doc__": kind.__doc__})
    try:
        yield
    finally:
        layer.__class__ = kind
    if not calls:
        raise ValueError(f"ManifoldMixing: at: the model did not call its layer {name!r}")
