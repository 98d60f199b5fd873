"""Mixing the items of a batch inside a network."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from minidl.layers.layer import Layer
from minidl.transforms import Mix, mixed


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
        with _mixing(name, self._layer(name), mix):
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
    """What `layer` returns is mixed inside."""
    call, calls = layer.call, []

    @functools.wraps(call)
    def mixing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return mixed(call(*args, **kwargs), mix, f"ManifoldMixing: output of {name}")

    layer.call = mixing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del layer.call  # the class's own again
    if not calls:
        raise ValueError(f"ManifoldMixing: at: the model did not call its layer {name!r}")
