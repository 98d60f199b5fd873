"""Hypothesis strategies: shapes that broadcast, arrays from an op's domain, whole calls of an op.

>>> from hypothesis import find
>>> from minidl.testing import strategies
>>> find(strategies.shapes(min_side=1), lambda shape: len(shape) == 2)
(1, 1)

All of them draw through `HypothesisDraw`, so that an op's samples and a test of one's own choose,
and shrink, in the same way: towards few dimensions, short sides, contiguous arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from minidl.samples import REGISTRY, Call, Draw, Entry

Shape = tuple[int, ...]


class HypothesisDraw(Draw):
    """`Draw` whose choices hypothesis makes. Entries of arrays come from a seed that it draws:
    shapes, axes and options shrink, numbers do not."""

    def __init__(self, draw: Callable, force: str | None = None, dtype: Any = np.float64) -> None:
        super().__init__(0, force, dtype)
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self._draw(st.integers(low, high)))

    def real(self, low: float, high: float) -> float:
        """A Python float in [low, high]."""
        return float(self._draw(st.floats(low, high)))

    def values(self) -> np.random.Generator:
        """A generator, seeded by hypothesis, that fills one array."""
        return np.random.default_rng(self._draw(st.integers(0, 2**32 - 1)))


@st.composite
def drawn(
    draw: Callable,
    function: Callable[[Draw], Any],
    force: str | None = None,
    dtype: Any = np.float64,
) -> Any:
    """What `function(draw)` makes of a `Draw`: for all that the strategies below do not cover."""
    return function(HypothesisDraw(draw, force, dtype))


def _with_shape(shape: Any, function: Callable[[Draw, Shape], Any], **options: Any) -> Any:
    """`shape`: a shape, a strategy for one, or None for any."""
    if shape is None:
        shape = shapes()
    if not isinstance(shape, SearchStrategy):
        shape = st.just(tuple(shape))
    return shape.flatmap(lambda s: drawn(lambda draw: function(draw, s), **options))


def shapes(
    min_dims: int = 0, max_dims: int = 3, min_side: int = 0, max_side: int = 4
) -> SearchStrategy[Shape]:
    """Shapes; sides of 0 and 1 are among them."""
    return drawn(lambda draw: draw.shape(min_dims, max_dims, min_side, max_side))


def broadcastable_shapes(n: int = 2, **limits: int) -> SearchStrategy[tuple[Shape, ...]]:
    """n shapes that broadcast together; `limits` as for `shapes`.

    >>> from hypothesis import find
    >>> one, other = find(broadcastable_shapes(2), lambda shapes: len(set(shapes)) == 2)
    >>> sorted([one, other])
    [(), (1,)]
    """
    return drawn(lambda draw: draw.broadcast_shapes(n, **limits))


def axes(ndim: int, several: bool = True) -> SearchStrategy:
    """None, an axis counted from either end or, with `several`, a tuple of different ones."""
    return drawn(lambda draw: draw.axes(ndim) if several else draw.axis(ndim))


def arrays(
    shape: Shape | SearchStrategy[Shape] | None = None,
    low: float = -2.0,
    high: float = 2.0,
    away: Sequence[float] = (),
    gap: float = 0.15,
    distinct: bool = False,
    ties: bool = False,
    dtype: Any = np.float64,
) -> SearchStrategy[np.ndarray]:
    """Floating arrays from [low, high], `gap` away from the numbers in `away` (kinks and poles), of
    any layout; `distinct` and `ties` as in `Draw.array`.

    >>> from hypothesis import find
    >>> bool(abs(find(arrays((2,), away=[0.0]), lambda x: x[0] > x[1])).min() >= 0.15)
    True
    """
    return _with_shape(
        shape, lambda draw, s: draw.array(s, low, high, away, gap, distinct, ties), dtype=dtype
    )


def integers(
    shape: Shape | SearchStrategy[Shape] | None = None, low: int = 0, high: int = 9
) -> SearchStrategy[np.ndarray]:
    """int64 arrays with entries in [low, high]: labels, lengths."""
    return _with_shape(shape, lambda draw, s: draw.integers(s, low, high))


def indices(
    side: int, shape: Shape | SearchStrategy[Shape] | None = None, negative: bool = True
) -> SearchStrategy[np.ndarray]:
    """int64 arrays of places along an axis of length `side` >= 1, repeats included, and counted
    from the end too if `negative`."""
    return integers(shape, -side if negative else 0, side - 1)


def masks(shape: Shape | SearchStrategy[Shape] | None = None) -> SearchStrategy[np.ndarray]:
    """Boolean arrays, True = keep; all True and all False are among them."""
    return _with_shape(shape, lambda draw, s: draw.mask(s))


def dtypes() -> SearchStrategy[np.dtype]:
    """The floating dtypes that all ops take."""
    return st.sampled_from([np.dtype(np.float32), np.dtype(np.float64)])


def layouts(array: np.ndarray) -> SearchStrategy[np.ndarray]:
    """The same entries at other strides: transposed, reversed, strided."""
    return drawn(lambda draw: draw.layout(array))


def calls(op: Callable | str, force: str | None = None) -> SearchStrategy[Call]:
    """Calls of an op that has samples, given by itself or by name; `force` as in `Draw`.

    >>> import minidl as md
    >>> from hypothesis import find
    >>> find(calls(md.tanh), lambda call: call.args[0].size > 1)
    call(float64[2])
    """
    return drawn(entry_of(op).draw_case, force=force)


def entry_of(op: Callable | str) -> Entry:
    """The registered samples of an op. Raises ValueError if there are none."""
    for entry in REGISTRY.values():
        if entry.function is op or entry.name == op:
            return entry
    name = op if isinstance(op, str) else getattr(op, "__name__", op)
    raise ValueError(f"calls: op: {name} has no samples; register some with @samples({name})")
