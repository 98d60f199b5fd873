"""Batches: from arrays and sequences of any length to what a training step takes, on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def balanced_class_weights(labels: Any, classes: int | None = None) -> np.ndarray:
    """n / (classes * count) of each class in `labels` (n integers), so that all classes weigh the
    same: for a loss's `class_weights`. classes: how many (None: the largest label + 1). A class
    without a label gets 0. As scikit-learn's "balanced".
    """
    labels = np.asarray(labels).reshape(-1)
    if labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
        raise ValueError(
            f"balanced_class_weights: labels: expected integers from 0 on, got {labels.dtype}"
            + (f" down to {labels.min()}" if labels.size else " without entries")
        )
    counts = np.bincount(labels, minlength=classes or 0)
    if classes is not None and len(counts) > classes:
        raise ValueError(
            f"balanced_class_weights: labels: expected 0 to {classes - 1}, got {labels.max()}"
        )
    weights = len(labels) / (len(counts) * np.maximum(counts, 1)) * (counts > 0)
    return weights.astype(np.float32)


def require_function(name: str, value: Any) -> None:
    """TypeError for a list, a word or a class in the place of a transform."""
    if isinstance(value, type) or not callable(value):
        raise TypeError(
            f"{name}: expected functions from Batch to Batch, such as Cutout(3), got {value!r}; "
            "give several as Compose(one, another)"
        )


class _Column:
    """One input or target: an array with an item a row, or a list of sequences to pad."""

    def __init__(self, name: str, values: Any, limit: int | None) -> None:
        self.name, self.limit = name, limit
        self.ragged = isinstance(values, list) and bool(values) and np.ndim(values[0]) > 0
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


_ORDER = ("size", "batch_size", "shuffle", "bucket", "drop_last")  # what an order depends on


class Batches:
    """Batches of a data set, in a new order each epoch: iterate once an epoch.

    inputs, targets: an array with an item a row, or a list of sequences of any length, or a tuple
    of several of these. A list is padded to the longest of the batch and followed by its mask, so
    `Batches(sentences, labels)` gives `Batch((ids, mask), labels)`; when a target is a list its
    mask is the batch's own: `Batches(sentences, tags)` gives `Batch((ids, mask), tags, mask)`.
    Targets in a dict come as a dict, and their masks too, None for those that are arrays.

    shuffle: new order each epoch, drawn from `seed` (None: from minidl's generator, now) and the
    number of the epoch alone.
    bucket: sort so many batches' worth of items by length before cutting them into batches, which
    then need little padding; 0 for none. They come in random order, or without `shuffle` as sorted.
    drop_last: leave out what does not fill a batch: other items each epoch, if shuffled.
    input_limits, target_limits: each column's ids must be in [0, limit); one number, or one for
    each column (None: anything goes). Checked as a batch is made, since a GPU does not look.
    transform: a function from Batch to Batch, applied last, such as those of `md.transforms`; where
    it has `set_epoch` it is told the number of the epoch before.

    `epoch` is the number of the next iteration. Several may be under way at once, each in an order
    of its own. `state_dict` holds the place of the one that moved last (its iterator's `state_dict`
    its own), so a run goes on with exactly the batches it would have had. Raises ShapeError unless
    all columns are of one length.
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
        self._names = list(targets) if isinstance(targets, dict) else None
        if isinstance(targets, dict):
            targets, target_limits = _in_order(targets, target_limits)
        self._targets = [] if targets is None else _columns("targets", targets, target_limits)
        self._single_target = not isinstance(targets, tuple)
        counts = {len(column) for column in self._inputs + self._targets}
        if len(counts) != 1:
            raise ShapeError(f"Batches: expected columns of one length, got {sorted(counts)}")
        for name, value, least in (("batch_size", batch_size, 1), ("bucket", bucket, 0)):
            if value < least:
                raise ValueError(f"Batches: {name}: expected {least} or more, got {value}")
        self.size = counts.pop()
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.bucket = bucket
        self.drop_last = drop_last
        if transform is not None:
            require_function("Batches: transform", transform)
        self.transform = transform
        self.seed = int(random.generator().integers(0, 2**31)) if seed is None else seed
        self.epoch = 0
        self._latest: _Iteration | None = None
        self._resumed: tuple[int, int] | None = None

    def __len__(self) -> int:
        """The number of batches in an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> _Iteration:
        if self._resumed is not None:
            iteration = _Iteration(self, *self._resumed)
            self._resumed = None
        else:
            iteration = _Iteration(self, self.epoch, 0)
            self.epoch += 1
        self._latest = iteration
        return iteration

    def _order(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        rows = generator.permutation(self.size) if self.shuffle else np.arange(self.size)
        rows = rows[: len(self) * self.batch_size]  # before sorting: the longest are not the last
        ragged = [c for c in self._inputs + self._targets if c.ragged]
        if self.bucket and ragged:
            lengths = np.sum([column.lengths() for column in ragged], axis=0)
            pool = self.bucket * self.batch_size
            parts = [rows[i : i + pool] for i in range(0, len(rows), pool)]
            parts = [part[np.argsort(lengths[part], kind="stable")] for part in parts]
            rows = np.concatenate(parts) if parts else rows
        batches = [rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size)]
        if self.bucket and self.shuffle:
            batches = [batches[i] for i in generator.permutation(len(batches))]
        return batches

    def _batch(self, rows: np.ndarray, epoch: int) -> Batch:
        taken = [column.take(rows) for column in self._inputs]
        inputs = tuple(a for pair in taken for a in pair if a is not None)
        aims = [column.take(rows) for column in self._targets]
        targets: Any = tuple(array for array, _ in aims)
        mask: Any = next((m for _, m in aims if m is not None), None)
        if self._names is not None:
            targets = dict(zip(self._names, targets, strict=True))
            mask = mask if mask is None else {n: m for n, (_, m) in zip(self._names, aims)}
        elif self._single_target:
            targets = targets[0] if targets else None
        batch = Batch(inputs[0] if len(inputs) == 1 else inputs, targets, mask)
        if self.transform is None:
            return batch
        if hasattr(self.transform, "set_epoch"):
            self.transform.set_epoch(epoch)
        return self.transform(batch)

    def state_dict(self) -> dict[str, int]:
        """Where in which order the next batch stands."""
        if self._resumed is not None:
            return self._state(*self._resumed)
        return self._state(self.epoch, 0) if self._latest is None else self._latest.state_dict()

    def _state(self, epoch: int, position: int) -> dict[str, int]:
        return {
            "seed": self.seed,
            "epoch": epoch,
            "position": position,
            "next": self.epoch,
            **{name: getattr(self, name) for name in _ORDER},
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state` was taken; the next iteration finishes that epoch.

        Raises SerializationError if it is of another number of items or of other options.
        """
        for name in _ORDER:
            if (got := state.get(name)) != (expected := getattr(self, name)):
                raise SerializationError(
                    f"Batches: {name}: the state is of {got}, these have {expected}; give the same "
                    "data and options"
                )
        self.seed, self.epoch, self._latest = state["seed"], state["next"], None
        self._resumed = None  # of an iteration under way
        if state["epoch"] != state["next"]:
            self._resumed = state["epoch"], state["position"]


class _Iteration:
    """One pass over `batches`, with a place of its own."""

    def __init__(self, batches: Batches, epoch: int, position: int) -> None:
        self._batches, self._epoch, self._position = batches, epoch, position
        self._order: list[np.ndarray] | None = None
        self._over = False

    def __iter__(self) -> _Iteration:
        return self

    def __next__(self) -> Batch:
        if self._order is None:
            self._order = self._batches._order(self._epoch)
        self._batches._latest = self
        if self._position >= len(self._order):
            self._over = True
            raise StopIteration
        self._position += 1
        return self._batches._batch(self._order[self._position - 1], self._epoch)

    def state_dict(self) -> dict[str, int]:
        """Of the batches, to go on where this iteration stands, or after it where it is over."""
        if self._over:
            return self._batches._state(self._batches.epoch, 0)
        return self._batches._state(self._epoch, self._position)


def _in_order(targets: dict, limits: Any) -> tuple[tuple, Any]:
    """Targets in a dict, and limits in one or of all, as tuples."""
    if isinstance(limits, dict):
        if foreign := [name for name in limits if name not in targets]:
            raise ValueError(f"Batches: target_limits: no target named {', '.join(foreign)}")
        limits = tuple(limits.get(name) for name in targets)
    return tuple(targets.values()), limits


def _columns(name: str, values: Any, limits: Any) -> list[_Column]:
    several = values if isinstance(values, tuple) else (values,)
    each = limits if isinstance(limits, (tuple, list)) else (limits,) * len(several)
    if len(each) != len(several):
        raise ValueError(f"Batches: {name}: expected {len(several)} limits, got {len(each)}")
    return [_Column(name, v, limit) for v, limit in zip(several, each, strict=True)]
