"""Measuring a segmentation into words, and the baseline to beat: forward maximum matching."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from minidl.errors import ShapeError

Words = list[str]


@dataclass(frozen=True)
class Score:
    """Word precision, recall, F1, and recall on words not in the lexicon (NaN without any)."""

    precision: float
    recall: float
    f1: float
    unseen_recall: float
    words: int
    unseen: int


def spans(words: Iterable[str]) -> list[tuple[int, int]]:
    """Where each word begins and ends, in characters."""
    result, begin = [], 0
    for word in words:
        result.append((begin, begin + len(word)))
        begin += len(word)
    return result


def score(gold: Sequence[Words], predicted: Sequence[Words], lexicon: Collection[str]) -> Score:
    """A word counts as found where both its ends are right (the measure of the SIGHAN bakeoffs).

    Raises ShapeError where the two differ in their texts, not only in their word boundaries.
    """
    if len(gold) != len(predicted):
        raise ShapeError(
            f"score: predicted: expected {len(gold)} sentences, as in gold, got {len(predicted)}"
        )
    right = words = guesses = unseen = unseen_right = 0
    for number, (true, guess) in enumerate(zip(gold, predicted, strict=True)):
        if "".join(true) != "".join(guess):
            raise ShapeError(
                f"score: predicted[{number}]: expected the text {''.join(true)!r}, "
                f"got {''.join(guess)!r}"
            )
        found = set(spans(guess))
        words += len(true)
        guesses += len(guess)
        for word, span in zip(true, spans(true), strict=True):
            hit = span in found
            right += hit
            if word not in lexicon:
                unseen += 1
                unseen_right += hit
    return Score(
        precision=_ratio(right, guesses),
        recall=_ratio(right, words),
        f1=_ratio(2 * right, words + guesses),
        unseen_recall=_ratio(unseen_right, unseen),
        words=words,
        unseen=unseen,
    )


class MaximumMatching:
    """From left to right, always the longest word of the lexicon, else a single character."""

    def __init__(self, lexicon: Collection[str]):
        self.lexicon = lexicon
        self.longest = max(map(len, lexicon), default=1)

    def segment(self, text: str) -> Words:
        words, begin = [], 0
        while begin < len(text):
            end = min(begin + self.longest, len(text))
            while end > begin + 1 and text[begin:end] not in self.lexicon:
                end -= 1
            words.append(text[begin:end])
            begin = end
        return words


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
