"""Text classification by self-attention: which of two kinds is a text, praise or complaint?

Characters are embedded, told their positions, look at one another in a layer of multi-head
attention (Vaswani et al. 2017), and their mean is weighed by one logistic unit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

import minidl as md
from minidl.data import pad
from minidl.errors import SerializationError
from minidl.functional.losses import binary_cross_entropy_with_logits
from minidl.layers import (
    Dense,
    Dropout,
    Embedding,
    GlobalAveragePooling1D,
    Layer,
    MultiHeadAttention,
    SinusoidalPositions,
)
from models.text import Vocabulary, length_groups

PATTERNS: dict[str, dict[str, Any]] = {
    "full": {},
    "local": {"pattern": "local", "window": 8},
    "atrous": {"pattern": "atrous", "stride": 8},
    "sparse": {"pattern": "sparse", "window": 8, "stride": 8},
}


class AttentionClassifier(Layer):
    """The article's network: Embedding + positions -> self-attention -> mean -> Dropout -> Dense.

    `call(ids, mask)` gives a logit for each text: (batch, time), (batch, time) -> (batch,).
    attention: which characters one may look at, as in `MultiHeadAttention`: "full", or "local",
    "atrous", "sparse", whose cost falls with the pattern. `size` is that of the embedding and of
    all heads together. Padding changes nothing.
    """

    POSITIONS = 16_384  # how many, padding included, go through the network at once
    RATE = 0.5
    LONGEST = 200  # characters: the rest of a longer text is not read
    SCALE = 0.05  # of the positions: that of an embedding's first values

    def __init__(
        self, vocabulary: Vocabulary, size: int = 128, heads: int = 8, attention: str = "full"
    ) -> None:
        if attention not in PATTERNS:
            raise ValueError(
                f"{type(self).__name__}: attention: expected one of {', '.join(PATTERNS)}, got "
                f"{attention!r}"
            )
        self.vocabulary, self.size, self.heads, self.attention = vocabulary, size, heads, attention
        self._make_input()
        self.positions = SinusoidalPositions(scale=self.SCALE)
        self.attend = MultiHeadAttention(
            heads, size // heads, input_size=size, **PATTERNS[attention]
        )
        self.pooling = GlobalAveragePooling1D()
        self.dropout = Dropout(self.RATE)
        self.logit = Dense(1, input_size=size)

    def _make_input(self) -> None:
        self.embedding = Embedding(self.vocabulary.sizes[0], self.size)

    def _input(self, ids: Any) -> md.Tensor:
        return self.embedding(ids)

    def embed(self, ids: Any) -> md.Tensor:
        """Characters, and where they stand: (batch, time, size)."""
        return self.positions(self._input(ids))

    def look(self, x: Any, mask: Any) -> md.Tensor:
        """What the characters see in one another."""
        return self.attend(x, value_mask=mask)

    def call(self, ids: Any, mask: Any) -> md.Tensor:
        x = self.look(self.embed(ids), mask)
        return self.logit(self.dropout(self.pooling(x, mask)))[:, 0]

    def loss(self, labels: Any, logits: Any) -> md.Tensor:
        """Binary cross entropy, the mean over texts."""
        return binary_cross_entropy_with_logits(logits, labels)

    def encode(self, text: str) -> np.ndarray:
        """The ids of the characters that are read."""
        return self.vocabulary.encode(text[: self.LONGEST])

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """p(label 1) of each text; of an empty one what the network says of nothing at all."""
        rows = [self.encode(text or " ") for text in texts]
        found = np.empty(len(rows))
        with md.evaluating(self):
            for group in length_groups(map(len, rows), self.POSITIONS):
                found[group] = md.sigmoid(self(*self._batch([rows[i] for i in group]))).numpy()
        return found

    def _batch(self, rows: Sequence[np.ndarray]) -> tuple[md.Tensor, md.Tensor]:
        ids, mask = pad(rows)
        return md.tensor(ids, device=self.device), md.tensor(mask, device=self.device)

    def explain(self, text: str) -> np.ndarray:
        """Where each head looks: (heads, time, time), a row for each character that looks."""
        with md.evaluating(self):
            ids, mask = self._batch([self.encode(text)])
            x = self.embed(ids)
            _, weights = self.attend(x, value_mask=mask, return_attention_scores=True)
        return weights.numpy()[0]

    def save(self, path: str | os.PathLike) -> None:
        """Write the weights, the vocabulary and what the network is made of to `path`."""
        names = ("size", "heads", "attention")
        network = {"name": type(self).__name__, **{name: getattr(self, name) for name in names}}
        md.save(path, model=self, vocabulary=self.vocabulary.state_dict(), network=network)


class PairClassifier(AttentionClassifier):
    """Reads characters and pairs of neighbours, and keeps beside what they see what they are.

    Embeddings of a character and of its pair to the left, added -> x + attention(x) -> mean. The
    vocabulary needs pairs; ids are (batch, time, 2). In training more than half of all characters
    and of all pairs are dropped, each as a whole: there are so many rare pairs that the texts are
    learned by heart otherwise.
    """

    FORGET = 0.6

    def _make_input(self) -> None:
        super()._make_input()
        if not self.vocabulary.pairs:
            raise ValueError("PairClassifier: vocabulary: expected pairs; give it least_pair")
        self.pair = Embedding(self.vocabulary.sizes[1], self.size)
        self.forget = Dropout(self.FORGET, noise_shape=(None, None, 1))

    def _input(self, ids: Any) -> md.Tensor:
        character, pair = self.embedding(ids[:, :, 0]), self.pair(ids[:, :, 1])
        return self.forget(character) + self.forget(pair)

    def look(self, x: Any, mask: Any) -> md.Tensor:
        return x + super().look(x, mask)

    def encode(self, text: str) -> np.ndarray:
        return super().encode(text)[:, :2]


def load(path: str | os.PathLike) -> AttentionClassifier:
    """The classifier that `save` wrote to `path`."""
    contents = md.load(path)
    network = dict(contents.get("network", {}))
    networks = {cls.__name__: cls for cls in (AttentionClassifier, PairClassifier)}
    if network.get("name") not in networks:
        raise SerializationError(
            f"{os.fspath(path)}: expected what AttentionClassifier.save wrote, got "
            f"{sorted(contents)}"
        )
    model = networks[network.pop("name")](Vocabulary(**contents["vocabulary"]), **network)
    model.load_state_dict(contents["model"])
    model.eval()
    return model
