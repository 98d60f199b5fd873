"""Spectra of a survey: the data of the example `spectra`, simulated, or the files of a competition.

Nobody packages labelled survey spectra, so by default they are SIMULATED, from what is known of the
light of stars, galaxies and quasars (`examples.sky`). Or they are read: those of the 2018 LAMOST
competition, or others in its format.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from examples import sky
from examples.sky import POINTS
from minidl.errors import CorpusError
from models.spectra import CLASSES

NAMES = {name: i for i, name in enumerate(CLASSES)} | {"qso": CLASSES.index("quasar")}
SHARES = {"star": 0.70, "galaxy": 0.11, "quasar": 0.05, "unknown": 0.14}
SIZES = {"train": 6_000, "validation": 1_500, "test": 4_000}
CHUNK = 1_000  # spectra that are made at once
LEAST = 10  # spectra of a class from which each split gets one


@dataclass(frozen=True)
class Spectra:
    """flux (n, 2600) float32 in no particular unit, labels (n,) int64; redshift and signal to noise
    (n,), nan where nobody knows."""

    flux: np.ndarray
    labels: np.ndarray
    redshift: np.ndarray
    signal: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice) -> Spectra:
        """Some of them."""
        return Spectra(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Parts:
    """Three splits; no spectrum stands in two of them."""

    name: str
    train: Spectra
    validation: Spectra
    test: Spectra


def load(folder: str | Path | None = None, scale: float = 1.0) -> Parts:
    """Simulated spectra, `scale` times as many as SIZES says, or those of a folder.

    Raises CorpusError, naming file and line, for what cannot be read.
    """
    if folder is not None:
        return read(Path(folder))
    sizes = {part: max(40, round(scale * size)) for part, size in SIZES.items()}
    made = [simulate(size, [0, i]) for i, size in enumerate(sizes.values())]
    return Parts("SIMULATED survey spectra", *made)


# --- Simulated ------------------------------------------------------------------------------------


def simulate(count: int, seed: int | Sequence[int]) -> Spectra:
    """So many spectra, in an order of chance, the classes as unbalanced as SHARES says."""
    generator = np.random.default_rng(seed)
    shares = np.array([SHARES[name] for name in CLASSES])
    edges = np.rint(np.cumsum(shares) * count).astype(int)
    labels = generator.permutation(np.searchsorted(edges, np.arange(count), side="right"))
    parts = [
        _simulated(labels[start : start + CHUNK], generator) for start in range(0, count, CHUNK)
    ]
    return Spectra(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _simulated(labels: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """flux, labels, redshift and signal of spectra with these labels."""
    kinds = {name: np.flatnonzero(labels == i) for name, i in NAMES.items()}
    unknown = generator.permutation(kinds["unknown"])
    some = np.array_split(unknown, 10)  # what nobody could tell: 6 stars, 2 galaxies, 2 quasars
    made = {
        sky.stars: np.concatenate([kinds["star"], *some[:6]]),
        sky.galaxies: np.concatenate([kinds["galaxy"], *some[6:8]]),
        sky.quasars: np.concatenate([kinds["quasar"], *some[8:]]),
    }
    flux, redshift = np.empty((len(labels), POINTS)), np.empty(len(labels))
    for make, rows in made.items():
        flux[rows], redshift[rows] = make(len(rows), generator)
    signal = sky.signal_to_noise(labels == NAMES["unknown"], generator)
    return sky.observe(flux, signal, generator), labels, redshift, signal


# --- Read -----------------------------------------------------------------------------------------


def read(folder: Path) -> Parts:
    """A folder with one index, a CSV file of `id,type`, and an `ID.txt` of 2,600 comma-separated
    numbers for each id, there or in folders below.

    Types: star, galaxy, qso (or quasar), unknown. Eight tenths train, one validates, one tests, of
    each class and by one fixed shuffle.
    """
    index = _index(folder)
    files = {path.stem: path for path in folder.rglob("*.txt")}
    flux = np.empty((len(index), POINTS), np.float32)
    for row, name in enumerate(index):
        if name not in files:
            raise CorpusError(f"{folder / name}.txt: expected a spectrum, found no file; add it")
        flux[row] = _numbers(files[name])
    labels = np.array(list(index.values()), np.int64)
    unheard = np.full(len(labels), np.nan)
    spectra = Spectra(flux, labels, unheard, unheard)
    return Parts(folder.name, *(spectra.take(rows) for rows in split(labels, folder)))


def _index(folder: Path) -> dict[str, int]:
    """Each id's class, from the folder's only CSV file."""
    paths = sorted(folder.glob("*.csv"))
    if len(paths) != 1:
        found = ", ".join(path.name for path in paths) or "none"
        raise CorpusError(f"{folder}: expected one CSV file, the index, found {found}; mend it")
    path, index = paths[0], {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        if [name.strip() for name in next(lines, [])] != ["id", "type"]:
            raise CorpusError(f"{path}: expected the first line to be id,type; add it")
        for number, line in enumerate(lines, 2):
            if not line:
                continue
            name, kind = (part.strip() for part in line) if len(line) == 2 else ("", "")
            if not name or kind not in NAMES or name in index:
                raise CorpusError(
                    f"{path}: line {number}: expected a new id and one of {', '.join(NAMES)}, got "
                    f"{','.join(line)!r}; mend the line"
                )
            index[name] = NAMES[kind]
    return index


def _numbers(path: Path) -> np.ndarray:
    text = path.read_text("utf-8", errors="replace").strip().rstrip(",")
    try:
        numbers = np.array(text.split(","), np.float32)
    except ValueError as error:
        raise CorpusError(f"{path}: expected comma-separated numbers: {error}") from error
    if len(numbers) != POINTS:
        raise CorpusError(f"{path}: expected {POINTS:,} numbers, got {len(numbers):,}; mend it")
    return numbers


def split(labels: np.ndarray, name: object) -> list[np.ndarray]:
    """Rows to train, validate and test with: 80, 10 and 10 % of each class, in an order of chance.

    Raises CorpusError unless each class has enough of them.
    """
    generator = np.random.default_rng(0)
    parts: list[list[np.ndarray]] = [[], [], []]
    for i, kind in enumerate(CLASSES):
        rows = generator.permutation(np.flatnonzero(labels == i))
        if len(rows) < LEAST:
            raise CorpusError(
                f"{name}: expected at least {LEAST} spectra of each class, got {len(rows)} of "
                f"{kind}; add some"
            )
        tenth = len(rows) // 10
        for part, own in zip(parts, np.split(rows, [-2 * tenth, -tenth]), strict=True):
            part.append(own)
    return [generator.permutation(np.concatenate(part)) for part in parts]
