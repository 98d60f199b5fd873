"""Reading comprehension with dilated gated convolutions: where in a passage is the answer?

Question and passage are read by blocks of gated convolutions whose steps lie ever farther apart, so
that a position sees 65 characters after six layers. The question becomes one vector, which goes to
each position of the passage; two numbers for each of these say whether the answer begins and ends
there, and one for the passage whether it has an answer at all. After Su Jianlin's DGCNN (2018).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np

import minidl as md
from minidl.data import pad
from minidl.errors import SerializationError
from minidl.functional.losses import binary_focal_with_logits
from minidl.initializers import uniform
from minidl.layers import AttentionPooling, Dense, Dropout, Embedding, GatedConv1D, Layer
from models.text import FULL_WIDTH, Vocabulary, length_groups

LONGEST_ANSWER = 12  # characters
LONGEST_MATCH = 4  # characters of the strings that question and passage may share
QUESTION_RATES, PASSAGE_RATES = (1, 2, 1), (1, 2, 4, 8, 16, 1)


# --- Text as numbers ------------------------------------------------------------------------------


def matches(question: str, passage: str) -> np.ndarray:
    """Whether each character of the passage is in a string of n characters that is in the question.

    Shape (len(passage), LONGEST_MATCH), a column for each n from 1: 0 or 1, int32.
    """
    same = _codes(passage)[:, None] == _codes(question)
    found = np.zeros((len(passage), LONGEST_MATCH), np.int32)
    run = same  # run[i, j]: the n characters from i on are those of the question from j on
    for n in range(1, LONGEST_MATCH + 1):
        if n > 1:
            run = run[:-1, :-1] & same[n - 1 :, n - 1 :]
        starts = run.any(axis=1)
        for k in range(n):
            found[k : k + len(starts), n - 1] |= starts
    return found


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def encode(vocabulary: Vocabulary, question: str, passage: str) -> tuple[np.ndarray, np.ndarray]:
    """The network's view of a pair: numbers (question time,), (passage time, 1 + LONGEST_MATCH)."""
    question, passage = question.translate(FULL_WIDTH), passage.translate(FULL_WIDTH)
    characters = vocabulary.encode(passage)[:, None]
    shared = matches(question, passage)
    return vocabulary.encode(question), np.concatenate([characters, shared], axis=1)


def mark(passage: str, answer: str) -> np.ndarray:
    """Where the answer begins and where it ends, wherever it stands: (len(passage), 2), float32."""
    marks = np.zeros((len(passage), 2), np.float32)
    passage, answer = passage.translate(FULL_WIDTH), answer.translate(FULL_WIDTH)
    begin = passage.find(answer) if answer else -1
    while begin >= 0:
        marks[begin, 0] = marks[begin + len(answer) - 1, 1] = 1
        begin = passage.find(answer, begin + 1)
    return marks


# --- Answers --------------------------------------------------------------------------------------


def spans(passage: str, ends: np.ndarray, most: int = 20) -> dict[str, float]:
    """The best texts of up to LONGEST_ANSWER characters in a passage, and p(start) * p(end).

    ends: the two probabilities (time, 2) at each character. Of a text that stands in several
    places the best counts; the `most` best places are looked at, impossible ones are left out.
    """
    time = len(passage)
    # values[i, k] is that of passage[i : i + k + 1].
    values = np.zeros((time, LONGEST_ANSWER), np.float32)
    for k in range(min(time, LONGEST_ANSWER)):
        values[: time - k, k] = ends[: time - k, 0] * ends[k:time, 1]
    best: dict[str, float] = {}
    for place in np.argsort(-values, axis=None, kind="stable")[:most]:
        begin, k = divmod(int(place), LONGEST_ANSWER)
        if values[begin, k] > 0:
            best.setdefault(passage[begin : begin + k + 1], float(values[begin, k]))
    return best


def vote(passages: Iterable[dict[str, float]], threshold: float = 0.0) -> dict[str, float]:
    """What several passages say together: sum(v^2) / (1 + sum(v)) for each text, the best first.

    v are the text's values in the passages, where they reach the threshold. A sure passage outvotes
    many unsure ones, and two that agree are better than one.
    """
    votes: dict[str, list[float]] = {}
    for values in passages:
        for text, value in values.items():
            if value >= threshold:
                votes.setdefault(text, []).append(value)
    total = {text: sum(v * v for v in own) / (1 + sum(own)) for text, own in votes.items()}
    return dict(sorted(total.items(), key=lambda item: -item[1]))


# --- The network ----------------------------------------------------------------------------------


class DGCNN(Layer):
    """Embedding -> gated convolutions -> start and end of the answer at each position.

    `call(question, question_mask, passage, passage_mask)`: (batch, steps), (batch, time, 1 +
    LONGEST_MATCH) and their masks -> logits (batch, time, 2) of an answer's start and end.
    """

    POSITIONS = 16_384  # of passages, padding included, that are read at once in `probabilities`

    def __init__(self, vocabulary: Vocabulary, size: int = 128, rate: float = 0.1) -> None:
        self.vocabulary, self.size, self.rate = vocabulary, size, rate
        self.threshold = 0.0  # what an answer's value must reach; to be chosen on validation
        self.embedding = Embedding(vocabulary.sizes[0], size)
        self.dropout = Dropout(rate)
        self.asking = self._blocks(QUESTION_RATES)
        self.question_pooling = AttentionPooling(input_size=size)
        self.character = Dense(size, use_bias=False, input_size=size)
        self.shared = Dense(size, use_bias=False, input_size=LONGEST_MATCH)
        self.asked = Dense(size, use_bias=False, input_size=size)
        self.reading = self._blocks(PASSAGE_RATES)
        self.passage_pooling = AttentionPooling(input_size=size)
        # Few characters are ends of an answer: 0.02 to begin with (Lin et al. 2017, section 3.3).
        rare = partial(uniform, low=-4.0, high=-4.0)
        self.position = Dense(2, bias_initializer=rare, input_size=size)
        self.position_asked = Dense(2, use_bias=False, input_size=size)
        self.whole = Dense(1, input_size=2 * size)

    def _blocks(self, rates: Sequence[int]) -> list[Layer]:
        return [
            GatedConv1D(self.size, 3, rate, dropout=self.rate, input_size=self.size)
            for rate in rates
        ]

    def call(self, question: Any, question_mask: Any, passage: Any, passage_mask: Any) -> md.Tensor:
        q = self.read_question(question, question_mask)
        x = self.dropout(self.embedding(passage[:, :, 0]))
        flags = passage[:, :, 1:].astype(x.dtype)
        # Dense of the concatenation [x; flags; q], whose last part is the same at each position.
        x = self.character(x) + self.shared(flags) + self.asked(q)[:, None]
        for block in self.reading:
            x = block(x, passage_mask)
        ends = self.position(x) + self.position_asked(q)[:, None]
        pooled = self.passage_pooling(x, passage_mask)
        whole = self.whole(md.concatenate([pooled, q], axis=-1))
        return both(ends, whole[:, None])

    def read_question(self, question: Any, mask: Any) -> md.Tensor:
        """The question as a vector: (batch, steps), (batch, steps) -> (batch, size)."""
        x = self.dropout(self.embedding(question))
        for block in self.asking:
            x = block(x, mask)
        return self.question_pooling(x, mask)

    def loss(self, marks: Any, ends: Any, mask: Any) -> md.Tensor:
        """The focal loss of starts and ends, the mean over the passages' characters."""
        return binary_focal_with_logits(ends, marks, mask)

    def probabilities(self, pairs: Sequence[tuple[str, str]]) -> list[np.ndarray]:
        """p(the answer starts here, ends here) of each character: (len(passage), 2) for each of the
        (question, passage) pairs. Zeros where one of the two is empty."""
        codes = [encode(self.vocabulary, *pair) for pair in pairs]
        found = [np.zeros((len(passage), 2), np.float32) for _, passage in codes]
        lengths = [len(passage) if len(question) else 0 for question, passage in codes]
        with md.evaluating(self):
            for rows in length_groups(lengths, self.POSITIONS):
                columns = zip(*(codes[i] for i in rows), strict=True)
                inputs = [md.tensor(a, device=self.device) for c in columns for a in pad(c)]
                ends = self(*inputs)
                for i, own in zip(rows, md.sigmoid(ends).numpy(), strict=True):
                    found[i][:] = own[: lengths[i]]
        return found

    def candidates(
        self, questions: Sequence[str], passages: Sequence[Sequence[str]]
    ) -> list[list[dict[str, float]]]:
        """For each question the `spans` of each of its passages."""
        pairs = [(q, p) for q, own in zip(questions, passages, strict=True) for p in own]
        found = zip(pairs, self.probabilities(pairs), strict=True)
        values = (spans(passage, ends) for (_, passage), ends in found)
        return [[next(values) for _ in own] for own in passages]

    def answer(self, question: str, passages: Sequence[str]) -> tuple[str, float]:
        """The best answer from the passages and its vote; ("", 0) where they have none."""
        votes = vote(self.candidates([question], [passages])[0], self.threshold)
        return next(iter(votes.items()), ("", 0.0))

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights, the vocabulary, the threshold and what the network is made of."""
        network = {"name": type(self).__name__, "size": self.size, "rate": self.rate}
        network["threshold"] = self.threshold
        md.save(path, model=self, vocabulary=self.vocabulary.state_dict(), network=network)


def load(path: str | os.PathLike) -> DGCNN:
    """The network that `save` wrote to `path`, ready to `answer`."""
    contents = md.load(path)
    network = contents.get("network", {})
    if network.get("name") != DGCNN.__name__:
        raise SerializationError(
            f"{os.fspath(path)}: expected what DGCNN.save wrote, got {sorted(contents)}"
        )
    model = DGCNN(Vocabulary(**contents["vocabulary"]), network["size"], network["rate"])
    model.threshold = network["threshold"]
    model.load_state_dict(contents["model"])
    model.eval()
    return model


def both(x: Any, y: Any) -> md.Tensor:
    """The logit of sigmoid(x) * sigmoid(y), without a rounded product near 0 or 1.

    1 / (sigmoid(x) sigmoid(y)) - 1 = exp(-x) + exp(-y) + exp(-x - y).
    """
    return -md.logaddexp(md.logaddexp(-x, -y), -x - y)
