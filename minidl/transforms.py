"""Transforms of batches, on the host: mixing of items, cutout, shifts, label smoothing.

For `md.data.Batches(..., transform=)`. All draws come from minidl's generator, in the order of the
batches, so a resumed run draws what the uninterrupted one would have drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minidl import ops, random
from minidl.data import Batch, require_function
from minidl.errors import DtypeError, ShapeError
from minidl.functional.losses.checks import require_fraction, require_range

__all__ = [
    "Compose", "Cutout", "LabelSmoothing", "ManifoldMixup", "Mix", "Mixup", "OneHot", "Phases",
    "SamplePairing", "Shift", "Transform", "mixed",
]  # fmt: skip


class Transform:
    """Base of transforms: a function from Batch to Batch, that may pause (see `Phases`)."""

    def __call__(self, batch: Batch) -> Batch:
        raise NotImplementedError(f"{type(self).__name__}: write __call__(self, batch)")

    def idle(self, batch: Batch) -> Batch:
        """The batch in a pause: with targets of the same kind, so that the loss can stay."""
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Called by `Batches` before each batch, with the number of its epoch, from 0."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in vars(self).items())})"


class Compose(Transform):
    """Several transforms, one after the other. In a pause of `Phases` those rest that have `idle`,
    which every Transform has; plain functions work on."""

    def __init__(self, *transforms: Callable[[Batch], Batch]) -> None:
        for transform in transforms:
            require_function("Compose: transforms", transform)
        self.transforms = transforms

    def __call__(self, batch: Batch) -> Batch:
        for transform in self.transforms:
            batch = transform(batch)
        return batch

    def idle(self, batch: Batch) -> Batch:
        for transform in self.transforms:
            batch = getattr(transform, "idle", transform)(batch)
        return batch

    def set_epoch(self, epoch: int) -> None:
        for transform in self.transforms:
            if hasattr(transform, "set_epoch"):
                transform.set_epoch(epoch)


class Phases(Transform):
    """`transform` in some epochs: from `start` until before `stop` (None: to the end), and of these
    in turn `on` epochs with and `off` epochs without it.

    SamplePairing's own recipe (Inoue 2018, section 3) is Phases(SamplePairing(), start, stop, 8, 2)
    with a stop before the last epochs, which fine-tune on unmixed items. Without the transform a
    batch keeps the kind of targets it would have had: one-hot ones where `transform` makes them.
    """

    def __init__(
        self, transform: Callable[[Batch], Batch], start: int = 0, stop: int | None = None,
        on: int = 1, off: int = 0,
    ) -> None:  # fmt: skip
        if on < 1 or off < 0:
            raise ValueError(f"Phases: on, off: expected 1 and 0, or more, got {on} and {off}")
        self.transform: Any = transform
        self.start, self.stop, self.on, self.off = start, stop, on, off
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        if hasattr(self.transform, "set_epoch"):
            self.transform.set_epoch(epoch)

    @property
    def active(self) -> bool:
        """Whether it transforms in the epoch under way."""
        since = self._epoch - self.start
        ended = self.stop is not None and self._epoch >= self.stop
        return since >= 0 and not ended and since % (self.on + self.off) < self.on

    def __call__(self, batch: Batch) -> Batch:
        return self.transform(batch) if self.active else self.idle(batch)

    def idle(self, batch: Batch) -> Batch:
        return self.transform.idle(batch) if hasattr(self.transform, "idle") else batch


# --- Mixing ---------------------------------------------------------------------------------------


class Mix(NamedTuple):
    """How a batch is mixed: item i keeps `share[i]` of itself and takes the rest of `partners[i]`,
    both (batch,); at `place`: 0 is the input, others are hidden (see `ManifoldMixup`)."""

    partners: Any
    share: Any
    place: int = 0


def mixed(values: Any, mix: Mix, name: str = "mixed") -> Any:
    """share * x + (1 - share) * x[partners] for the floats x (batch, ...) in `values`: an array or
    a Tensor, or a list, tuple or dict of them.

    Booleans are masks (True = keep): what both items keep. None stays. Raises DtypeError for
    integers, and ShapeError where a first side is not the batch's.
    """
    if values is None:
        return None
    if isinstance(values, Mix):
        raise ValueError(f"{name}: inputs: are to be mixed already; give one of the two transforms")
    if isinstance(values, dict):
        return {key: mixed(value, mix, name) for key, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)([mixed(value, mix, name) for value in values])
    count = len(mix.share)
    if values.shape[:1] != (count,):
        raise ShapeError(f"{name}: expected ({count}, ...), an item first, got {values.shape}")
    if values.dtype == np.bool_:
        return ops.logical_and(values, ops.take(values, mix.partners, 0))
    if values.dtype.kind != "f":
        raise DtypeError(
            f"{name}: expected floats, or booleans as masks, got {values.dtype}: cast pixels to "
            "float32; embed numbers of words, and mix there with ManifoldMixup"
        )
    share = ops.reshape(mix.share.astype(values.dtype), (count, *(1,) * (values.ndim - 1)))
    return values * share + ops.take(values, mix.partners, 0) * (1 - share)


class _Mixing(Transform):
    """Base of what mixes an item with another of its batch; subclasses write `shares(count)`."""

    def __init__(self, probability: float) -> None:
        require_fraction(type(self).__name__, "probability", probability)
        self.probability = probability

    def draw(self, count: int) -> Mix:
        """Partners are a permutation of the batch; an item that is not mixed is its own."""
        generator = random.generator()
        share, partners = self.shares(count), generator.permutation(count)
        if self.probability < 1:
            kept = generator.uniform(shape=(count,)) < self.probability
            share = np.where(kept, share, np.float32(1))
            partners = np.where(kept, partners, np.arange(count))
        return Mix(partners, share)

    def shares(self, count: int) -> np.ndarray:
        raise NotImplementedError


class SamplePairing(_Mixing):
    """The mean of two items, with the label of the first (Inoue 2018).

    share: what an item keeps of itself. probability: of an item to be mixed. `Phases` turns it off
    for some epochs, as the paper does. Targets stay as they are.
    """

    def __init__(self, share: float = 0.5, probability: float = 1.0) -> None:
        super().__init__(probability)
        require_fraction("SamplePairing", "share", share)
        self.share = share

    def shares(self, count: int) -> np.ndarray:
        return np.full(count, self.share, np.float32)

    def __call__(self, batch: Batch) -> Batch:
        mix = self.draw(_count(batch))
        inputs, mask = (mixed(v, mix, "SamplePairing") for v in (batch.inputs, batch.mask))
        return Batch(inputs, batch.targets, mask)


class Mixup(_Mixing):
    """share * item + (1 - share) * partner, of inputs and of targets, with a share from
    Beta(alpha, alpha) (Zhang et al. 2018, eq. 1).

    alpha: 0 mixes nothing, 1 takes all shares alike. classes: of integer targets, which become
    one-hot (an int; or with several targets a dict, or tuple, of int and None to match); targets of
    floats are mixed as they are. Train with a loss for distributions, such as
    `md.losses.CategoricalCrossentropy`. per: one share a "batch" (as the paper's authors) or an
    "item". probability: of an item to be mixed.

    Raises DtypeError for integers as inputs and for targets that are neither integers nor floats,
    ValueError for labels out of range or without `classes`.
    """

    def __init__(
        self, alpha: float = 0.2, classes: Any = None, per: str = "batch", probability: float = 1.0
    ) -> None:
        super().__init__(probability)
        name = type(self).__name__
        if not 0 <= alpha < np.inf:
            raise ValueError(f"{name}: alpha: expected a finite number >= 0, got {alpha}")
        if per not in ("batch", "item"):
            raise ValueError(f"{name}: per: expected 'batch' or 'item', got {per!r}")
        self.alpha, self.classes, self.per = alpha, classes, per

    def shares(self, count: int) -> np.ndarray:
        if not self.alpha:
            return np.ones(count, np.float32)
        shape = (count,) if self.per == "item" else (1,)
        return np.resize(random.generator().beta(self.alpha, self.alpha, shape), count)

    def __call__(self, batch: Batch) -> Batch:
        mix = self.draw(_count(batch))
        inputs = mixed(batch.inputs, mix, type(self).__name__)
        return self._with_targets(batch, inputs, mix)

    def _with_targets(self, batch: Batch, inputs: Any, mix: Mix) -> Batch:
        name = type(self).__name__
        targets = distributions(name, batch.targets, self.classes, batch.mask)
        return Batch(inputs, mixed(targets, mix, name), mixed(batch.mask, mix, name))

    def idle(self, batch: Batch) -> Batch:
        name = type(self).__name__
        return batch._replace(targets=distributions(name, batch.targets, self.classes, batch.mask))


class ManifoldMixup(Mixup):
    """Mixup at a random place of the network (Verma et al. 2019, section 2).

    places: how many there are, or which to draw from; 0 is the input, the others are those of
    `md.layers.ManifoldMixing`, the model to train: it finds what was drawn, a `Mix`, behind the
    inputs. The rest as Mixup, with the paper's alpha.
    """

    def __init__(
        self, places: int | Sequence[int], alpha: float = 2.0, classes: Any = None,
        per: str = "batch", probability: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__(alpha, classes, per, probability)
        if not isinstance(places, (int, Sequence)) or not places:
            raise ValueError(
                f"ManifoldMixup: places: expected one or more, or a list of some, got {places!r}"
            )
        self.places = list(range(places)) if isinstance(places, int) else list(places)

    def __call__(self, batch: Batch) -> Batch:
        place = self.places[int(random.generator().integers(0, len(self.places)))]
        mix = self.draw(_count(batch))._replace(place=place)
        inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
        return self._with_targets(batch, (*inputs, mix), mix)


def _count(batch: Batch) -> int:
    """The number of items."""
    first = batch.inputs
    while isinstance(first, (dict, list, tuple)):
        first = next(iter(first.values() if isinstance(first, dict) else first))
    return len(first)


# --- Targets --------------------------------------------------------------------------------------


class OneHot(Transform):
    """Integer targets (...) as distributions (..., classes); see Mixup for `classes`."""

    def __init__(self, classes: Any) -> None:
        self.classes = classes

    def idle(self, batch: Batch) -> Batch:
        targets = distributions(type(self).__name__, batch.targets, self.classes, batch.mask)
        return batch._replace(targets=targets)

    def __call__(self, batch: Batch) -> Batch:
        return self.idle(batch)


class LabelSmoothing(OneHot):
    """(1 - epsilon) * targets + epsilon / classes (Szegedy et al. 2016, section 7), of integer
    targets, where `classes` tells how many there are, or of distributions (..., classes). Where
    `classes` is a dict, or tuple, of several targets, those that have None there, or nothing, stay.

    Of one loss: `label_smoothing` of the losses does the same, without distributions.
    """

    def __init__(self, epsilon: float = 0.1, classes: Any = None) -> None:
        require_fraction("LabelSmoothing", "epsilon", epsilon)
        super().__init__(classes)
        self.epsilon = epsilon

    def __call__(self, batch: Batch) -> Batch:
        batch = self.idle(batch)
        several = isinstance(self.classes, (dict, list, tuple))
        return batch._replace(
            targets=_each(
                lambda t, c: t if several and c is None else self._smooth(t),
                batch.targets,
                self.classes,
            )
        )

    def _smooth(self, t: np.ndarray | None) -> np.ndarray | None:
        if t is None:
            return None
        if t.ndim < 2:
            raise ShapeError(
                "LabelSmoothing: targets: expected distributions (batch, ..., classes), got floats "
                f"of shape {t.shape}; of several targets give None as the classes of this one"
            )
        return t * (1 - self.epsilon) + self.epsilon / t.shape[-1]


def distributions(name: str, targets: Any, classes: Any, mask: Any = None) -> Any:
    """Integer targets one-hot, of `classes`; floats as they are. Several: a dict, tuple or list."""
    return _each(lambda t, c, m: _distribution(name, t, c, m), targets, classes, mask)


def _distribution(name: str, targets: Any, classes: int | None, mask: Any) -> Any:
    if targets is None:
        return None
    if not isinstance(targets, np.ndarray):
        raise TypeError(
            f"{name}: targets: expected a NumPy array, as md.data.Batches gives, got "
            f"{type(targets).__name__}"
        )
    if targets.dtype.kind == "f":
        if classes is not None and targets.shape[-1:] != (classes,):
            raise ShapeError(
                f"{name}: targets: expected integers, or distributions (..., {classes}), got "
                f"floats of shape {targets.shape}"
            )
        return targets
    if targets.dtype.kind not in "iu":
        raise DtypeError(
            f"{name}: targets: expected integers or floats, got {targets.dtype}; use "
            "targets.astype('float32')"
        )
    if classes is None:
        raise ValueError(
            f"{name}: targets: integers are labels, and it must be known of how many classes; "
            "give classes=, or floats"
        )
    if mask is not None and mask.shape == targets.shape[: mask.ndim]:  # else another target's
        kept = mask.reshape(mask.shape + (1,) * (targets.ndim - mask.ndim))
        targets = np.where(kept, targets, 0)
    require_range(name, "targets", targets, classes)
    return ops.one_hot(targets, classes)


def _each(function: Callable, value: Any, *others: Any) -> Any:
    """`function` of each array in a dict, tuple or list, with its own of the others."""
    if isinstance(value, dict):
        return {k: function(v, *(_own(o, k) for o in others)) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(
            [function(v, *(_own(o, i) for o in others)) for i, v in enumerate(value)]
        )
    return function(value, *others)


def _own(values: Any, key: Any) -> Any:
    """What is for `key`: of a dict, tuple or list its entry, else the value itself."""
    if isinstance(values, dict):
        return values.get(key)
    return values[key] if isinstance(values, (tuple, list)) else values


# --- Images and signals ---------------------------------------------------------------------------


class _OfSpace(Transform):
    """Base of what changes inputs (batch, ..., channels) with one axis of space or more; subclasses
    write `change(x)`. which: of several inputs, the one to change."""

    def __init__(self, which: int) -> None:
        self.which = which

    def change(self, x: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Batch:
        several = isinstance(batch.inputs, tuple)
        inputs = list(batch.inputs) if several else [batch.inputs]
        which = self.which if several else 0
        x = inputs[which]
        if x.ndim < 3 or x.dtype.kind != "f":
            raise ShapeError(
                f"{type(self).__name__}: inputs: expected floats (batch, one axis of space or "
                f"more, channels), got {x.dtype} of shape {x.shape}; reshape or cast them"
            )
        inputs[which] = self.change(x)
        return batch._replace(inputs=tuple(inputs) if several else inputs[0])


class Cutout(_OfSpace):
    """A box of each item set to `fill` (DeVries and Taylor 2017): its centre is drawn from all
    places, so a part of it may lie outside.

    For inputs (batch, ..., channels). size: the box's side, or one for each axis. count: how many
    boxes. probability: of an item to get them. which: of several inputs, the one to cut.
    """

    def __init__(
        self, size: int | tuple[int, ...], count: int = 1, fill: float = 0.0,
        probability: float = 1.0, which: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(which)
        require_fraction("Cutout", "probability", probability)
        if np.min(size) < 1 or count < 1:
            raise ValueError(f"Cutout: size, count: expected 1 or more, got {size} and {count}")
        self.size, self.count, self.fill, self.probability = size, count, fill, probability

    def change(self, x: np.ndarray) -> np.ndarray:
        sides, items = x.shape[1:-1], len(x)
        sizes = np.broadcast_to(self.size, len(sides))
        for _ in range(self.count):
            cut = np.ones((items, *(1,) * (x.ndim - 1)), bool)
            for axis, (side, size) in enumerate(zip(sides, sizes, strict=True), start=1):
                first = random.generator().integers(0, side, (items, 1)) - size // 2
                inside = (np.arange(side) >= first) & (np.arange(side) < first + size)
                cut = cut & _along(inside, axis, x.ndim)
            if self.probability < 1:
                kept = random.generator().uniform(shape=(items,)) < self.probability
                cut &= kept.reshape(items, *(1,) * (x.ndim - 1))
            x = np.where(cut, np.asarray(self.fill, x.dtype), x)
        return x


class Shift(_OfSpace):
    """Each item moved by a whole number of places, from -most to most along each axis of space;
    what comes in from outside is `fill`.

    For inputs (batch, ..., channels). most: a number, or one for each axis. which: of several
    inputs, the one to move.
    """

    def __init__(self, most: int | tuple[int, ...], fill: float = 0.0, which: int = 0) -> None:
        super().__init__(which)
        if np.min(most) < 0:
            raise ValueError(f"Shift: most: expected 0 or more, got {most}")
        self.most, self.fill = most, fill

    def change(self, x: np.ndarray) -> np.ndarray:
        sides = x.shape[1:-1]
        limits = np.broadcast_to(self.most, len(sides))
        for axis, (side, most) in enumerate(zip(sides, limits, strict=True), start=1):
            by = random.generator().integers(-int(most), int(most) + 1, (len(x), 1))
            source = np.arange(side) - by
            there = _along((source >= 0) & (source < side), axis, x.ndim)
            moved = np.take_along_axis(x, _along(source.clip(0, side - 1), axis, x.ndim), axis)
            x = np.where(there, moved, np.asarray(self.fill, x.dtype))
        return x


def _along(values: np.ndarray, axis: int, axes: int) -> np.ndarray:
    """(items, side) as an array of so many axes, the side at `axis`."""
    shape = [1] * axes
    shape[0], shape[axis] = values.shape
    return values.reshape(shape)
