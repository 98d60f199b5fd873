"""Layers that make one tensor of several: called with a list, `Add()([x, y])`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from minidl import ops
from minidl.errors import ShapeError
from minidl.graph import Tensor
from minidl.layers.layer import Layer
from minidl.ops.shape import one_axis, shape_of


class _Merge(Layer):
    """`_join` between one input and the next, elementwise; shapes broadcast."""

    _join: Callable = staticmethod(ops.add)

    def call(self, inputs: Sequence[Any]) -> Tensor:
        if not isinstance(inputs, (list, tuple)) or not inputs:
            kind = type(self).__name__
            raise TypeError(
                f"{kind}: inputs: expected a list of tensors, got {type(inputs).__name__} of "
                f"{len(inputs)}; call it as {kind}()([x, y])"
            )
        return functools.reduce(self._join, inputs)


class Add(_Merge):
    """x + y + ..."""


class Subtract(_Merge):
    """x - y, of two inputs. Raises ValueError for another number."""

    _join = staticmethod(ops.subtract)

    def call(self, inputs: Sequence[Any]) -> Tensor:
        if len(inputs) != 2:
            raise ValueError(f"Subtract: inputs: expected two, got {len(inputs)}")
        return super().call(inputs)


class Multiply(_Merge):
    """x * y * ..."""

    _join = staticmethod(ops.multiply)


class Average(_Merge):
    """(x + y + ...) / number of inputs."""

    def call(self, inputs: Sequence[Any]) -> Tensor:
        return super().call(inputs) * (1 / len(inputs))


class Maximum(_Merge):
    """The largest of the inputs, elementwise. Two that tie share the gradient equally."""

    _join = staticmethod(ops.maximum)


class Minimum(_Merge):
    """The smallest of the inputs, elementwise. Two that tie share the gradient equally."""

    _join = staticmethod(ops.minimum)


class Concatenate(Layer):
    """The inputs one after another along `axis`."""

    def __init__(self, axis: int = -1) -> None:
        self.axis = axis

    def call(self, inputs: Sequence[Any]) -> Tensor:
        return ops.concatenate(inputs, self.axis)


class Dot(Layer):
    """The sum of products of two inputs along an axis of each, item by item.

    axes: one axis or a pair, not the batch. (batch, i, n) and (batch, j, n) at axes=2 give
    (batch, i, j); (batch, n) twice gives (batch, 1). normalize: of vectors of length 1, which makes
    it the cosine of their angle. Raises ShapeError where the two sides or the batches differ.
    """

    def __init__(self, axes: int | tuple[int, int], normalize: bool = False) -> None:
        self.axes = axes
        self.normalize = normalize

    def call(self, inputs: Sequence[Any]) -> Tensor:
        x, y = inputs
        both = (self.axes, self.axes) if isinstance(self.axes, int) else self.axes
        shapes = shape_of(x), shape_of(y)
        axes = [one_axis("Dot", axis, len(s)) for axis, s in zip(both, shapes, strict=True)]
        if 0 in axes or shapes[0][axes[0]] != shapes[1][axes[1]]:
            raise ShapeError(
                f"Dot: axes: expected two axes of one length, not the batch, got {self.axes} of "
                f"shapes {shapes[0]} and {shapes[1]}"
            )
        if shapes[0][0] != shapes[1][0]:  # einsum would repeat a batch of 1
            raise ShapeError(
                f"Dot: inputs: expected as many items in both, got shapes {shapes[0]} and "
                f"{shapes[1]}"
            )
        if self.normalize:
            x, y = (
                z / ops.maximum(ops.norm(z, axis=axis, keepdims=True), 1e-12)
                for z, axis in zip((x, y), axes, strict=True)
            )
        return self._products(x, y, axes)

    def _products(self, x: Any, y: Any, axes: list[int]) -> Tensor:
        """By einsum: "b" the batch, "n" what is summed, other letters for the other axes."""
        letters = iter("acdefghijklm")
        names = [
            ["b" if i == 0 else "n" if i == axis else next(letters) for i in range(z.ndim)]
            for z, axis in zip((x, y), axes, strict=True)
        ]
        rest = [letter for letter in names[0] + names[1] if letter not in "bn"]
        formula = f"{''.join(names[0])},{''.join(names[1])}->{''.join(['b', *rest])}"
        out = ops.einsum(formula, x, y)
        return out if rest else ops.expand_dims(out, 1)
