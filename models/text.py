"""Text as numbers: what the models of characters share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

PADDING, UNKNOWN = 0, 1
EDGE = "\n"  # stands before the first and after the last character in pairs; no text contains it
# Half-width letters, digits and signs are read as the full-width ones that the corpora use.
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


class Vocabulary:
    """Numbers for the characters of a text, and for the pairs of neighbours in it.

    0 is padding, 1 is what was too rare in training (or never seen), the known ones follow.
    """

    def __init__(self, characters: Sequence[str], pairs: Sequence[str] = ()):
        self.characters, self.pairs = list(characters), list(pairs)
        self._character_number = {c: n for n, c in enumerate(characters, start=UNKNOWN + 1)}
        self._pair_number = {p: n for n, p in enumerate(pairs, start=UNKNOWN + 1)}

    @classmethod
    def of(cls, texts: Iterable[str], least: int = 2, least_pair: int | None = None) -> Vocabulary:
        """What occurs at least so many times in the texts, the frequent first; no pairs if None."""
        characters: Counter[str] = Counter()
        pairs: Counter[str] = Counter()
        for text in texts:
            text = text.translate(FULL_WIDTH)
            characters.update(text)
            if least_pair is not None:
                pairs.update(_pairs(text))
        return cls(_frequent(characters, least), _frequent(pairs, least_pair or 0))

    def state_dict(self) -> dict[str, list[str]]:
        """The constructor's arguments, fit for JSON."""
        return {"characters": self.characters, "pairs": self.pairs}

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers there are for characters, and for pairs."""
        return len(self.characters) + 2, len(self.pairs) + 2

    def encode(self, text: str) -> np.ndarray:
        """The numbers of each character; with pairs, of its pair to the left and to the right too.

        Shape (len(text),) or (len(text), 3), int32.
        """
        text = text.translate(FULL_WIDTH)
        characters = [self._character_number.get(c, UNKNOWN) for c in text]
        if not self.pairs:
            return np.array(characters, np.int32)
        pairs = [self._pair_number.get(pair, UNKNOWN) for pair in _pairs(text)]
        columns = (characters, pairs[:-1], pairs[1:]) if text else ((), (), ())
        return np.array(columns, np.int32).T


def _pairs(text: str) -> list[str]:
    """The len(text) + 1 pairs of neighbours in a text with an edge on either side."""
    framed = EDGE + text + EDGE
    return [framed[i : i + 2] for i in range(len(framed) - 1)]


def _frequent(counts: Counter[str], least: int) -> list[str]:
    # Ties by code point: the order does not depend on the order of the texts.
    kept = [item for item in counts.items() if item[1] >= least]
    return [text for text, _ in sorted(kept, key=lambda item: (-item[1], item[0]))]


def length_groups(lengths: Iterable[int], positions: int) -> Iterator[list[int]]:
    """Which texts go through a network together: of like length, the shortest first.

    Gives their numbers; a group, padded to its longest, has at most so many `positions` (a longer
    text is alone). Empty texts are in no group.
    """
    known = list(lengths)
    group: list[int] = []
    for i in sorted(range(len(known)), key=known.__getitem__):
        if group and (len(group) + 1) * known[i] > positions:
            yield group
            group = []
        if known[i]:
            group.append(i)
    if group:
        yield group
