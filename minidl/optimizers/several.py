"""Several optimisers under names, as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minidl.errors import SerializationError
from minidl.graph import Parameter
from minidl.optimizers.optimizer import Optimizer


class Optimizers(Mapping):
    """Optimisers by name: `optimizer["critic"].minimize(loss)`. `fit` makes one of a dict.

    `zero_grad` and `step` are those of all; where they step at different times the model's
    `train_step` calls them one by one. They are saved and loaded together.

    Raises ValueError for an empty dict and for one optimiser under two names, TypeError for what is
    no optimiser.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._each = dict(optimizers)
        if not self._each:
            raise ValueError("Optimizers: expected one optimiser or more by name, got none")
        for name, optimizer in self._each.items():
            if not isinstance(name, str) or not hasattr(optimizer, "zero_grad"):
                raise TypeError(
                    "Optimizers: expected names with optimisers such as md.optimizers.Adam(model), "
                    f"got {name!r}: {optimizer!r}"
                )
        if len({id(each) for each in self._each.values()}) < len(self._each):
            raise ValueError("Optimizers: one optimiser has two names; make one for each")

    def __getitem__(self, name: str) -> Optimizer:
        if name not in self._each:
            raise KeyError(f"{name!r}: there are {', '.join(self._each)}")
        return self._each[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._each)

    def __len__(self) -> int:
        return len(self._each)

    @property
    def parameters(self) -> list[Parameter]:
        """Those of all, each once."""
        return list({id(p): p for each in self.values() for p in each.parameters}.values())

    def zero_grad(self) -> None:
        """Forget the gradients of all parameters."""
        for each in self.values():
            each.zero_grad()

    def step(self, scale: Any = None) -> None:
        """A step of each; scale: as in `Optimizer.step`."""
        for each in self.values():
            each.step(scale)

    def state_dict(self) -> dict[str, Any]:
        """Their states by name."""
        return {"optimizer": "Optimizers", "each": {n: o.state_dict() for n, o in self.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state_dict` gave. Raises SerializationError for other ones,
        or others' names."""
        given = list(state["each"]) if state.get("optimizer") == "Optimizers" else None
        if given is None or set(given) != set(self):
            found = ", ".join(given) if given is not None else state.get("optimizer")
            raise SerializationError(
                f"Optimizers: got the state of {found}; these are {', '.join(self)}"
            )
        for name, each in self.items():
            each.load_state_dict(state["each"][name])

    def __repr__(self) -> str:
        return f"Optimizers({self._each!r})"
