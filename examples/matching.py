"""Measuring answers, and the baseline that a reader must beat: matching strings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from examples.corpora import pieces
from examples.questions import (
    QUESTION_WORDS,
    Question,
    Sentence,
    Token,
    entities,
    is_surname,
    text_of,
)
from examples.words import MaximumMatching
from models.text import FULL_WIDTH

Answer = tuple[str, float]  # a text ("" for none), and how sure
ANY, UNSEEN = "any", "unseen"  # what stands for a part of speech where there is none
NOT_GIVEN = frozenset("w u p c".split())  # what hardly is a part of a given name

# --- Measures -------------------------------------------------------------------------------------


def same(text: str) -> str:
    """What must be equal where two answers are: half-width letters are read as full-width ones."""
    return text.translate(FULL_WIDTH).strip()


def overlap(a: str, b: str) -> float:
    """F1 of the characters that two texts share; 1 where both are empty."""
    if not (a and b):
        return float(a == b)
    return _f1(Counter(a), Counter(b))


@dataclass(frozen=True)
class Score:
    """Exact match and character F1, the means over so many questions."""

    exact: float
    f1: float
    questions: int


def by_way(question: Question) -> str:
    return question.way


def by_way_and_kind(question: Question) -> str:
    return f"{question.way}, {question.kind}"


def score(
    questions: Sequence[Question],
    answers: Sequence[str],
    group: Callable[[Question], str] = by_way,
) -> dict[str, Score]:
    """Apart for each group of questions. Against several right answers the best counts."""
    found: dict[str, list[tuple[float, float]]] = {}
    for question, answer in zip(questions, answers, strict=True):
        right = [overlap(same(answer), same(r)) for r in question.right]
        exact = any(same(answer) == same(r) for r in question.right)
        found.setdefault(group(question), []).append((float(exact), max(right)))
    return {
        name: Score(*(float(m) for m in np.mean(rows, axis=0)), len(rows))
        for name, rows in found.items()
    }


def mean(scores: dict[str, Score]) -> Score:
    """The mean of the ways, each of which counts the same."""
    exact, f1 = np.mean([(s.exact, s.f1) for s in scores.values()] or [(0, 0)], axis=0)
    return Score(float(exact), float(f1), sum(s.questions for s in scores.values()))


def above(answers: Iterable[Answer], threshold: float) -> list[str]:
    """The answers that are sure enough; "" for the others."""
    return [text if sure >= threshold else "" for text, sure in answers]


def best_threshold(questions: Sequence[Question], answers: Sequence[Answer]) -> float:
    """Where the geometric mean over the ways of exact match is best: to be chosen on validation.

    Geometric, so that no way can be sacrificed to the others.
    """
    values = np.unique([sure for _, sure in answers] or [0.0])
    # Between two values, so that what is a little less sure than the last one passes too.
    tried = [0.0, *((values[1:] + values[:-1]) / 2)]

    def quality(threshold: float) -> float:
        found = score(questions, above(answers, threshold)).values()
        return float(np.prod([way.exact for way in found]))

    return max(map(float, tried[:: max(1, len(tried) // 200)]), key=quality)


# --- The baseline ---------------------------------------------------------------------------------


class StringMatching:
    """The sentence that is nearest to the question, and the entity of the asked kind in it.

    Entities are found by what training shows, without the tags of the passage: forward maximum
    matching with the words of training, each with its most frequent part of speech there; and
    after a surname one or two single characters are a given name. Each candidate takes the question
    word's place: the answer is the one with which the question shares most pairs of characters
    with the candidate's sentence (F1 of the pairs).
    """

    def __init__(self, sentences: Iterable[Sentence], questions: Iterable[Question]) -> None:
        counts: dict[str, Counter[str]] = {}
        for word, tag in (token for sentence in sentences for token in sentence):
            counts.setdefault(word, Counter())[tag] += 1
        self.tags = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
        self.tagged = bool(self.tags)
        if not self.tagged:  # given questions: candidates are what has been an answer in training
            self.tags = {a: ANY for q in questions for a in q.right if a}
        self.matching = MaximumMatching(self.tags)

    def answer(self, question: Question) -> Answer:
        """The best answer in any of the passages, and how near it is: 0 to 1."""
        asked = self.asked(question)
        best: Answer = ("", 0.0)
        for sentence in (s for passage in question.passages for s in pieces(passage)):
            there = Counter(pairwise(sentence))
            for candidate in self.candidates(sentence, asked):
                if candidate in question.text:
                    continue
                word = QUESTION_WORDS.get(asked, "")
                filled = question.text.replace(word, candidate) if word else question.text
                near = _f1(Counter(pairwise(filled)), there)
                if near > best[1]:
                    best = candidate, near
        return best

    def asked(self, question: Question) -> str:
        """Which kind of entity the question word asks for; any, where nothing is tagged."""
        words = QUESTION_WORDS.items() if self.tagged else ()
        return next((tag for tag, word in words if word in question.text), ANY)

    def candidates(self, sentence: str, asked: str) -> list[str]:
        """What is of the asked kind in a sentence."""
        words = self.matching.segment(sentence)
        tokens = [(word, self.tags.get(word, UNSEEN)) for word in words]
        if asked == ANY:
            return [word for word, tag in tokens if tag == ANY]
        return [e.text for e in entities(_with_given_names(tokens)) if e.tag == asked]


def _with_given_names(tokens: Sentence) -> Sentence:
    """One or two single characters behind a surname joined and tagged as a given name."""
    result: Sentence = []
    i = 0
    while i < len(tokens):
        result.append(tokens[i])
        i += 1
        if not is_surname(result[-1]) or (i < len(tokens) and tokens[i][1] == "nr"):
            continue
        end = i
        while end < min(i + 2, len(tokens)) and _may_be_given(tokens[end]):
            end += 1
        if end > i:
            result.append((text_of(tokens[i:end]), "nr"))
            i = end
    return result


def _may_be_given(token: Token) -> bool:
    return len(token[0]) == 1 and token[1] not in NOT_GIVEN


def _f1(a: Counter, b: Counter) -> float:
    total = a.total() + b.total()
    return 2 * (a & b).total() / total if total else 0.0
