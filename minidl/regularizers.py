"""Penalties on parameters and on outputs, which `losses()` of a layer adds to the model's loss.

A regularizer is a function from a tensor to a scalar. Names and arguments as in Keras.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidl import ops
from minidl.functional import spectral
from minidl.graph import Tensor
from minidl.ops.shape import shape_of


class L1L2:
    """l1 * sum(|x|) + l2 * sum(x^2)."""

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        for name, value in (("l1", l1), ("l2", l2)):
            if not value >= 0:
                raise ValueError(
                    f"{type(self).__name__}: {name}: expected a number >= 0, got {value!r}; a "
                    "penalty must not reward"
                )
        self.l1 = float(l1)
        self.l2 = float(l2)

    def __call__(self, x: Any) -> Tensor:
        if not self.l1:
            return self.l2 * ops.sum(ops.square(x))
        total = self.l1 * ops.sum(ops.abs(x))
        return total + self.l2 * ops.sum(ops.square(x)) if self.l2 else total

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items() if v)})"


class L1(L1L2):
    """l1 * sum(|x|), which makes entries zero; the gradient at 0 is 0."""

    def __init__(self, l1: float = 0.01) -> None:
        super().__init__(l1=l1)


class L2(L1L2):
    """l2 * sum(x^2), which makes entries small."""

    def __init__(self, l2: float = 0.01) -> None:
        super().__init__(l2=l2)


class SpectralNorm:
    """factor * sigma^2 / 2, where sigma is the spectral norm of x as a matrix (inputs, outputs).

    sigma is found by `power_iterations` from a vector that is the same at each call: the penalty
    depends on the kernel alone, so that a resumed training repeats itself, and needs a few
    iterations where one that remembers its vectors needs one. The gradient, factor * sigma u v^T,
    holds the singular vectors fixed. Yoshida and Miyato 2017.
    """

    def __init__(self, factor: float = 0.01, power_iterations: int = 10) -> None:
        if not factor >= 0:
            raise ValueError(f"SpectralNorm: factor: expected a number >= 0, got {factor!r}")
        if power_iterations < 1:
            raise ValueError(
                f"SpectralNorm: power_iterations: expected 1 or more, got {power_iterations!r}"
            )
        self.factor = float(factor)
        self.power_iterations = power_iterations

    def __call__(self, x: Any) -> Tensor:
        matrix = spectral.as_matrix(x)
        start = spectral.starting_vector(shape_of(matrix)[:1], x)[0]
        sigma, _, _ = spectral.power_iteration(matrix, start, self.power_iterations)
        return (0.5 * self.factor) * ops.square(sigma)

    def __repr__(self) -> str:
        return f"SpectralNorm(factor={self.factor}, power_iterations={self.power_iterations})"


_BY_NAME = {"l1": L1, "l2": L2, "l1_l2": lambda: L1L2(0.01, 0.01)}


def get(regularizer: Any) -> Callable[[Tensor], Tensor] | None:
    """The regularizer of a name ("l1", "l2", "l1_l2", each with factors 0.01); functions and None
    pass. Raises ValueError for anything else."""
    if regularizer is None or callable(regularizer):
        return regularizer
    if regularizer not in _BY_NAME:
        known = ", ".join(_BY_NAME)
        raise ValueError(
            f"regularizer {regularizer!r} is unknown; expected one of {known}, or a function such "
            "as minidl.regularizers.L2(1e-4)"
        )
    return _BY_NAME[regularizer]()


def per_item(regularizer: Callable[[Tensor], Tensor], outputs: Any) -> Tensor:
    """The penalty on a batch of outputs divided by its size: it does not grow with the batch."""
    if isinstance(outputs, (list, tuple)):
        return sum(
            (per_item(regularizer, y) for y in outputs[1:]), per_item(regularizer, outputs[0])
        )
    count = next(iter(shape_of(outputs)), 1)
    return regularizer(outputs) * (1 / max(1, count))
