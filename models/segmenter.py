"""Chinese word segmentation: convolutions over characters, then a linear-chain CRF over tags.

A sentence's words are written as one tag a character: s(ingle), or b(egin) m(iddle)* e(nd). The
network scores each tag at each character (the emissions); the CRF scores neighbouring tags, knows
which cannot follow one another, and sums or maximises over whole paths (Lafferty, McCallum and
Pereira 2001; with a network below it: Collobert et al. 2011).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from minidl.errors import ShapeError

TAGS = "sbme"
SINGLE, BEGIN, MIDDLE, END = range(4)
STARTS = np.array([True, True, False, False])  # a sentence begins with s or b,
ENDS = np.array([True, False, False, True])  # and ends with s or e
# After the end of a word (s, e) comes a beginning (s, b); inside one (b, m), its rest (m, e).
ALLOWED = np.where(ENDS[:, None], STARTS, ~STARTS)

PADDING, UNKNOWN = 0, 1
EDGE = "\n"  # stands before the first and after the last character in pairs; no text contains it
# Half-width letters, digits and signs are read as the full-width ones that the corpora use.
FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def tags_of(words: Iterable[str]) -> list[int]:
    """One tag for each character of the words."""
    tags: list[int] = []
    for word in words:
        tags += [SINGLE] if len(word) == 1 else [BEGIN, *[MIDDLE] * (len(word) - 2), END]
    return tags


def words_of(text: str, tags: Sequence[int]) -> list[str]:
    """The words of a text: the inverse of `tags_of`.

    Any tags will do: a word ends where its tag says so (s, e), where the next one begins (s, b),
    and at the end of the text.
    """
    if len(text) != len(tags):
        raise ShapeError(
            f"words_of: tags: expected one for each of {len(text)} characters, got {len(tags)}"
        )
    words, begin = [], 0
    for end in range(1, len(text) + 1):
        if end == len(text) or ENDS[tags[end - 1]] or STARTS[tags[end]]:
            words.append(text[begin:end])
            begin = end
    return words


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
