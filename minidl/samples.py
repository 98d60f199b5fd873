"""How to draw one call of every op: the catalogue that the tests iterate.

An op registers a function that draws one valid call of it from a source of choices:

    @samples(sum)
    def _(draw):
        x = draw.array(draw.shape(max_dims=3))
        return call(x, axis=draw.axes(x.ndim))

`Draw` is that source, seeded; `minidl.testing.strategies` has one that hypothesis drives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FORCES = ("scalar", "empty", "unit", "zeros", "ties", "strided")


@dataclass(frozen=True)
class Call:
    """The arguments of one call. Floating arrays are what gets differentiated."""

    args: tuple
    kwargs: dict[str, Any]

    def map(self, change: Callable[[np.ndarray], Any]) -> Call:
        """The same call with `change` applied to every array, also inside lists and tuples."""
        args = tuple(_map(a, change) for a in self.args)
        return Call(args, {name: _map(a, change) for name, a in self.kwargs.items()})

    def __repr__(self) -> str:
        parts = [_describe(a) for a in self.args]
        parts += [f"{name}={_describe(a)}" for name, a in self.kwargs.items()]
        return f"call({', '.join(parts)})"


def call(*args: Any, **kwargs: Any) -> Call:
    """Record the arguments of one call."""
    return Call(args, kwargs)


@dataclass(frozen=True)
class Entry:
    """One registered op: `draw_case(draw)` gives a `Call` that `function` accepts."""

    name: str
    function: Callable
    draw_case: Callable[[Draw], Call]
    differentiable: bool = True


REGISTRY: dict[str, Entry] = {}


def samples(function: Callable, differentiable: bool = True, name: str | None = None) -> Callable:
    """Decorator: register how to draw a call of `function`, an op or any differentiable function.

    `differentiable=False` marks an op whose output is a constant (argmax, comparisons). Registering
    again replaces the samples; a different function of the same name needs another `name`.
    """
    key: str = name or function.__name__

    def register(draw_case: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        known = REGISTRY.get(key)
        if known is not None and _origin(known.function) != _origin(function):
            raise ValueError(
                f"samples: name: {key!r} is taken by {_origin(known.function)}; "
                f"pass name= to register {_origin(function)} as well"
            )
        REGISTRY[key] = Entry(key, function, draw_case, differentiable)
        return draw_case

    return register


class Draw:
    """A seeded source of choices: sizes, axes, masks and arrays that an op accepts.

    `force` bends all draws, as far as the op's own limits allow, towards one corner:
    "scalar" (fewest dimensions), "empty" (a side of 0), "unit" (sides of 1), "zeros" (exact zeros),
    "ties" (equal entries), "strided" (no array contiguous).

    >>> draw = Draw(seed=0)
    >>> draw.array((2, 3), low=0.5, high=1.0).shape
    (2, 3)
    >>> Draw(force="scalar").shape(max_dims=3)
    ()
    """

    def __init__(self, seed: int = 0, force: str | None = None, dtype: Any = np.float64):
        if force is not None and force not in FORCES:
            raise ValueError(f"Draw: force: expected one of {FORCES} or None, got {force!r}")
        self.force = force
        self.dtype = np.dtype(dtype)
        self._generator = np.random.default_rng(seed)

    # The four choices below are all that another source of choices has to replace.

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self._generator.integers(low, high + 1))

    def boolean(self) -> bool:
        """True or False."""
        return self.integer(0, 1) == 1

    def real(self, low: float, high: float) -> float:
        """A Python float in [low, high]."""
        return float(self._generator.uniform(low, high))

    def values(self) -> np.random.Generator:
        """The generator that fills arrays."""
        return self._generator

    def choice(self, sequence: Sequence) -> Any:
        """One item of `sequence`."""
        return sequence[self.integer(0, len(sequence) - 1)]

    def permutation(self, n: int) -> tuple[int, ...]:
        """The numbers 0 to n - 1 in some order."""
        rest = list(range(n))
        return tuple(rest.pop(self.integer(0, len(rest) - 1)) for _ in range(n))

    def shape(
        self, min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4
    ) -> tuple[int, ...]:
        """A shape of min_dims to max_dims sides, each in [min_side, max_side]."""
        if self.force == "scalar":
            max_dims = min_dims
        elif self.force is not None and max_dims > 0:
            min_dims = max(min_dims, 1)
        sides = [self._side(min_side, max_side) for _ in range(self.integer(min_dims, max_dims))]
        corner = {"empty": 0, "unit": 1}.get(self.force or "", -1)
        if sides and min_side <= corner <= max_side:
            sides[self.integer(0, len(sides) - 1)] = corner
        return tuple(sides)

    def _side(self, low: int, high: int) -> int:
        """Mostly sides of at least 2 where a corner needs them, and few empty ones by chance."""
        if self.force in ("zeros", "ties", "strided"):
            low = min(max(low, 2), high)
        if low == 0 and self.force != "empty" and high >= 1 and self.integer(0, 7) > 0:
            low = 1
        return self.integer(low, high)

    def broadcastable(self, shape: Sequence[int]) -> tuple[int, ...]:
        """A shape that broadcasts against `shape` without growing it."""
        force_unit = self.force == "unit"
        drop = 0 if force_unit or self.boolean() else self.integer(0, len(shape))
        sides = [1 if self.integer(0, 3) == 0 else side for side in shape[drop:]]
        if sides and force_unit:
            sides[self.integer(0, len(sides) - 1)] = 1
        return tuple(sides)

    def broadcast_shapes(self, n: int = 2, **limits: int) -> tuple[tuple[int, ...], ...]:
        """n shapes that broadcast together; `limits` as for `shape`, but any side may be 1."""
        full = self.shape(**limits)
        return tuple(self.broadcastable(full) for _ in range(n))

    def axis(self, ndim: int) -> int | tuple | None:
        """None or one axis, counted from either end; for 0-d arrays None or ()."""
        if ndim == 0:
            return self.choice([None, ()])
        return self.choice([None, *range(-ndim, ndim)])

    def axes(self, ndim: int) -> int | tuple[int, ...] | None:
        """None, one axis, or a tuple of different axes (perhaps none), counted from either end."""
        if ndim == 0 or self.integer(0, 2) > 0:
            return self.axis(ndim)
        some = self.permutation(ndim)[: self.integer(0, ndim)]
        return tuple(a - ndim if self.boolean() else a for a in some)

    def array(
        self,
        shape: Sequence[int],
        low: float = -2.0,
        high: float = 2.0,
        away: Sequence[float] = (),
        gap: float = 0.15,
        distinct: bool = False,
        ties: bool = False,
    ) -> np.ndarray:
        """A floating array with entries in [low, high], at least `gap` from every number in `away`.

        `distinct`: entries differ by gap / 5 or more. `ties`: some entries may be equal. The layout
        may be transposed, reversed or strided.
        """
        shape = tuple(shape)
        size = int(np.prod(shape))
        pieces = _pieces(low, high, away, gap)
        total = sum(b - a for a, b in pieces)
        generator = self.values()
        if distinct:
            step = total / max(size, 1)
            if size > 1 and step * 0.5 < gap * 0.2:
                raise ValueError(
                    f"Draw.array: distinct: {size} entries do not fit into [{low}, {high}] "
                    f"{gap * 0.2:g} apart; draw a smaller shape, or widen the interval"
                )
            ranks = generator.permutation(size)
            positions = (ranks + generator.uniform(0.25, 0.75, size)) * step
        else:
            positions = generator.uniform(0, total, size)
        if ties and not distinct and size > 1 and (self.force == "ties" or self.boolean()):
            positions = positions[generator.integers(0, max(1, size // 2), size)]
        entries = _place(positions, pieces)
        zero_allowed = any(a <= 0 <= b for a, b in pieces)
        if self.force == "zeros" and zero_allowed and size > 0:
            count = 1 if distinct else int(generator.integers(1, size // 2 + 2))
            where = generator.permutation(size)[:count]
            keep = not distinct or np.all(np.abs(np.delete(entries, where)) >= gap * 0.2)
            entries[where] = 0.0 if keep else entries[where]
        return self.layout(entries.astype(self.dtype).reshape(shape))

    def integers(self, shape: Sequence[int], low: int, high: int) -> np.ndarray:
        """An int64 array with entries in [low, high]."""
        shape = tuple(shape)
        if 0 in shape:
            return np.zeros(shape, np.int64)
        if self.force == "ties":
            high = low + (high - low) // 2
        return np.asarray(self.values().integers(low, high + 1, shape), np.int64)

    def mask(self, shape: Sequence[int]) -> np.ndarray:
        """A boolean array; sometimes all True or all False."""
        share = self.choice([0.5, 0.8, 0.2, 1.0, 0.0])
        return np.asarray(self.values().uniform(size=tuple(shape)) < share)

    def layout(self, array: np.ndarray) -> np.ndarray:
        """The same entries, perhaps at other strides."""
        if array.ndim == 0 or array.size < 2:
            return array
        kind = self.integer(1, 3) if self.force == "strided" else self.integer(0, 6)
        if kind == 1 and sum(side > 1 for side in array.shape) > 1:
            return np.asfortranarray(array)
        if kind == 2:
            last = array.ndim - 1 - int(np.argmax([side > 1 for side in array.shape[::-1]]))
            return np.flip(np.ascontiguousarray(np.flip(array, last)), last)
        if kind in (1, 3):
            wide = np.full((*array.shape, 2), np.nan, array.dtype)
            wide[..., 0] = array
            return wide[..., 0]
        return array


def _pieces(low: float, high: float, away: Sequence[float], gap: float) -> list:
    """[low, high] without the open intervals of half-width `gap` about the numbers in `away`."""
    pieces, start = [], low
    for pole in sorted(away):
        if pole - gap >= start:
            pieces.append((start, min(pole - gap, high)))
        start = max(start, pole + gap)
    if start <= high:
        pieces.append((start, high))
    pieces = [(a, b) for a, b in pieces if a <= b]
    if not pieces:
        raise ValueError(
            f"Draw.array: away: nothing of [{low}, {high}] is {gap} away from {tuple(away)}; "
            "widen the interval, or make gap smaller"
        )
    return pieces


def _place(positions: np.ndarray, pieces: list) -> np.ndarray:
    """Positions counted along the pieces, laid end to end, as numbers."""
    ends = np.cumsum([b - a for a, b in pieces])
    index = np.minimum(np.searchsorted(ends, positions, side="right"), len(pieces) - 1)
    starts = np.array([a for a, _ in pieces])
    before = np.concatenate([[0.0], ends[:-1]])
    return starts[index] + (positions - before[index])


def _origin(function: Callable) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', getattr(function, '__name__', '?'))}"


def _map(value: Any, change: Callable[[np.ndarray], Any]) -> Any:
    if isinstance(value, np.ndarray):
        return change(value)
    if type(value) in (list, tuple):
        return type(value)(_map(item, change) for item in value)
    return value


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if type(value) in (list, tuple):
        opening, closing = "[]" if type(value) is list else "()"
        return opening + ", ".join(_describe(item) for item in value) + closing
    if isinstance(value, slice):
        return f"slice({value.start}, {value.stop}, {value.step})"
    return repr(value)
