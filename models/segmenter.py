"""Chinese word segmentation: convolutions over characters, then a linear-chain CRF over tags.

A sentence's words are written as one tag a character: s(ingle), or b(egin) m(iddle)* e(nd). The
network scores each tag at each character (the emissions); the CRF scores neighbouring tags, knows
which cannot follow one another, and sums or maximises over whole paths (Lafferty, McCallum and
Pereira 2001; with a network below it: Collobert et al. 2011).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import minidl as md
from minidl.data import pad
from minidl.errors import SerializationError, ShapeError
from minidl.functional.losses import softmax_cross_entropy
from minidl.layers import CRF, Conv1D, Dense, Dropout, Embedding, Layer
from models.text import Vocabulary, length_groups

TAGS = "sbme"
SINGLE, BEGIN, MIDDLE, END = range(4)
STARTS = np.array([True, True, False, False])  # a sentence begins with s or b,
ENDS = np.array([True, False, False, True])  # and ends with s or e
# After the end of a word (s, e) comes a beginning (s, b); inside one (b, m), its rest (m, e).
ALLOWED = np.where(ENDS[:, None], STARTS, ~STARTS)
LEGAL = {"allowed": ALLOWED, "allowed_start": STARTS, "allowed_end": ENDS}


def tags_of(words: Iterable[str]) -> list[int]:
    """One tag for each character of the words."""
    tags: list[int] = []
    for word in filter(None, words):
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


class Segmenter(Layer):
    """The article's network: Embedding -> 3 x Conv1D(relu) -> Dense to the tags -> CRF.

    `call(ids, mask)` gives the emissions: (batch, time), (batch, time) -> (batch, time, 4).
    decoder: "crf", or for comparison "softmax": trained for each character's tag on its own.
    Positions that the mask leaves out are 0 before every convolution, as if beyond the sentence's
    ends, so padding changes nothing.
    """

    POSITIONS = 16_384  # how many, padding included, go through the network at once in `segment`
    LAYERS, RATE = 3, 0.2

    def __init__(self, vocabulary: Vocabulary, decoder: str = "crf", size: int = 128) -> None:
        if decoder not in ("crf", "softmax"):
            raise ValueError(f"Segmenter: decoder: expected 'crf' or 'softmax', got {decoder!r}")
        self.vocabulary, self.decoder, self.size = vocabulary, decoder, size
        self._make_input()
        self.convolutions = [self._convolution() for _ in range(self.LAYERS)]
        self.emissions = Dense(len(TAGS), input_size=size)
        self.crf = CRF(len(TAGS), **LEGAL)
        self.crf.trainable = decoder == "crf"  # else its scores stay 0, and it knows what is legal

    def _make_input(self) -> None:
        self.embedding = Embedding(self.vocabulary.sizes[0], self.size)
        self.dropout = Dropout(self.RATE)

    def _input(self, ids: Any) -> md.Tensor:
        return self.dropout(self.embedding(ids))

    def _convolution(self) -> Layer:
        return Conv1D(self.size, 3, padding="same", activation="relu", input_size=self.size)

    def call(self, ids: Any, mask: Any) -> md.Tensor:
        x = self._input(ids)
        real = mask[:, :, None].astype(x.dtype)
        for convolution in self.convolutions:
            x = convolution(x * real)
        return self.emissions(x)

    def loss(self, tags: Any, emissions: Any, mask: Any) -> md.Tensor:
        """The mean over sentences of -log p(tags | sentence).

        With the CRF that is log Z - score(path), else the sum of the characters' cross entropies.
        """
        if self.decoder == "softmax":
            return softmax_cross_entropy(emissions, tags, mask, "sum") / len(tags)
        return self.crf.loss(emissions, tags, mask)

    def tags(self, emissions: Any, mask: Any, legal: bool = True) -> Any:
        """The best tags (batch, time), -1 where masked.

        legal: the best path, which without a trained CRF is the best by emissions alone among those
        that its transitions allow; else each character's best tag, whatever its neighbours are.
        """
        if legal:
            return self.crf(emissions, mask)
        return md.where(mask, md.argmax(emissions, axis=-1), -1)

    def segment(self, texts: Sequence[str], legal: bool = True) -> list[list[str]]:
        """The words of each text; no words for an empty one. `legal`: see `tags`."""
        words: list[list[str]] = [[] for _ in texts]
        with md.evaluating(self):
            for rows in length_groups(map(len, texts), self.POSITIONS):
                ids, mask = self._batch([texts[i] for i in rows])
                tags = self.tags(self(ids, mask), mask, legal).numpy()
                for i, path in zip(rows, tags, strict=True):
                    words[i] = words_of(texts[i], path[: len(texts[i])].tolist())
        return words

    def _batch(self, texts: Sequence[str]) -> tuple[md.Tensor, md.Tensor]:
        ids, mask = pad([self.vocabulary.encode(text) for text in texts])
        return md.tensor(ids, device=self.device), md.tensor(mask, device=self.device)

    def explain(self, text: str) -> dict[str, np.ndarray]:
        """What the CRF makes of one text: emissions, transitions, best path and marginals.

        The marginals p(tag | text), (time, tags), are the gradient of log Z by the emissions.
        """
        with md.evaluating(self):
            ids, mask = self._batch([text])
            emissions = self(ids, mask)
            path, marginals = self.crf(emissions, mask), self.crf.marginals(emissions, mask)
        return {
            "emissions": emissions.numpy()[0],
            "transitions": self.crf.transitions.numpy(),
            "path": path.numpy()[0],
            "marginals": marginals.numpy()[0],
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights, the vocabulary and what the network is made of to `path`."""
        network = {"name": type(self).__name__, "decoder": self.decoder, "size": self.size}
        md.save(path, model=self, vocabulary=self.vocabulary.state_dict(), network=network)


class LargeSegmenter(Segmenter):
    """More to see and deeper: characters and the pairs to their left and right; gated residuals.

    Embeddings (size - 32, 32 and 32) -> Dense -> 4 x GatedConvolution -> Dense to the tags -> CRF.
    The vocabulary needs pairs; ids are (batch, time, 3). In training many a pair is dropped as a
    whole, each by itself: there are so many rare ones that the text is learned by heart otherwise.
    """

    LAYERS, RATE, PAIR_SIZE, PAIR_RATE = 4, 0.4, 32, 0.4

    def _make_input(self) -> None:
        characters, pairs = self.vocabulary.sizes
        if not self.vocabulary.pairs:
            raise ValueError("LargeSegmenter: vocabulary: expected pairs; give it least_pair")
        self.character = Embedding(characters, self.size - self.PAIR_SIZE)
        self.left = Embedding(pairs, self.PAIR_SIZE)
        self.right = Embedding(pairs, self.PAIR_SIZE)
        self.dropout = Dropout(self.RATE)
        self.forget = Dropout(self.PAIR_RATE, noise_shape=(None, None, 1))
        self.project = Dense(self.size, input_size=self.size + self.PAIR_SIZE)

    def _input(self, ids: Any) -> md.Tensor:
        character, left, right = (ids[:, :, column] for column in range(3))
        pairs = self.forget(self.left(left)), self.forget(self.right(right))
        parts = self.dropout(md.concatenate([self.character(character), *pairs], axis=-1))
        return self.project(parts)

    def _convolution(self) -> Layer:
        return GatedConvolution(self.size)


class GatedConvolution(Layer):
    """x + dropout(value) * sigmoid(gate), both convolutions of x (Dauphin et al. 2017)."""

    def __init__(self, size: int, kernel_size: int = 3, dropout: float = 0.2) -> None:
        self.size = size
        self.convolution = Conv1D(2 * size, kernel_size, padding="same", input_size=size)
        self.dropout = Dropout(dropout)

    def call(self, x: Any) -> md.Tensor:
        both = self.convolution(x)
        value, gate = both[:, :, : self.size], both[:, :, self.size :]
        return x + self.dropout(value) * md.sigmoid(gate)


def load(path: str | os.PathLike) -> Segmenter:
    """The segmenter that `save` wrote to `path`, ready to `segment`."""
    contents = md.load(path)
    networks = {cls.__name__: cls for cls in (Segmenter, LargeSegmenter)}
    network = contents.get("network", {})
    if network.get("name") not in networks:
        raise SerializationError(
            f"{os.fspath(path)}: expected what Segmenter.save wrote, got {sorted(contents)}"
        )
    model = networks[network["name"]](
        Vocabulary(**contents["vocabulary"]), network["decoder"], network["size"]
    )
    model.load_state_dict(contents["model"])
    model.eval()
    return model
