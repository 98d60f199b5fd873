"""Decoding: from a network that scores the next token to whole sequences.

All three searches take a step function,

    step(tokens, state) -> (logits, state)

tokens (rows,) are the last ones of so many unfinished sequences, `state` is what the network
remembers of them, and logits (rows, vocabulary) score what comes next. The state is any nest of
tuples, lists and dicts of arrays or Tensors, each with the rows first; None, numbers and strings
in it belong to all rows. The searches reorder, repeat and drop rows of it as sequences fork and
end, and never change it in place.

`start` (batch,) holds the token that stands before each source's sequence, and is not part of the
result; the state comes with as many rows. The network runs on the device of `start`. What it gives
is read at each step: choosing among sequences is done on the host, in float64, the same on every
device. Nothing is recorded. Put the model in evaluation mode: dropout would go on drawing.

What is decoded from a source does not depend on the sources beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl import ops, random
from minidl.autodiff import no_grad
from minidl.backend import device_of, is_array, namespace, to_device, to_host
from minidl.errors import DtypeError, ShapeError
from minidl.graph import Tensor, unwrap

__all__ = ["Decoded", "beam_search", "greedy", "sample"]

Step = Callable[[Any, Any], tuple[Any, Any]]


class Decoded(NamedTuple):
    """Sequences for each source, the best first, as NumPy arrays.

    tokens: (batch, n, time) integers; `padding` behind the sequence.
    lengths: (batch, n), how many tokens come before the end token. That stands at
        tokens[b, k, lengths[b, k]], unless the sequence was cut at `max_length`.
    scores: (batch, n), log probabilities, in `beam_search` with the length penalty; -inf where
        there are fewer than n sequences.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray

    def sequence(self, source: int, k: int = 0) -> list[int]:
        """The tokens of one sequence, without the end token."""
        return self.tokens[source, k, : self.lengths[source, k]].tolist()


def greedy(
    step: Step,
    state: Any,
    start: Any,
    end: int,
    max_length: int,
    min_length: int = 0,
    forbidden: Sequence[int] = (),
    padding: int = 0,
) -> Decoded:
    """Always the most probable token, until it is `end`; one sequence a source.

    max_length: at most so many tokens, `end` among them. min_length: at least so many before `end`.
    forbidden: tokens that are never chosen. Ties: the smaller token. Scores are the sums of the
    network's log p, of which what is forbidden keeps its share.
    Raises ShapeError for logits or a state without the rows, DtypeError for a start that is not of
    integers, ValueError for limits that cannot be, where the network gives NaN, and where no
    token is allowed (beam_search drops such a hypothesis).
    """
    network = _Network("greedy", step, start, end, max_length, min_length, forbidden)

    def choose(log_p: np.ndarray, rows: np.ndarray, time: int) -> np.ndarray:
        return log_p.argmax(axis=1)

    return _one_by_one(network, state, choose, 1, padding)


def sample(
    step: Step,
    state: Any,
    start: Any,
    end: int,
    max_length: int,
    n: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: random.Generator | None = None,
    min_length: int = 0,
    forbidden: Sequence[int] = (),
    padding: int = 0,
) -> Decoded:
    """Draw `n` sequences a source, token by token from softmax(logits / temperature).

    top_k: from the so many most probable tokens only (Fan et al. 2018). top_p: from the fewest that
    together have at least this probability (the nucleus: Holtzman et al. 2020), of what top_k left.
    generator: of random numbers, on the host (None: minidl's). The draws of a source depend on its
    number in the batch and on max_length, not on what the others come to.

    Sequences are in the order in which they were drawn; scores are the network's own log p, at
    temperature 1 and before cutting. The rest as in `greedy`.
    """
    network = _Network("sample", step, start, end, max_length, min_length, forbidden)
    network.require("n", n, n >= 1, "1 or more")
    expected = "more than 0 (at 0: `greedy`), and finite"
    network.require("temperature", temperature, 0 < temperature < np.inf, expected)
    network.require("top_k", top_k, top_k is None or top_k >= 1, "1 or more")
    network.require("top_p", top_p, top_p is None or 0 < top_p <= 1, "more than 0, at most 1")
    if generator is not None and not isinstance(generator, random.Generator):
        raise TypeError(
            f"sample: generator: expected md.random.Generator(seed), got {generator!r}; or call "
            "md.seed(n) before, and leave it out"
        )
    uniform = (generator or random.generator()).uniform(
        shape=(network.batch * n, max_length), dtype=np.float64
    )

    def choose(log_p: np.ndarray, rows: np.ndarray, time: int) -> np.ndarray:
        order = np.argsort(-log_p, axis=1, kind="stable")[:, :top_k]
        best = np.take_along_axis(log_p, order, axis=1)
        p = np.exp((best - best[:, :1]) / temperature)
        p /= p.sum(axis=1, keepdims=True)
        cumulated = p.cumsum(axis=1)
        kept = p > 0
        if top_p is not None:  # a token belongs to the nucleus if those before it do not suffice
            kept &= cumulated - p < top_p
        last = kept.sum(axis=1) - 1
        point = uniform[rows, time] * cumulated[np.arange(len(last)), last]
        chosen = np.minimum((cumulated <= point[:, None]).sum(axis=1), last)
        return order[np.arange(len(order)), chosen]

    return _one_by_one(network, state, choose, n, padding)


def beam_search(
    step: Step,
    state: Any,
    start: Any,
    end: int,
    max_length: int,
    width: int = 5,
    n_best: int = 1,
    length_penalty: float | str = 0.0,
    min_length: int = 0,
    forbidden: Sequence[int] = (),
    padding: int = 0,
) -> Decoded:
    """The `n_best` most probable sequences among those that a beam of `width` comes by.

    Each step ranks all continuations of a source's hypotheses among those that are finished, and
    keeps the best `width`. A hypothesis that ends is finished: it is frozen, never extended, but
    keeps its place in the ranking, so that fewer others go on (and is not forgotten if it falls
    out). A source is done when all places are of finished ones, when no other could still come to
    be among the n best, or at `max_length`, where the unfinished count as they are. Width 1 is
    `greedy`; a width of vocabulary**max_length is exhaustive search.

    length_penalty: hypotheses Y, `end` counted, are compared by log p(Y) / ((5 + |Y|) / 6)**alpha
    (Wu et al. 2016, equation 14; 0 compares log p itself, which favours the short), or, for "mean",
    by log p(Y) / |Y|. n_best: at most `width`. Ties: what was found first. The rest as in `greedy`.
    """
    network = _Network("beam_search", step, start, end, max_length, min_length, forbidden)
    network.require("width", width, width >= 1, "1 or more")
    network.require("n_best", n_best, 1 <= n_best <= width, f"1 to the width, {width}")
    penalty = _penalty(length_penalty)
    beams = [_Beam(width, n_best, end, max_length, penalty) for _ in range(network.batch)]
    live, tokens = beams, network.start
    with no_grad():
        for time in range(max_length):
            if not live:
                break
            log_p, state = network.log_probabilities(tokens, state, time)
            parents, row = [], 0
            for beam in live:
                rows = len(beam.totals)
                parents.append(row + beam.extend(log_p[row : row + rows]))
                row += rows
            live = [beam for beam in live if len(beam.totals)]
            if live:
                state = network.take(state, np.concatenate(parents), row)
                tokens = np.concatenate([beam.tokens[:, -1] for beam in live])
    return _decoded([beam.best() for beam in beams], n_best, end, padding)


def _penalty(alpha: float | str) -> Callable[[int], float]:
    """By what the log probability of so many tokens is divided; monotone in their number."""
    if alpha == "mean":
        return float
    if isinstance(alpha, str):
        raise ValueError(f"beam_search: length_penalty: expected a number or 'mean', got {alpha!r}")
    return lambda length: ((5 + length) / 6) ** float(alpha)


class _Beam:
    """The hypotheses of one source: those that go on, the best first, and those that are done."""

    def __init__(
        self, width: int, n_best: int, end: int, max_length: int, penalty: Callable[[int], float]
    ) -> None:
        self.width, self.n_best, self.end = width, n_best, end
        self.max_length, self.penalty = max_length, penalty
        self.tokens = np.zeros((1, 0), np.int64)  # (hypotheses, time)
        self.totals = np.zeros(1)  # log p of each
        self.finished: list[tuple[float, np.ndarray]] = []

    def extend(self, log_p: np.ndarray) -> np.ndarray:
        """Take a step with the next tokens' log p (hypotheses, vocabulary).

        Returns which hypothesis each that goes on continues: (hypotheses,), empty when done.
        """
        vocabulary = log_p.shape[1]
        scores = (self.totals[:, None] + log_p).reshape(-1)
        best = _largest(scores, self.width)
        time = self.tokens.shape[1] + 1
        divisor = self.penalty(time)
        done = np.array([score for score, _ in self.finished])
        above = (done >= scores[best, None] / divisor).sum(axis=1)
        best = best[np.arange(len(best)) + above < self.width]
        last = time == self.max_length
        closed = (best % vocabulary == self.end) | last
        for i in best[closed]:
            tokens = np.append(self.tokens[i // vocabulary], i % vocabulary)
            self.finished.append((scores[i] / divisor, tokens))
        going = best[~closed]
        if not self._may_improve(scores[going], time):
            going = going[:0]
        parents, tokens = np.divmod(going, vocabulary)
        self.totals = scores[going]
        self.tokens = np.concatenate([self.tokens[parents], tokens[:, None]], axis=1)
        return parents

    def _may_improve(self, totals: np.ndarray, time: int) -> bool:
        """Whether a hypothesis could still come among the n best: its log p can only fall."""
        if len(self.finished) < self.n_best:
            return True
        bar = sorted((score for score, _ in self.finished), reverse=True)[self.n_best - 1]
        reach = max(self.penalty(time + 1), self.penalty(self.max_length))
        return bool((totals / reach > bar).any())

    def best(self) -> list[tuple[float, np.ndarray]]:
        return sorted(self.finished, key=lambda pair: -pair[0])[: self.n_best]  # a stable order


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest stand, the largest first and of equals the first; none that is -inf."""
    where = np.arange(scores.size)
    if k < scores.size:
        bar = np.partition(scores, scores.size - k)[scores.size - k]
        where = np.flatnonzero(scores >= bar)
    where = where[scores[where] > -np.inf]
    return where[np.argsort(-scores[where], kind="stable")[:k]]


def _one_by_one(
    network: _Network,
    state: Any,
    choose: Callable[[np.ndarray, np.ndarray, int], np.ndarray],
    n: int,
    padding: int,
) -> Decoded:
    """n sequences a source of the tokens that `choose(log_p, rows, time)` gives; rows leave."""
    rows = np.arange(network.batch * n)
    tokens = np.full((len(rows), network.max_length), padding, np.int64)
    counts, scores = np.zeros(len(rows), np.int64), np.zeros(len(rows))
    last = np.repeat(network.start, n)
    with no_grad():
        if n > 1:
            state = network.take(state, rows // n, network.batch)
        for time in range(network.max_length):
            if not len(rows):
                break
            log_p, state = network.log_probabilities(last, state, time)
            if not (log_p.max(axis=1) > -np.inf).all():
                raise ValueError(f"{network.name}: step: logits: a row that allows no token at all")
            last = choose(log_p, rows, time)
            tokens[rows, time] = last
            counts[rows] = time + 1
            scores[rows] += log_p[np.arange(len(rows)), last]
            going = np.flatnonzero(last != network.end)
            if 0 < len(going) < len(rows):
                state = network.take(state, going, len(rows))
            rows, last = rows[going], last[going]
    found = [(scores[i], tokens[i, : counts[i]]) for i in range(len(counts))]
    sources = [found[i * n : (i + 1) * n] for i in range(network.batch)]
    return _decoded(sources, n, network.end, padding)


def _decoded(
    sources: Sequence[Sequence[tuple[float, np.ndarray]]], n: int, end: int, padding: int
) -> Decoded:
    """Scores and tokens, a list of them a source, as arrays."""
    time = max((len(tokens) for found in sources for _, tokens in found), default=0)
    shape = (len(sources), n)
    tokens, lengths = np.full((*shape, time), padding, np.int64), np.zeros(shape, np.int64)
    scores = np.full(shape, -np.inf)
    for source, found in enumerate(sources):
        for k, (score, sequence) in enumerate(found):
            tokens[source, k, : len(sequence)] = sequence
            lengths[source, k] = len(sequence) - (sequence[-1] == end)
            scores[source, k] = score
    return Decoded(tokens, lengths, scores)


class _Network:
    """A step function with its first tokens, and the limits on what may be chosen."""

    def __init__(
        self,
        name: str,
        step: Step,
        start: Any,
        end: int,
        max_length: int,
        min_length: int,
        forbidden: Iterable[int],
    ) -> None:
        self.name, self.step, self.end = name, step, end
        self.max_length, self.min_length = max_length, min_length
        self.forbidden = np.array(sorted(set(forbidden)), np.int64)
        start = unwrap(start)
        self.device = device_of(start) if is_array(start) else "cpu"
        self.start = to_host(start) if is_array(start) else np.asarray(start)
        if self.start.ndim != 1:
            raise ShapeError(
                f"{name}: start: expected (batch,), a token a source, got {self.start.shape}"
            )
        if self.start.dtype.kind not in "iu" and self.start.size:
            raise DtypeError(f"{name}: start: expected integers, got {self.start.dtype}")
        self.batch = len(self.start)
        small = self.start.dtype.itemsize < 4  # holds few tokens
        self.dtype = np.int64 if small else self.start.dtype
        self.require("max_length", max_length, max_length >= 1, "1 or more")
        least = f"0 to {max_length - 1}, less than max_length"
        self.require("min_length", min_length, 0 <= min_length < max_length, least)

    def require(self, argument: str, value: Any, fits: bool, expected: str) -> None:
        if not fits:
            raise ValueError(f"{self.name}: {argument}: expected {expected}, got {value}")

    def log_probabilities(self, tokens: np.ndarray, state: Any, time: int) -> tuple[Any, Any]:
        """log p of each next token (rows, vocabulary), -inf where not allowed; the new state."""
        placed = to_device(tokens.astype(self.dtype), self.device)
        logits, state = self.step(placed, state)
        x = to_host(unwrap(logits)).astype(np.float64)
        self._require_logits(x, len(tokens))
        x -= np.maximum(x.max(axis=1, keepdims=True), -1e300)  # a row of -inf alone stays so
        x -= np.log(np.maximum(np.exp(x).sum(axis=1, keepdims=True), 1e-300))
        x[:, self.forbidden] = -np.inf
        if time < self.min_length:
            x[:, self.end] = -np.inf
        return x, state

    def _require_logits(self, logits: np.ndarray, rows: int) -> None:
        name = f"{self.name}: step: logits"
        if logits.ndim != 2 or len(logits) != rows:
            raise ShapeError(f"{name}: expected ({rows}, vocabulary), got {logits.shape}")
        last = logits.shape[1] - 1
        for argument, token in (("end", self.end), *(("forbidden", t) for t in self.forbidden)):
            self.require(argument, token, 0 <= token <= last, f"a token from 0 to {last}")
        if not (logits < np.inf).all():
            raise ValueError(f"{name}: expected numbers (-inf: never), got NaN or inf")

    def take(self, state: Any, rows: np.ndarray, count: int) -> Any:
        """The `rows` of a state of `count` rows."""
        index = to_device(rows, self.device)

        def visit(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: visit(item) for key, item in value.items()}
            if isinstance(value, (tuple, list)):
                items = [visit(item) for item in value]
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
            if not (isinstance(value, Tensor) or is_array(value)):
                return value
            if value.shape[:1] != (count,):
                raise ShapeError(
                    f"{self.name}: state: expected arrays with the {count} rows first, got "
                    f"{value.shape}"
                )
            if isinstance(value, Tensor):
                return ops.take(value, index, axis=0)
            return namespace(value).take(value, index, axis=0)

        return visit(state)
