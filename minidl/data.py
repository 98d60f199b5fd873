"""Batches: from arrays and sequences of any length to what a training step takes, on the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl import random
from minidl.errors import SerializationError, ShapeError


class Batch(NamedTuple):
    """What `fit` takes: model(*inputs) or model(inputs), then loss(targets, output, mask)."""

    inputs: Any
    targets: Any = None
    mask: Any = None


def pad(
    sequences: Sequence[Any], value: float = 0, length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences (time, ...) of several lengths as one array, and its mask (True = a real position).

    Gives (n, length, ...) and (n, length), where `length` is the longest one's if None. Raises
    ShapeError where a sequence is longer than `length`, or where their other sides differ.
    """
    arrays = [np.asarray(s) for s in sequences]
    lengths = np.array([len(a) for a in arrays], dtype=np.intp)
    longest = int(lengths.max(initial=0))
    if length is not None and longest > length:
        raise ShapeError(f"pad: length: expected at least {longest}, got {length}; cut first")
    items = {a.shape[1:] for a in arrays}
    if len(items) > 1:
        raise ShapeError(f"pad: sequences: expected (time, ...) of one kind, got {sorted(items)}")
    filled = [a for a in arrays if len(a)] or arrays[:1]  # [] is of floats: it says nothing
    dtype = np.result_type(*filled) if filled else np.float32
    mask = np.arange(longest if length is None else length) < lengths[:, None]
    out = np.full(mask.shape + (items.pop() if items else ()), value, dtype)
    if longest:
        out[mask] = np.concatenate(filled)
    return out, mask


class _Column:
    """One input or target: an array with an item a row, or a list of sequences to pad."""

    def __init__(self, name: str, values: Any, limit: int | None) -> None:
        self.name, self.limit = name, limit
        self.ragged = isinstance(values, list) and bool(values) and hasattr(values[0], "__len__")
        self.values: Any = [np.asarray(v) for v in values] if self.ragged else np.asarray(values)
        if isinstance(self.values, np.ndarray) and self.values.dtype == object:
            raise ShapeError(f"Batches: {name}: expected an array or a list of sequences")

    def __len__(self) -> int:
        return len(self.values)

    def lengths(self) -> np.ndarray:
        return np.array([len(v) for v in self.values])

    def take(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """The items of `rows`, padded where they are sequences, and then their mask."""
        if not self.ragged:
            array, mask = self.values[rows], None
        else:
            array, mask = pad([self.values[i] for i in rows])
        self._check(array, rows)
        return array, mask

    def _check(self, array: np.ndarray, rows: np.ndarray) -> None:
        if self.limit is None or not array.size:
            return
        if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= self.limit:
            bad = (array < 0) | (array >= self.limit)
            where = np.argwhere(bad)[:1]
            item = f", in item {rows[where[0][0]]}" if len(where) else ""
            raise ValueError(
                f"Batches: {self.name}: expected integers in [0, {self.limit}), got {array.dtype} "
                f"from {array.min()} to {array.max()}{item}"
            )


class Batches:
    """Batches of a data set, in a new order each epoch: iterate once an epoch.

    inputs, targets: an array with an item a row, or a list of sequences of any length, or a tuple
    of several of these. A list is padded to the longest of the batch and followed by its mask, so
    `Batches(sentences, labels)` gives `Batch((ids, mask), labels)`; when a target is a list its
    mask is the batch's own: `Batches(sentences, tags)` gives `Batch((ids, mask), tags, mask)`.

    shuffle: new order each epoch, drawn from `seed` (None: from minidl's generator, now) and the
    number of the epoch alone.
    bucket: sort so many batches' worth of items by length before cutting them into batches, which
    then need little padding and come in random order; 0 for none.
    input_limits, target_limits: each column's ids must be in [0, limit); one number, or one for
    each column (None: anything goes). Checked as a batch is made, since a GPU does not look.
    transform: a function from Batch to Batch, applied last.

    `state_dict` holds the place in the epoch, so a run goes on with exactly the batches it would
    have had. Raises ShapeError unless all columns are of one length.
    """

    def __init__(
        self,
        inputs: Any,
        targets: Any = None,
        batch_size: int = 32,
        shuffle: bool = True,
        seed: int | None = None,
        bucket: int = 0,
        drop_last: bool = False,
        input_limits: Any = None,
        target_limits: Any = None,
        transform: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self._inputs = _columns("inputs", inputs, input_limits)
        self._targets = [] if targets is None else _columns("targets", targets, target_limits)
        self._single_target = not isinstance(targets, tuple)
        counts = {len(column) for column in self._inputs + self._targets}
        if len(counts) != 1:
            raise ShapeError(f"Batches: expected columns of one length, got {sorted(counts)}")
        if batch_size < 1:
            raise ValueError(f"Batches: batch_size: expected 1 or more, got {batch_size}")
        self.size = counts.pop()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.bucket = bucket
        self.drop_last = drop_last
        self.transform = transform
        self.seed = int(random.generator().integers(0, 2**31)) if seed is None else seed
        self.epoch = 0  # the epoch under way, or to come
        self.position = 0  # how many of its batches have been given
        self._resumed = False

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        if self.position and not self._resumed:  # the last epoch was left before its end
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        for rows in self._order()[self.position :]:
            self.position += 1
            yield self._batch(rows)
        self.epoch, self.position = self.epoch + 1, 0

    def _order(self) -> list[np.ndarray]:
        """The rows of each batch of this epoch."""
        generator = np.random.default_rng([self.seed, self.epoch])
        rows = generator.permutation(self.size) if self.shuffle else np.arange(self.size)
        ragged = [c for c in self._inputs + self._targets if c.ragged]
        if self.bucket and ragged:
            lengths = np.sum([column.lengths() for column in ragged], axis=0)
            pool = self.bucket * self.batch_size
            parts = [rows[i : i + pool] for i in range(0, self.size, pool)]
            parts = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
            rows = np.concatenate(parts) if parts else rows
        batches = [rows[i : i + self.batch_size] for i in range(0, self.size, self.batch_size)]
        batches = batches[: len(self)]
        if self.bucket and self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _batch(self, rows: np.ndarray) -> Batch:
        taken = [column.take(rows) for column in self._inputs]
        inputs = tuple(a for pair in taken for a in pair if a is not None)
        aims = [column.take(rows) for column in self._targets]
        arrays = tuple(array for array, _ in aims)
        targets = None if not aims else arrays[0] if self._single_target else arrays
        mask = next((m for _, m in aims if m is not None), None)
        batch = Batch(inputs[0] if len(inputs) == 1 else inputs, targets, mask)
        return batch if self.transform is None else self.transform(batch)

    def state_dict(self) -> dict[str, int]:
        """Where in which order the next batch stands."""
        return {
            "seed": self.seed, "epoch": self.epoch, "position": self.position,
            "size": self.size, "batch_size": self.batch_size,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken; the next iteration finishes that epoch.

        Raises SerializationError if it is of another number of items or another batch size.
        """
        expected, got = (self.size, self.batch_size), (state["size"], state["batch_size"])
        if expected != got:
            raise SerializationError(
                f"Batches: the state is of {got[0]} items in batches of {got[1]}, these are "
                f"{expected[0]} in batches of {expected[1]}; give the same data"
            )
        self.seed, self.epoch = state["seed"], state["epoch"]
        self.position = state["position"]
        self._resumed = self.position > 0


def _columns(name: str, values: Any, limits: Any) -> list[_Column]:
    several = values if isinstance(values, tuple) else (values,)
    each = limits if isinstance(limits, (tuple, list)) else (limits,) * len(several)
    if len(each) != len(several):
        raise ValueError(f"Batches: {name}: expected {len(several)} limits, got {len(each)}")
    return [_Column(name, v, limit) for v, limit in zip(several, each, strict=True)]
