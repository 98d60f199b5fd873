"""CRF: a linear-chain conditional random field as the last layer of a tagger."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl.errors import DtypeError, ShapeError
from minidl.functional import crf
from minidl.graph import Tensor, unwrap
from minidl.layers.layer import Layer


class CRF(Layer):
    """Scores of neighbouring tags over emissions (batch, time, tags): see `minidl.functional.crf`.

    Trained: `transitions` (tags, tags), `start` (tags,) and `end` (tags,). Given: the booleans
    `allowed` (tags, tags), `allowed_start` (tags,), `allowed_end` (tags,), saved as buffers. Built
    at once where `tags` is given. Calling the layer gives each row's best path; `loss` trains it.
    Masks (batch, time) are boolean, True = keep, of any pattern.
    """

    def __init__(
        self,
        tags: int | None = None,
        allowed: Any = None,
        allowed_start: Any = None,
        allowed_end: Any = None,
        initializer: Any = "zeros",
    ) -> None:
        self.tags = tags
        self.initializer = initializer
        self.allowed: Tensor | None = None
        self.allowed_start: Tensor | None = None
        self.allowed_end: Tensor | None = None
        self._limits = {"allowed": allowed, "allowed_start": allowed_start}
        self._limits["allowed_end"] = allowed_end
        if tags is not None:
            self.build((None, None, tags))

    def build(self, input_shape: Any) -> None:
        tags = input_shape[-1]
        for name, limit in self._limits.items():
            if limit is not None:
                self.add_buffer(name, _checked_limit(name, limit, tags))
        self._limits = {}
        self.transitions = self.add_weight((tags, tags), self.initializer, "transitions")
        self.start = self.add_weight((tags,), self.initializer, "start")
        self.end = self.add_weight((tags,), self.initializer, "end")

    def scores(self) -> dict[str, Any]:
        """What the functions of `minidl.functional.crf` take from this layer, by argument name."""
        names = ("transitions", "start", "end", "allowed", "allowed_start", "allowed_end")
        return {name: getattr(self, name) for name in names}

    def call(self, emissions: Any, mask: Any = None) -> Any:
        """The best path (batch, time): -1 where masked."""
        return self.viterbi(emissions, mask)[0]

    def loss(self, emissions: Any, tags: Any, mask: Any = None, reduction: str = "mean") -> Any:
        """-log p(tags) = log Z - score(tags): the mean over rows, "sum", or "none": each row's."""
        self._ready(emissions)
        return crf.negative_log_likelihood(
            emissions, tags, mask=mask, reduction=reduction, **self.scores()
        )

    def viterbi(self, emissions: Any, mask: Any = None) -> tuple[Any, Any]:
        """(the best path (batch, time), -1 where masked, its score (batch,))."""
        self._ready(emissions)
        return crf.viterbi(emissions, mask=mask, **self.scores())

    def viterbi_k_best(self, emissions: Any, mask: Any = None, k: int = 2) -> tuple[Any, Any]:
        """(the k best paths (batch, k, time), their scores (batch, k)), best first."""
        self._ready(emissions)
        return crf.viterbi_k_best(emissions, mask=mask, k=k, **self.scores())

    def marginals(self, emissions: Any, mask: Any = None, pairwise: bool = False) -> Any:
        """The probability of each tag at each position, (batch, time, tags)."""
        self._ready(emissions)
        return crf.marginals(emissions, mask=mask, pairwise=pairwise, **self.scores())

    def sample(self, emissions: Any, mask: Any = None, generator: Any = None, n: int = 1) -> Any:
        """`n` paths drawn with their probabilities, (batch, n, time)."""
        self._ready(emissions)
        return crf.sample(emissions, mask=mask, generator=generator, n=n, **self.scores())

    def _ready(self, emissions: Any) -> None:
        if not self.built:
            self._build_for(emissions)


def _checked_limit(name: str, limit: Any, tags: int) -> Any:
    expected = (tags, tags) if name == "allowed" else (tags,)
    limit = np.asarray(limit) if isinstance(limit, (list, tuple)) else unwrap(limit)
    if limit.dtype != np.bool_:
        raise DtypeError(
            f"CRF: {name}: expected booleans (True = may be), got {limit.dtype}; use {name} != 0"
        )
    if tuple(limit.shape) != expected:
        raise ShapeError(
            f"CRF: {name}: expected shape {expected}, got {tuple(limit.shape)}; the emissions have "
            f"{tags} tags"
        )
    return limit
