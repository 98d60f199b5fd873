"""Metrics of sequences: ROUGE-L, the overlap of tokens, equality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl.graph import unwrap
from minidl.training.metrics.base import Metric


class Overlap(NamedTuple):
    """What two sequences share, as a part of the prediction, of the reference, and of both."""

    precision: float
    recall: float
    f1: float


def longest_common_subsequence(x: Sequence, y: Sequence) -> int:
    """The length of the longest sequence that x and y both contain, in order but with gaps.

    x, y: strings, or sequences of anything that can be hashed. A row of the usual table is held as
    the bits of one integer, 1 where the row does not grow: Hyyro 2004.
    """
    places: dict[Any, int] = {}
    for i, token in enumerate(x):
        places[token] = places.get(token, 0) | (1 << i)
    row = whole = (1 << len(x)) - 1
    for token in y:
        steps = row & places.get(token, 0)
        row = ((row + steps) | (row - steps)) & whole
    return len(x) - row.bit_count()


def rouge_l(prediction: Any, reference: Any) -> Overlap:
    """ROUGE-L of two sequences: their longest common subsequence, over the length of each, and F of
    the two with beta 1 (Lin 2004, section 3.1).

    Strings are sequences of characters; for words give lists of words. Arrays (time,) are sequences
    of ids. Two empty sequences are equal: 1.
    """
    x, y = _tokens(prediction), _tokens(reference)
    return _overlap(longest_common_subsequence(x, y), x, y)


def token_f1(prediction: Any, reference: Any) -> Overlap:
    """The tokens that two sequences share, in any order and as often as both have them, over the
    length of each, and F of the two (Rajpurkar et al. 2016, section 6.1). Sequences as in rouge_l:
    of strings this is the characters' F1.
    """
    x, y = _tokens(prediction), _tokens(reference)
    return _overlap((Counter(x) & Counter(y)).total(), x, y)


def _overlap(shared: int, x: Sequence, y: Sequence) -> Overlap:
    if not x and not y:
        return Overlap(1.0, 1.0, 1.0)
    return Overlap(shared / max(1, len(x)), shared / max(1, len(y)), 2 * shared / (len(x) + len(y)))


def _tokens(sequence: Any) -> Sequence:
    sequence = unwrap(sequence)
    return sequence.tolist() if isinstance(sequence, np.ndarray) else sequence


class _OfPairs(Metric):
    """Base: the mean over pairs (reference, prediction) of a number.

    `update_state(references, predictions)`: two equally long lists of strings or other sequences,
    on the host (bring ids over with `.numpy()` and cut off their padding). No mask.
    """

    def measure(self, y_true: Any, y_pred: Any, mask: Any) -> tuple[Any, Any]:
        if mask is not None:
            raise ValueError(f"{self.name}: takes no mask; cut the padding off")
        for name, given in (("y_true", y_true), ("y_pred", y_pred)):
            if isinstance(given, str):
                raise TypeError(f"{self.name}: {name}: expected a list of sequences, got a string")
        if len(y_true) != len(y_pred):
            raise ValueError(
                f"{self.name}: expected as many references as predictions, got {len(y_true)} and "
                f"{len(y_pred)}"
            )
        values = [self.of_pair(p, t) for t, p in zip(y_true, y_pred, strict=True)]
        return float(sum(values)), len(values)

    def of_pair(self, prediction: Any, reference: Any) -> float:
        raise NotImplementedError


class RougeL(_OfPairs):
    """The mean F of `rouge_l` over pairs: `update_state(references, predictions)`, two lists of
    strings or other sequences, on the host."""

    def __init__(self, name: str = "rouge_l") -> None:
        super().__init__(name)

    def of_pair(self, prediction: Any, reference: Any) -> float:
        return rouge_l(prediction, reference).f1


class TokenF1(_OfPairs):
    """The mean F of `token_f1` over pairs; lists as for RougeL."""

    def __init__(self, name: str = "token_f1") -> None:
        super().__init__(name)

    def of_pair(self, prediction: Any, reference: Any) -> float:
        return token_f1(prediction, reference).f1


class ExactMatch(_OfPairs):
    """The share of pairs that are equal; lists as for RougeL."""

    def __init__(self, name: str = "exact_match") -> None:
        super().__init__(name)

    def of_pair(self, prediction: Any, reference: Any) -> float:
        return float(list(_tokens(prediction)) == list(_tokens(reference)))
