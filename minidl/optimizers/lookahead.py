"""Lookahead: slow weights that follow any optimiser's."""

from __future__ import annotations

from typing import Any

from minidl.optimizers.optimizer import Optimizer


class Lookahead(Optimizer):
    """Let `optimizer` make k steps, then pull back what it found: slow += alpha * (fast - slow),
    fast = slow (Zhang et al. 2019, algorithm 1).

    `Lookahead(md.optimizers.Adam(model, 1e-3))`; everything else is that optimiser's.
    """

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, Lookahead):
            raise TypeError(
                "Lookahead: optimizer: expected an optimiser that is no Lookahead, got "
                f"{optimizer!r}"
            )
        if k < 1:
            raise ValueError(f"Lookahead: k: expected 1 or more, got {k}")
        if not 0 < alpha <= 1:
            raise ValueError(f"Lookahead: alpha: expected a number in (0, 1], got {alpha}")
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self._begun = False  # else the slow weights are where its first step found the fast
        optimizer.add_slot("slow")

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":  # not made yet
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    @property
    def learning_rate(self) -> Any:  # type: ignore[override]
        return self.optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.optimizer.learning_rate = value

    def step(self, scale: Any = None) -> None:
        if not self._begun:
            self.sweep(_begin)
            self._begun = True
        self.optimizer.step(scale)
        if self.iterations % self.k == 0:
            self.sweep(self._pull, writes=True)
            self.optimizer._constrain()  # the way between two allowed points may lead elsewhere

    def _pull(self, xp: Any, p: Any, slots: dict[str, Any], scratch: Any) -> None:
        slow = slots["slow"]
        xp.subtract(p, slow, out=scratch)
        scratch *= self.alpha
        slow += scratch
        p[...] = slow

    def add_slot(self, name: str) -> None:
        self.optimizer.add_slot(name)

    def sweep(self, work: Any, writes: bool = False) -> None:
        self.optimizer.sweep(work, writes)

    def state_dict(self) -> dict[str, Any]:
        inner = self.optimizer.state_dict()
        return {"optimizer": "Lookahead", "begun": self._begun, "inner": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._check_state(state)
        self.optimizer.load_state_dict(state["inner"])
        self._begun = state["begun"]

    def __repr__(self) -> str:
        return f"Lookahead({self.optimizer!r}, k={self.k}, alpha={self.alpha})"


def _begin(xp: Any, p: Any, slots: dict[str, Any], scratch: Any) -> None:
    slots["slow"][...] = p
