"""What a parameter must be after each step of an optimiser. Keras's names and arguments.

A constraint is a function from a tensor to the nearest allowed one, of the same shape, made of
minidl's ops: it is not recorded and waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minidl import ops
from minidl.graph import Tensor


class Clip:
    """Every entry in [min_value, max_value]: a critic's weight clipping (Arjovsky et al. 2017)."""

    def __init__(self, min_value: float = -0.01, max_value: float = 0.01) -> None:
        if not min_value <= max_value:
            raise ValueError(
                f"Clip: expected min_value <= max_value, got {min_value} and {max_value}"
            )
        self.min_value, self.max_value = min_value, max_value

    def __call__(self, w: Tensor) -> Tensor:
        return ops.clip(w, self.min_value, self.max_value)

    def __repr__(self) -> str:
        return f"Clip({self.min_value}, {self.max_value})"


class NonNeg:
    """No entry below 0."""

    def __call__(self, w: Tensor) -> Tensor:
        return ops.maximum(w, 0)

    def __repr__(self) -> str:
        return "NonNeg()"


class MaxNorm:
    """The vectors along `axis` at most `max_value` long (Srivastava et al. 2014, section 5.1).

    axis: of a Dense kernel 0, the weights into each unit; of a convolution's all but the last.
    """

    def __init__(self, max_value: float = 2.0, axis: int | Sequence[int] = 0) -> None:
        if not max_value > 0:
            raise ValueError(f"MaxNorm: max_value: expected more than 0, got {max_value}")
        self.max_value, self.axis = max_value, _axes(axis)

    def __call__(self, w: Tensor) -> Tensor:
        length = ops.norm(w, axis=self.axis, keepdims=True)
        return w * (self.max_value / ops.maximum(length, self.max_value))

    def __repr__(self) -> str:
        return f"MaxNorm({self.max_value}, axis={self.axis})"


class UnitNorm:
    """The vectors along `axis` (see MaxNorm) of length 1; one of zeros stays."""

    def __init__(self, axis: int | Sequence[int] = 0) -> None:
        self.axis = _axes(axis)

    def __call__(self, w: Tensor) -> Tensor:
        length = ops.norm(w, axis=self.axis, keepdims=True)
        return w / ops.where(length > 0, length, 1.0)

    def __repr__(self) -> str:
        return f"UnitNorm(axis={self.axis})"


_BY_NAME = {"clip": Clip, "max_norm": MaxNorm, "non_neg": NonNeg, "unit_norm": UnitNorm}


def get(constraint: Any) -> Callable[[Tensor], Tensor] | None:
    """The constraint of a name ("clip", "max_norm", "non_neg", "unit_norm", as they are by
    default); functions and None pass. Raises ValueError for anything else."""
    if constraint is None or (callable(constraint) and not isinstance(constraint, type)):
        return constraint
    if isinstance(constraint, type) or constraint not in _BY_NAME:
        raise ValueError(
            f"constraint {constraint!r} is unknown; expected one of {', '.join(_BY_NAME)}, or a "
            "function such as minidl.constraints.MaxNorm(2.0)"
        )
    return _BY_NAME[constraint]()


def _axes(axis: int | Sequence[int]) -> int | tuple[int, ...]:
    return axis if isinstance(axis, int) else tuple(axis)
