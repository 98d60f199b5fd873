"""Seeded random numbers, whose state can be saved and restored.

One generator serves initialisation, shuffling and dropout. It draws on the host, the same on every
device; only `bernoulli` may draw on the GPU, from a seed that the host's generator gives, so that
the host's state is all there is to save.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from minidl import backend

_on_host: contextvars.ContextVar[bool] = contextvars.ContextVar("minidl_on_host", default=False)


class Generator:
    """Random numbers from PCG64; `seed` None takes entropy from the operating system."""

    def __init__(self, seed: int | None = None) -> None:
        self._numpy = np.random.Generator(np.random.PCG64(seed))

    def normal(self, shape: tuple[int, ...] = (), dtype: Any = None) -> np.ndarray:
        """Standard normal numbers, drawn in float64 so that every dtype sees the same ones."""
        return self._numpy.standard_normal(shape).astype(dtype or backend.current_dtype())

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> np.ndarray:
        """Numbers from [low, high). Raises TypeError where the shape is given first."""
        if isinstance(low, tuple):
            raise TypeError(f"uniform: low: expected a number, got {low}; give shape={low}")
        return self._numpy.uniform(low, high, shape).astype(dtype or backend.current_dtype())

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Integers from [low, high)."""
        return self._numpy.integers(low, high, shape)

    def beta(
        self, alpha: float, beta: float, shape: tuple[int, ...] = (), dtype: Any = None
    ) -> np.ndarray:
        """Numbers from [0, 1], with density proportional to x^(alpha - 1) (1 - x)^(beta - 1)."""
        draws = self._numpy.beta(alpha, beta, shape)
        return np.asarray(draws).astype(dtype or backend.current_dtype())

    def permutation(self, n: int) -> np.ndarray:
        """The numbers 0 to n - 1 in random order."""
        return self._numpy.permutation(n)

    def bernoulli(
        self, probability: float, shape: tuple[int, ...], device: str | None = None
    ) -> backend.Array:
        """A boolean array, True with `probability` (to 2**-16), made on `device`.

        On the CPU, and inside `draw_on_host()`, the host draws; elsewhere the device hashes the
        element's number with one seed from the host: another stream, but no transfer.
        """
        name = device or backend.current_device()
        threshold = round(probability * 2**16)
        if name == "cpu" or _on_host.get():
            if threshold >= 2**16:
                return backend.to_device(np.ones(shape, bool), name)
            draws = self._numpy.integers(0, 2**16, shape, dtype=np.uint16)
            return backend.to_device(draws < np.uint16(threshold), name)
        seed = int(self._numpy.integers(0, 2**63))
        return (_hash(backend.module_of(name), seed, shape) >> 48) < threshold

    def spawn(self) -> Generator:
        """A generator of its own, seeded by this one."""
        return Generator(int(self._numpy.integers(0, 2**63)))

    def state(self) -> dict[str, Any]:
        """What `set_state` takes: nested dicts of integers and strings, fit for JSON."""
        return dict(self._numpy.bit_generator.state)

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a state that `state()` gave."""
        self._numpy.bit_generator.state = state


def _hash(xp: Any, seed: int, shape: tuple[int, ...]) -> backend.Array:
    """SplitMix64's finaliser over a counter: 64 random bits an element (Steele et al. 2014)."""
    z = xp.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64).reshape(shape)
    z *= 0x9E3779B97F4A7C15
    z += seed
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z ^= z >> shift
        z *= factor
    z ^= z >> 31
    return z


_generator = Generator()


def generator() -> Generator:
    """The generator that minidl draws from where it is not given another."""
    return _generator


def seed(n: int) -> None:
    """Start minidl's generator anew from the integer `n`."""
    _generator.set_state(Generator(n).state())


@contextmanager
def replay(state: dict[str, Any] | None) -> Iterator[None]:
    """Draw from `state` (None: go on from here) inside, and afterwards as if nothing was drawn."""
    before = _generator.state()
    if state is not None:
        _generator.set_state(state)
    try:
        yield
    finally:
        _generator.set_state(before)


@contextmanager
def draw_on_host() -> Iterator[None]:
    """Dropout masks too are drawn on the host inside: the same numbers on every device."""
    token = _on_host.set(True)
    try:
        yield
    finally:
        _on_host.reset(token)
