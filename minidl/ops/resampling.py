"""Resampling: larger images without new numbers, channels last."""

from __future__ import annotations

from typing import Any

from minidl.autodiff import Draw, call, primitive, samples
from minidl.errors import ShapeError
from minidl.ops.geometry import Axis, per_axis
from minidl.ops.joining import stack
from minidl.ops.pooling import Window, items_of, window_spread
from minidl.ops.shape import repeat, reshape, shape_of

__all__ = ["pixel_shuffle", "pixel_unshuffle", "upsample_nearest"]


def upsample_nearest(x: Any, size: Any = 2) -> Any:
    """Each entry `size` times along each axis between the first and the last: (batch, height,
    width, n) -> (batch, size * height, size * width, n), and likewise (batch, time, n).

    `size` is a number or one for each of these axes. Raises ShapeError for other shapes.
    """
    axes = len(shape_of(x)) - 2
    if axes < 1:
        items_of("upsample_nearest", x, 2)
    sizes = per_axis("upsample_nearest", "size", size, axes)
    sides = shape_of(x)[1:-1]
    windows = tuple(Window(n, side, Axis(n, 0, 0)) for n, side in zip(sizes, sides, strict=True))
    return window_spread(x, tuple(n * s for n, s in zip(sizes, sides, strict=True)), windows)


def upsample_nearest_definition(x: Any, size: Any = 2) -> Any:
    """upsample_nearest as it is defined: repeat along one axis after the other."""
    sizes = per_axis("upsample_nearest", "size", size, len(shape_of(x)) - 2)
    for axis, n in enumerate(sizes, 1):
        x = repeat(x, n, axis=axis)
    return x


def pixel_shuffle(x: Any, factor: int = 2) -> Any:
    """Channels as space: (batch, height, width, n * factor**2) -> (batch, factor * height, factor *
    width, n).

    out[b, h * factor + i, w * factor + j, c] = x[b, h, w, c * factor**2 + i * factor + j], the
    order of PyTorch's pixel_shuffle. Raises ShapeError for other shapes. Shi et al. 2016.
    """
    channels = items_of("pixel_shuffle", x, 2)[3]
    factor = _factor("pixel_shuffle", factor)
    if channels % (factor * factor):
        raise ShapeError(
            f"pixel_shuffle: x: expected a multiple of {factor * factor} channels for factor "
            f"{factor}, got {channels}; give it that many for each of the result's"
        )
    return _shuffle(x, factor)


def pixel_unshuffle(x: Any, factor: int = 2) -> Any:
    """The inverse of `pixel_shuffle`: (batch, factor * height, factor * width, n) -> (batch,
    height, width, n * factor**2). Raises ShapeError for other shapes."""
    _, height, width, _ = items_of("pixel_unshuffle", x, 2)
    factor = _factor("pixel_unshuffle", factor)
    if height % factor or width % factor:
        raise ShapeError(
            f"pixel_unshuffle: x: expected height and width to be multiples of {factor}, got "
            f"{height} and {width}; pad or crop x"
        )
    return _unshuffle(x, factor)


def _factor(op: str, factor: Any) -> int:
    return per_axis(op, "factor", factor, 1)[0]


@primitive
def _shuffle(x, factor):
    batch, height, width, channels = x.shape
    channels //= factor * factor
    split = x.reshape(batch, height, width, channels, factor, factor)
    out = split.transpose(0, 1, 4, 2, 5, 3).copy(order="C")  # reshape alone may return a view
    return out.reshape(batch, height * factor, width * factor, channels)


@primitive
def _unshuffle(x, factor):
    batch, height, width, channels = x.shape
    height, width = height // factor, width // factor
    split = x.reshape(batch, height, factor, width, factor, channels)
    out = split.transpose(0, 1, 3, 5, 2, 4).copy(order="C")
    return out.reshape(batch, height, width, channels * factor**2)


_shuffle.defvjp(x=lambda g, factor: _unshuffle(g, factor))
_unshuffle.defvjp(x=lambda g, factor: _shuffle(g, factor))


def pixel_shuffle_definition(x: Any, factor: int = 2) -> Any:
    """pixel_shuffle as it is defined: the rows and columns from each of a window's channels."""
    rows = [
        stack([x[..., i * factor + j :: factor * factor] for j in range(factor)], axis=3)
        for i in range(factor)
    ]
    batch, height, width, channels = shape_of(x)
    out = stack(rows, axis=2)  # (batch, height, i, width, j, n)
    return reshape(out, (batch, height * factor, width * factor, channels // (factor * factor)))


@samples(upsample_nearest)
def _(draw: Draw):
    shape = draw.shape(min_dims=3, max_dims=4, max_side=3)
    size = draw.integer(1, 3)
    return call(draw.array(shape), draw.choice([size, (size, *range(2, len(shape) - 1))]))


@samples(pixel_shuffle)
def _(draw: Draw):
    shape, factor = draw.shape(min_dims=4, max_dims=4, max_side=2), draw.integer(1, 2)
    return call(draw.array((*shape[:3], shape[3] * factor**2)), factor)


@samples(pixel_unshuffle)
def _(draw: Draw):
    shape, factor = draw.shape(min_dims=4, max_dims=4, max_side=2), draw.integer(1, 2)
    return call(draw.array((shape[0], shape[1] * factor, shape[2] * factor, shape[3])), factor)
