"""Titles for articles: sequence to sequence, with attention and a prior for copying.

An encoder reads the article, a character at a time and in both directions; a decoder writes the
title, a character at a time, each from those before it, what it looks up in the article
(attention), and a prior: a title's characters mostly stand in its article (Sutskever et al. 2014,
Bahdanau et al. 2015, Vaswani et al. 2017 for the attention's form).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

import minidl as md
from minidl.backend import Array, namespace
from minidl.data import Batch, pad
from minidl.errors import SerializationError
from minidl.functional.losses import softmax_cross_entropy
from minidl.graph import unwrap, wrap
from minidl.layers import (
    LSTM,
    Bidirectional,
    ConditionalLayerNormalization,
    Dense,
    Dropout,
    Embedding,
    GlobalMaxPooling1D,
    Layer,
    LayerNormalization,
    MultiHeadAttention,
    ScaleShift,
)
from models.text import PADDING, UNKNOWN, Vocabulary, length_groups

LONGEST_ARTICLE = 128  # characters of an article that are read: its beginning says most
LONGEST_TITLE = 40  # and of a title that are learned, and written, unless said otherwise


class Memory(NamedTuple):
    """What the decoder needs of an article: rows first."""

    cache: Any  # the attention's keys and values, made once
    mask: Any  # (batch, source)
    pooled: Any  # (batch, size): the largest of each feature over the article
    prior: Any  # (batch, tokens), or None


class Titler(Layer):
    """Embedding -> 2 x bidirectional LSTM; 2 x LSTM -> attention -> Dense(size) -> Dense(tokens).

    A layer normalization stands before each LSTM and after the decoder's last; the decoder's take
    their scale and shift from the encoder's maximum over time. One embedding serves both sides.

    `call(source, mask, inputs)` gives the logits of each next token: (batch, source), (batch,
    source), (batch, time) -> (batch, time, tokens). The tokens are those of the vocabulary, and
    `edge` behind them, which stands before a title and after it: inputs are the edge and a title,
    targets the title and the edge. With `positions`, see `only_real`, it gives those rows only.

    copy: average the logits with exp(s) x + t, where x (tokens,) is 1 for the characters that
    stand in the article, and for the edge, without which no title ends; s and t (tokens,) are
    learned.
    longest: so many characters of a title are learned, and so many are written at most.
    For sizes alone, Titler(Vocabulary([chr(0x4E00 + i) for i in range(n - 3)])) has n tokens.
    """

    POSITIONS = 16_384  # how many, padding included, go through the encoder at once
    SLOPE = 0.2  # of the leaky relu
    # What exp(s) begins with. Of a headline's characters three in four are among the 85 or so that
    # its article begins with, the fourth among 3,400 others: each of the former is exp(4.7) times
    # as likely, and averaging halves what is added to the logits.
    FIRST_SCALE = 9.0

    def __init__(
        self,
        vocabulary: Vocabulary,
        copy: bool = True,
        dropout: float = 0.3,
        size: int = 128,
        heads: int = 8,
        longest: int = LONGEST_TITLE,
    ) -> None:
        self.vocabulary, self.copy, self.rate = vocabulary, copy, dropout
        self.size, self.heads, self.longest = size, heads, longest
        self.edge = vocabulary.sizes[0]
        self.tokens = self.edge + 1
        self.embedding = Embedding(self.tokens, size)
        self.dropout = Dropout(dropout)
        self.encoder_norms = [LayerNormalization(input_size=size) for _ in range(2)]
        self.encoder = [
            Bidirectional(LSTM(size // 2, return_sequences=True, input_size=size)) for _ in range(2)
        ]
        self.pool = GlobalMaxPooling1D()
        self.decoder_norms = [
            ConditionalLayerNormalization(input_size=size, condition_size=size) for _ in range(3)
        ]
        self.decoder = [LSTM(size, return_sequences=True, input_size=size) for _ in range(2)]
        self.attention = MultiHeadAttention(heads, size // heads, input_size=size)
        self.hidden = Dense(size, input_size=2 * size)
        self.output = Dense(self.tokens, input_size=size)
        self.prior = ScaleShift(input_size=self.tokens) if copy else None
        if self.prior is not None:
            self.prior.log_scale.assign_(np.full(self.tokens, np.log(self.FIRST_SCALE)))

    # From articles and the titles' beginnings to logits

    def call(self, source: Any, mask: Any, inputs: Any, positions: Any = None) -> md.Tensor:
        memory = self.encode(source, mask)
        x = self._look_up(self._read_title(inputs, memory), memory)
        rows = None
        if positions is not None:
            rows = positions // x.shape[1]
            x = md.take(md.reshape(x, (-1, x.shape[-1])), positions, axis=0)
        return self._score(x, memory.prior, rows)

    def encode(self, source: Any, mask: Any) -> Memory:
        """What the decoder needs of the articles: (batch, source) ids and their mask."""
        x = self._read_article(source, mask)
        prior = None if self.prior is None else self.prior(self._bag(source, mask))
        return Memory(self.attention.fixed_cache(x), mask, self.pool(x, mask), prior)

    def _read_article(self, source: Any, mask: Any) -> md.Tensor:
        """The encoder: (batch, source, size)."""
        x = self.dropout(self.embedding(source))
        for norm, lstm in zip(self.encoder_norms, self.encoder, strict=True):
            x = lstm(norm(x), mask=mask)
        return x

    def _bag(self, source: Any, mask: Any) -> md.Tensor:
        """1 for each character that stands in the article, and for the edge: (batch, tokens)."""
        ids, dtype = unwrap(source), self.embedding.embeddings.dtype
        xp = namespace(ids)
        known = xp.logical_and(unwrap(mask), ids > UNKNOWN)
        rows = xp.arange(len(ids))[:, None]
        counts = md.scatter_add(
            xp.zeros((len(ids), self.tokens), dtype), (rows, ids), known.astype(dtype)
        )
        held = xp.logical_or(counts > 0, xp.arange(self.tokens) == self.edge)
        return wrap(held.astype(dtype), None, None)

    def _read_title(self, inputs: Any, memory: Memory) -> md.Tensor:
        """The decoder's LSTMs over the beginnings of titles, before they look at the articles."""
        x = self.dropout(self.embedding(inputs))
        for norm, lstm in zip(self.decoder_norms, self.decoder, strict=False):
            x = lstm(norm(x, memory.pooled))
        return self.decoder_norms[-1](x, memory.pooled)

    def _look_up(self, x: md.Tensor, memory: Memory) -> md.Tensor:
        """Each position beside what it finds in the article."""
        found, _ = self.attention(x, cache=memory.cache, value_mask=memory.mask)
        return self.dropout(md.concatenate([x, found], axis=-1))

    def _score(self, x: md.Tensor, prior: md.Tensor | None, rows: Any = None) -> md.Tensor:
        """The logits of (..., 2 size); `rows` says which article's prior each is given."""
        x = self.dropout(md.leaky_relu(self.hidden(x), self.SLOPE))
        if prior is None:
            return self.output(x)
        # (output(x) + prior) / 2: what is the same at each position is added and halved once.
        prior = (prior + self.output.bias) * 0.5
        prior = prior[:, None] if rows is None else md.take(prior, rows, axis=0)
        return (x * 0.5) @ self.output.kernel + prior

    def loss(self, targets: Any, logits: Any, mask: Any = None) -> md.Tensor:
        """The mean over the titles' tokens of -log p(token | those before it, the article)."""
        return softmax_cross_entropy(logits, targets, mask)

    def step(self, tokens: Any, state: tuple[Memory, list]) -> tuple[md.Tensor, tuple]:
        """One token more, for `md.decoding`: tokens (rows,) -> logits (rows, tokens).

        The state is what `encode` gave, and the LSTMs' states, which are None before the first.
        """
        memory, states = state
        x, after = self.embedding(tokens), []
        for norm, lstm, before in zip(self.decoder_norms, self.decoder, states, strict=False):
            x, now = lstm.step(norm(x, memory.pooled), before)
            after.append(now)
        x = self.decoder_norms[-1](x, memory.pooled)
        x = self._look_up(x[:, None], memory)
        return self._score(x, memory.prior)[:, 0], (memory, after)

    # From text to text

    def encoded(self, title: str, practice: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """A title as the decoder's inputs and targets: behind an edge, and before one.

        practice: behind a padding token instead, which asks for another kind of text than titles.
        """
        ids = self.vocabulary.encode(title[: self.longest])
        first = PADDING if practice else self.edge
        return np.append(first, ids).astype(np.int32), np.append(ids, self.edge)

    def article(self, text: str) -> np.ndarray:
        """The ids of what is read of an article."""
        return self.vocabulary.encode(text[:LONGEST_ARTICLE])

    def text(self, tokens: Sequence[int]) -> str:
        """What stands for the tokens; an unknown one is 〓."""
        characters = self.vocabulary.characters
        return "".join(characters[t - 2] if 2 <= t < self.edge else "〓" for t in tokens)

    def batches(
        self,
        titles: Sequence[str],
        articles: Sequence[str],
        batch_size: int = 32,
        practice: Sequence[tuple[str, str]] = (),
        **options: Any,
    ) -> md.data.Batches:
        """Batches to train on; `practice`: (text, article) pairs that look like titles, but are
        none (see `encoded`); options as those of `Batches`."""
        pairs = [self.encoded(title) for title in titles]
        pairs += [self.encoded(text, practice=True) for text, _ in practice]
        sources = [self.article(text) for text in [*articles, *(text for _, text in practice)]]
        return md.data.Batches(
            (sources, [inputs for inputs, _ in pairs]),
            [targets for _, targets in pairs],
            batch_size,
            input_limits=self.tokens,
            target_limits=self.tokens,
            transform=only_real,
            **options,
        )

    def title_losses(self, titles: Sequence[str], articles: Sequence[str]) -> tuple[Array, Array]:
        """For each article: the sum over its title's tokens of -log p, and how many they are; 0 and
        0 for an empty one, which is not read."""
        sums, counts = np.zeros(len(titles)), np.zeros(len(titles), np.int64)
        pairs = [self.encoded(title) for title in titles]
        with md.evaluating(self):
            for rows in self._groups(articles):
                source, mask = self._place([self.article(articles[i]) for i in rows])
                inputs, _ = self._place([pairs[i][0] for i in rows])
                targets, real = self._place([pairs[i][1] for i in rows])
                logits = self(source, mask, inputs)
                losses = softmax_cross_entropy(logits, targets, real, "none")
                sums[rows] = losses.numpy().sum(axis=1, dtype=np.float64)
                counts[rows] = [len(pairs[i][0]) for i in rows]
        return sums, counts

    def titles(self, articles: Sequence[str], width: int = 5, **options: Any) -> list[str]:
        """A title for each article, by beam search; width 1 is greedy. An empty one gets none.

        options: of `md.decoding.beam_search`; the length penalty is "mean", unless given.
        """
        found = [""] * len(articles)
        with md.evaluating(self):
            for rows in self._groups(articles):
                decoded = self._search([articles[i] for i in rows], width, options)
                for place, i in enumerate(rows):
                    found[i] = self.text(decoded.sequence(place))
        return found

    def explain(self, article: str, width: int = 5, **options: Any) -> tuple[str, np.ndarray]:
        """A title, and where each of its characters looked: (characters, article), mean of heads.

        The weights of a character are those of the step that wrote it.
        """
        with md.evaluating(self):
            tokens = self._search([article], width, options).sequence(0)
            source, mask = self._place([self.article(article)])
            inputs, _ = self._place([np.array([self.edge, *tokens], np.int32)])
            x = self._read_title(inputs, self.encode(source, mask))
            _, weights = self.attention(
                x, self._read_article(source, mask), value_mask=mask, return_attention_scores=True
            )
        return self.text(tokens), weights.numpy()[0].mean(axis=0)[: len(tokens)]

    def _search(self, articles: Sequence[str], width: int, options: dict) -> md.decoding.Decoded:
        source, mask = self._place([self.article(text) for text in articles])
        start, _ = self._place([[self.edge]] * len(articles))
        state = (self.encode(source, mask), [None] * len(self.decoder))
        options = {
            "max_length": self.longest + 1,
            "min_length": 1,
            "length_penalty": "mean",
            "forbidden": (PADDING, UNKNOWN),
        } | options
        return md.decoding.beam_search(
            self.step, state, start[:, 0], self.edge, width=width, **options
        )

    def _groups(self, articles: Sequence[str]) -> Any:
        return length_groups((min(len(a), LONGEST_ARTICLE) for a in articles), self.POSITIONS)

    def _place(self, sequences: Sequence[Any]) -> tuple[md.Tensor, md.Tensor]:
        ids, mask = pad(sequences)
        device = self.device
        return md.tensor(ids.astype(np.int32), device=device), md.tensor(mask, device=device)

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights, the vocabulary and what the network is made of to `path`."""
        names = ("copy", "size", "heads", "longest")
        network = {name: getattr(self, name) for name in names} | {"dropout": self.rate}
        md.save(path, model=self, vocabulary=self.vocabulary.state_dict(), titler=network)


def only_real(batch: Batch) -> Batch:
    """A batch in which the targets are only those that are there, in one row.

    The masks of inputs and targets become `positions`: where the real ones are, counted through.
    Most of a step's work is the product with the vocabulary, which padding then has no part in.
    """
    source, mask, inputs, real = batch.inputs
    positions = np.flatnonzero(real)
    targets = batch.targets.reshape(-1)[positions]
    return Batch((source, mask, inputs, positions), targets, np.ones(len(targets), bool))


def load(path: str | os.PathLike) -> Titler:
    """The titler that `save` wrote to `path`, ready to write `titles`."""
    contents = md.load(path)
    if "titler" not in contents:
        raise SerializationError(
            f"{os.fspath(path)}: expected what Titler.save wrote, got {sorted(contents)}"
        )
    model = Titler(Vocabulary(**contents["vocabulary"]), **contents["titler"])
    model.load_state_dict(contents["model"])
    model.eval()
    return model
