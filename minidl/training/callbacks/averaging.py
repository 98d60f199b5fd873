"""A moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from minidl.training.callbacks.callback import Callback
from minidl.training.callbacks.rates import optimizer_of

if TYPE_CHECKING:
    from minidl.training.loop import Run

_SLOT = "average"


class ExponentialMovingAverage(Callback):
    """Keep average = d * average + (1 - d) * p of every parameter that the optimiser changes, after
    each of its steps. Validation, and callbacks when an epoch ends, see the model with the averages
    (Polyak and Juditsky 1992).

    d is `decay`, but in the n-th step at most (1 + n) / (10 + n) if `warm_up`, so that the initial
    weights are soon forgotten. The averages lie beside the optimiser's state, in its flat buffers,
    and are saved with it. Layers' buffers are not averaged.

    optimizer: the name of one, where `fit` has several: its parameters are averaged.

    After `fit` the model has its own weights: `with average.applied(): ...` puts the averages in
    their place for a while, `average.apply()` for good.

    Raises ValueError for a second one beside it.
    """

    def __init__(
        self, decay: float = 0.999, warm_up: bool = True, optimizer: str | None = None
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(
                f"ExponentialMovingAverage: decay: expected a number in [0, 1), got {decay}"
            )
        self.decay, self.warm_up, self.optimizer = decay, warm_up, optimizer
        self.steps = 0  # how many have been averaged

    def set_run(self, run: Run) -> None:
        super().set_run(run)
        alike = [c for c in run.callbacks if isinstance(c, ExponentialMovingAverage)]
        if sum(other.optimizer == self.optimizer for other in alike) > 1:
            raise ValueError("ExponentialMovingAverage: fit: callbacks: expected one of it")
        self.steps = 0
        self._followed = optimizer_of(self)
        self._followed.add_slot(_SLOT)

    def on_train_begin(self) -> None:
        self._seen = self._followed.iterations
        if self.steps == 0:
            self._followed.sweep(_begin)

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        self._follow()

    def _follow(self) -> None:
        """Take in the step that the optimiser has made since, if it has."""
        if self._followed.iterations == self._seen:
            return  # gradients are being accumulated
        self._seen = self._followed.iterations
        self.steps += 1
        bound = (1 + self.steps) / (10 + self.steps) if self.warm_up else 1.0
        new = 1 - min(self.decay, bound)

        def take(xp: Any, p: Any, slots: dict[str, Any], scratch: Any) -> None:
            xp.subtract(p, slots[_SLOT], out=scratch)
            scratch *= new
            slots[_SLOT] += scratch

        self._followed.sweep(take)

    def measuring(self) -> AbstractContextManager:
        self._follow()
        return self.applied()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages inside, and afterwards its own weights, bit for bit."""
        own = [(p, p._data.copy()) for p in self._parameters()]
        try:
            self.apply()
            yield
        finally:
            for p, array in own:
                p.assign_(array)

    def apply(self) -> None:
        """Give the model the averages; its own weights are lost."""
        self._parameters()
        self._followed.sweep(_use, writes=True)

    def _parameters(self) -> list:
        if not hasattr(self, "run"):
            raise RuntimeError(
                "ExponentialMovingAverage: there are no averages yet; give it to fit's callbacks"
            )
        return self._followed.parameters

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def _begin(xp: Any, p: Any, slots: dict[str, Any], scratch: Any) -> None:
    slots[_SLOT][...] = p


def _use(xp: Any, p: Any, slots: dict[str, Any], scratch: Any) -> None:
    p[...] = slots[_SLOT]
