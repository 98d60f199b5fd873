"""Normalization layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from minidl import ops
from minidl.autodiff import no_grad, replaying
from minidl.backend import current_dtype
from minidl.errors import ShapeError
from minidl.functional.channel_normalization import batch_normalization, group_normalization
from minidl.functional.normalization import layer_normalization
from minidl.graph import Tensor
from minidl.layers.dense import Dense
from minidl.layers.layer import Layer


class _Scaled(Layer):
    """What is normalized, `* gamma + beta` over the last axis, where asked for."""

    center: bool
    scale: bool

    def build(self, input_shape: Any) -> None:
        size = (input_shape[-1],)
        self.gamma = self.add_weight(size, "ones", "gamma") if self.scale else None
        self.beta = self.add_weight(size, "zeros", "beta") if self.center else None


class LayerNormalization(_Scaled):
    """Zero mean and unit variance over the last axis, then `* gamma + beta`, both (size,).

    center, scale: whether there is a `beta`, a `gamma`. Built at once where `input_size` is given.
    Ba, Kiros and Hinton 2016.
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        input_size: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        if input_size is not None:
            self.build((None, input_size))

    def call(self, x: Any) -> Tensor:
        return layer_normalization(x, self.gamma, self.beta, self.epsilon)


class BatchNormalization(Layer):
    """Zero mean and unit variance of each channel over the batch, then `* gamma + beta`.

    x: any shape whose `axis` holds the n channels; `gamma`, `beta` are (n,), where `scale` and
    `center` ask for them. While training the statistics are the batch's, over all other axes, and
    the buffers `moving_mean` and `moving_variance` become momentum * old + (1 - momentum) * new;
    later they stand for them. Batches are seen each by itself: two calls have two statistics. What
    `mask`, x's shape without `axis`, leaves out does not count and is 0 in the result; nothing to
    count leaves the buffers alone. The variance is the batch's own, as in Keras (PyTorch's moving
    one is larger by n / (n - 1)). Built at once where `input_size` is given. Ioffe and Szegedy
    2015.
    """

    moving_mean: Tensor
    moving_variance: Tensor

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        input_size: int | None = None,
    ) -> None:
        self.axis = axis
        self.momentum = momentum
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        if input_size is not None:
            self._build(input_size)
            self.built = True

    def build(self, input_shape: Any) -> None:
        self._build(input_shape[self.axis])

    def _build(self, size: int) -> None:
        self.gamma = self.add_weight((size,), "ones", "gamma") if self.scale else None
        self.beta = self.add_weight((size,), "zeros", "beta") if self.center else None
        self.add_buffer("moving_mean", np.zeros(size, current_dtype()))
        self.add_buffer("moving_variance", np.ones(size, current_dtype()))

    def call(self, x: Any, mask: Any = None) -> Tensor:
        last = self.axis in (-1, x.ndim - 1)
        x = x if last else ops.moveaxis(x, self.axis, -1)
        out = self._from_batch(x, mask) if self.training else self._from_buffers(x, mask)
        return out if last else ops.moveaxis(out, -1, self.axis)

    def _from_batch(self, x: Any, mask: Any) -> Tensor:
        out, mean, variance = batch_normalization(x, self.gamma, self.beta, mask, self.epsilon)
        if x.size and not replaying():
            with no_grad():
                self.moving_mean = self._moved(self.moving_mean, mean, mask)
                self.moving_variance = self._moved(self.moving_variance, variance, mask)
        return out

    def _moved(self, old: Tensor, new: Any, mask: Any) -> Tensor:
        moved = self.momentum * old + (1 - self.momentum) * new.astype(old.dtype)
        return moved if mask is None else ops.where(ops.any(mask), moved, old)

    def _from_buffers(self, x: Any, mask: Any) -> Tensor:
        factor = 1 / ops.sqrt(self.moving_variance + self.epsilon)
        factor = factor if self.gamma is None else factor * self.gamma
        shift = -self.moving_mean * factor
        out = x * factor + (shift if self.beta is None else shift + self.beta)
        out = out.astype(x.dtype) if x.dtype == np.float16 else out  # as while training
        return out if mask is None else ops.where(mask[..., None], out, 0.0)


class GroupNormalization(_Scaled):
    """Zero mean and unit variance of each group of channels of an item, then `* gamma + beta`.

    x (batch, ..., n): n is divided into `groups` equal groups (-1: n groups, which is instance
    normalization), and the statistics of a group are over its channels and all axes between.
    `gamma`, `beta` are (n,), where `scale` and `center` ask for them. What `mask`, x's shape
    without the last axis, leaves out does not count and is 0 in the result. Built at once where
    `input_size` is given. Raises ShapeError unless `groups` divides n. Wu and He 2018.
    """

    def __init__(
        self,
        groups: int = 32,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        input_size: int | None = None,
    ) -> None:
        self.groups = groups
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        if input_size is not None:
            self.build((None, input_size))

    def call(self, x: Any, mask: Any = None) -> Tensor:
        groups = x.shape[-1] if self.groups == -1 else self.groups
        return group_normalization(x, groups, self.gamma, self.beta, mask, self.epsilon)


class ConditionalLayerNormalization(Layer):
    """LayerNormalization whose gamma and beta follow from a condition.

    x (batch, ..., n), condition (batch, m): normalized x * (1 + gamma(condition)) +
    beta(condition), where `gamma` and `beta` are Dense layers of n units that begin as zero: it
    begins as plain layer normalization. Built at once where `input_size` n and `condition_size` m
    are given. Raises ShapeError unless the condition is one vector an item. De Vries et al. 2017,
    who condition batch normalization.
    """

    def __init__(
        self,
        epsilon: float = 1e-3,
        input_size: int | None = None,
        condition_size: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self._condition_size = condition_size
        if input_size is not None:
            self.build((None, input_size))

    def build(self, input_shape: Any) -> None:
        self.gamma, self.beta = (
            Dense(input_shape[-1], kernel_initializer="zeros", input_size=self._condition_size)
            for _ in range(2)
        )

    def call(self, x: Any, condition: Any) -> Tensor:
        if len(condition.shape) != 2 or condition.shape[0] != x.shape[0]:
            raise ShapeError(
                f"ConditionalLayerNormalization: condition: expected shape ({x.shape[0]}, m), a "
                f"vector for each item, got {condition.shape}; pool it over time"
            )
        between = (x.shape[0], *(1 for _ in x.shape[1:-1]), x.shape[-1])
        gamma, beta = (ops.reshape(f(condition), between) for f in (self.gamma, self.beta))
        return layer_normalization(x, epsilon=self.epsilon) * (1 + gamma) + beta


class ScaleShift(Layer):
    """exp(log_scale) * x + shift over the last axis, both parameters (size,) that begin as 0.

    Built at once where `input_size` is given.
    """

    def __init__(self, input_size: int | None = None) -> None:
        if input_size is not None:
            self.build((None, input_size))

    def build(self, input_shape: Any) -> None:
        self.log_scale = self.add_weight((input_shape[-1],), "zeros", "log_scale")
        self.shift = self.add_weight((input_shape[-1],), "zeros", "shift")

    def call(self, x: Any) -> Tensor:
        return ops.exp(self.log_scale) * x + self.shift
