"""Convolution with kernels of size 3 by fewer multiplications: Winograd's F(2, 3) along each axis.

Two neighbouring outputs y0, y1 see four inputs x0 ... x3 through three taps k0, k1, k2:

    y0 = x0 k0 + x1 k1 + x2 k2        y1 = x1 k0 + x2 k1 + x3 k2

six products. These four do, with sums that are cheap beside products of matrices:

    m0 = (x0 - x2) k0                       y0 = m0 + m1 + m2
    m1 = (x1 + x2) (k0 + k1 + k2) / 2       y1 = m1 - m2 - m3
    m2 = (x2 - x1) (k0 - k1 + k2) / 2
    m3 = (x1 - x3) k2

So there are three linear maps, of inputs, kernel and products; backward takes their transposes. For
images each map is applied along one axis, then along the other: 16 products for 36. The results are
those of the plain sums up to rounding: in float32 at 128 channels both are off by up to 1e-6 of the
largest entry. (Winograd 1980; Lavin and Gray 2016, sections 4.1 and 4.2.)

With dilation d the outputs t and t + d are neighbours. An axis is cut into tiles of 2 d entries; x0
and x1 are the first and the second d entries of a tile, x2 and x3 those of the next.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

BLOCK = 3 << 18  # bytes of a block's mapped inputs: within a core's cache
WORTH = 1_000_000  # multiply-adds of a tap from which fewer of them pay for more calls
LEAST = {1: 64 * 128, 2: 32 * 64}  # channels * filters, by axes, from which products outweigh sums


def suits(x: Any, kernel_shape: tuple[int, ...], geometry: Any) -> bool:
    """Whether this way is right, and the faster one: it adds up more, and pads to whole tiles."""
    *sizes, channels, filters = kernel_shape
    if type(x) is not np.ndarray or set(sizes) != {3} or len(sizes) not in LEAST:
        return False
    if geometry.groups > 1 or any(axis.stride > 1 for axis in geometry.axes):
        return False
    if x.dtype.kind != "f" or x.itemsize < 4 or channels * filters < LEAST[len(sizes)]:
        return False
    steps = geometry.steps(x.shape[1:-1], sizes)
    whole = (_whole(n, a.dilation) for n, a in zip(steps, geometry.axes, strict=True))
    return (
        4 * math.prod(whole) <= 5 * math.prod(steps)
        and x.shape[0] * math.prod(steps) * channels * filters >= WORTH
    )


def _whole(steps: int, dilation: int) -> int:
    """`steps` up to whole tiles."""
    return steps + -steps % (2 * dilation)


class Winograd:
    """Convolutions of (items, ..., channels) with one kernel (3, ..., channels, filters), of stride
    1. Without the kernel it serves for the kernel's gradient alone. NumPy only."""

    def __init__(self, kernel: Any, geometry: Any, lengths: tuple[int, ...]) -> None:
        self.n, self.lengths = len(lengths), lengths
        self.steps = geometry.steps(lengths, (3,) * self.n)
        self.dilations = tuple(axis.dilation for axis in geometry.axes)
        self.before = tuple(axis.left for axis in geometry.axes)
        self.tiles = tuple(
            _whole(n, d) // (2 * d) for n, d in zip(self.steps, self.dilations, strict=True)
        )
        halves = range(2, 3 * self.n + 1, 3)
        self._halves_first = [*halves, *(i for i in range(3 * self.n + 2) if i not in halves)]
        if kernel is not None:
            for axis in range(self.n):
                kernel = _map_kernel(kernel, axis)
            self.kernel = kernel.reshape(4**self.n, *kernel.shape[-2:])

    def blocks(self, x: Any, start: int, stop: int) -> Iterator[tuple[slice, Any]]:
        """Some items, and what their inputs become, (4**n, rows, channels), block after block."""
        count = max(BLOCK // max(2**self.n * x[0].nbytes, 1), 1)
        for first in range(start, stop, count):
            items = slice(first, min(first + count, stop))
            block = self._tiled(x[items], self.before, tuple(t + 1 for t in self.tiles))
            for axis in range(self.n):
                block = _map_input(block, axis, self._tile_axis(axis))
            yield items, self._rows(block)

    def forward(self, inputs: Any, out: Any = None) -> Any:
        """The outputs, (items, *steps, filters), of a block."""
        products = self._by_tile(np.matmul(inputs, self.kernel))
        for axis in range(self.n):
            products = _map_products(products, axis)
        return self._untiled(products, (0,) * self.n, self.steps, out)

    def map_gradient(self, g: Any) -> Any:
        """What the gradient of a block's outputs becomes, for the two products of backward."""
        g = self._tiled(g, (0,) * self.n, self.tiles)
        for axis in range(self.n):
            g = _map_products_transposed(g, axis)
        return self._rows(g)

    def input_gradient(self, upstream: Any, out: Any = None) -> Any:
        """The gradient of the block itself, from what `map_gradient` gave."""
        products = self._by_tile(np.matmul(upstream, self.kernel.swapaxes(1, 2)))
        for axis in range(self.n):
            products = _map_input_transposed(products, axis, self._tile_axis(axis))
        return self._untiled(products, self.before, self.lengths, out)

    def kernel_gradient(self, inputs: Any, upstream: Any) -> Any:
        """This block's part of the sum that `finish` makes the kernel's gradient of."""
        return np.matmul(inputs.swapaxes(1, 2), upstream)

    def finish(self, total: Any) -> Any:
        total = total.reshape((4,) * self.n + total.shape[1:])
        for axis in range(self.n):
            total = _map_kernel_transposed(total, axis)
        return total

    # Tiles are (2, ..., items, tiles, dilation, tiles, dilation, ..., channels), as many 2 as there
    # are axes, for the two halves of a tile along each; a map turns such a 2 into 4, or back.

    def _tile_axis(self, axis: int) -> int:
        return self.n + 1 + 2 * axis

    def _tiled(self, x: Any, before: tuple[int, ...], tiles: tuple[int, ...]) -> Any:
        """x behind so many zeros along each axis, and zeros after it, in tiles."""
        items, *lengths, channels = x.shape
        sides = [2 * t * d for t, d in zip(tiles, self.dilations, strict=True)]
        if sides != lengths:
            padded = np.zeros((items, *sides, channels), x.dtype)
            inside = (slice(b, b + length) for b, length in zip(before, lengths, strict=True))
            padded[(slice(None), *inside)] = x
            x = padded
        return np.ascontiguousarray(self._split(x, tiles))

    def _split(self, x: Any, tiles: tuple[int, ...]) -> Any:
        """A view in tiles of (items, ..., channels), whose sides are whole tiles."""
        sides = [s for t, d in zip(tiles, self.dilations, strict=True) for s in (t, 2, d)]
        return x.reshape(x.shape[0], *sides, x.shape[-1]).transpose(self._halves_first)

    def _untiled(self, x: Any, before: tuple[int, ...], lengths: tuple[int, ...], out: Any) -> Any:
        """The entries that `_tiled` put into tiles, in `out`."""
        tiles = x.shape[self.n + 1 : -1 : 2]
        items, channels = x.shape[self.n], x.shape[-1]
        sides = tuple(2 * t * d for t, d in zip(tiles, self.dilations, strict=True))
        if out is None:
            out = np.empty((items, *lengths, channels), x.dtype)
        if sides == lengths:
            self._split(out, tiles)[...] = x
        else:
            whole = np.empty((items, *sides, channels), x.dtype)
            self._split(whole, tiles)[...] = x
            inside = (slice(b, b + length) for b, length in zip(before, lengths, strict=True))
            out[...] = whole[(slice(None), *inside)]
        return out

    def _rows(self, x: Any) -> Any:
        return x.reshape(4**self.n, math.prod(x.shape[self.n : -1]), x.shape[-1])

    def _by_tile(self, products: Any) -> Any:
        sides = [s for t, d in zip(self.tiles, self.dilations, strict=True) for s in (t, d)]
        items = products.shape[1] // max(math.prod(sides), 1)
        return products.reshape(*(4,) * self.n, items, *sides, products.shape[2])


# --- The maps of kernel, input and products along an axis, and their transposes -------------------


@cache
def _along(axis: int, count: int) -> list[tuple]:
    """The indices of the `count` parts along an axis."""
    return [(slice(None),) * axis + (i,) for i in range(count)]


@cache
def _four(axis: int, tiles: int) -> list[tuple]:
    """The indices of x0 to x3 of each tile, of which the next tile has the last two."""
    between = (slice(None),) * (tiles - axis - 1)
    this, following = slice(None, -1), slice(1, None)
    return [(*_along(axis, 2)[i], *between, part) for part in (this, following) for i in (0, 1)]


def _map_kernel(k: Any, axis: int) -> Any:
    k0, k1, k2 = (k[i] for i in _along(axis, 3))
    middle, ends = k1 * 0.5, (k0 + k2) * 0.5
    return np.stack([k0, ends + middle, ends - middle, k2], axis=axis)


def _map_kernel_transposed(m: Any, axis: int) -> Any:
    m0, m1, m2, m3 = [m[i] for i in _along(axis, 4)]
    ends = (m1 + m2) * 0.5
    return np.stack([m0 + ends, (m1 - m2) * 0.5, ends + m3], axis=axis)


def _map_input(x: Any, axis: int, tiles: int) -> Any:
    x0, x1, x2, x3 = [x[i] for i in _four(axis, tiles)]
    shape = (*x.shape[:axis], 4, *x.shape[axis + 1 : tiles], x.shape[tiles] - 1)
    out = np.empty((*shape, *x.shape[tiles + 1 :]), x.dtype)
    m0, m1, m2, m3 = [out[i] for i in _along(axis, 4)]
    np.subtract(x0, x2, out=m0)
    np.add(x1, x2, out=m1)
    np.subtract(x2, x1, out=m2)
    np.subtract(x1, x3, out=m3)
    return out


def _map_input_transposed(m: Any, axis: int, tiles: int) -> Any:
    shape = (*m.shape[:axis], 2, *m.shape[axis + 1 : tiles], m.shape[tiles] + 1)
    x = np.empty((*shape, *m.shape[tiles + 1 :]), m.dtype)
    x0, x1, x2, x3 = [x[i] for i in _four(axis, tiles)]
    m0, m1, m2, m3 = [m[i] for i in _along(axis, 4)]
    x[(slice(None),) * tiles + (-1,)] = 0
    x0[...] = m0
    np.subtract(m1, m2, out=x1)
    x1 += m3
    x2 -= m0
    x2 += m1
    x2 += m2
    x3 -= m3
    return x


def _map_products(m: Any, axis: int) -> Any:
    y = np.empty((*m.shape[:axis], 2, *m.shape[axis + 1 :]), m.dtype)
    y0, y1 = [y[i] for i in _along(axis, 2)]
    m0, m1, m2, m3 = [m[i] for i in _along(axis, 4)]
    np.add(m0, m1, out=y0)
    y0 += m2
    np.subtract(m1, m2, out=y1)
    y1 -= m3
    return y


def _map_products_transposed(y: Any, axis: int) -> Any:
    y0, y1 = [y[i] for i in _along(axis, 2)]
    out = np.empty((*y.shape[:axis], 4, *y.shape[axis + 1 :]), y.dtype)
    m0, m1, m2, m3 = [out[i] for i in _along(axis, 4)]
    m0[...] = y0
    np.add(y0, y1, out=m1)
    np.subtract(y0, y1, out=m2)
    np.negative(y1, out=m3)
    return out
