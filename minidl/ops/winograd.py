"""Convolution with a kernel of size 3 by two thirds of the multiplications: Winograd's F(2, 3).

Two neighbouring outputs y0, y1 see four inputs x0 ... x3 through three taps k0, k1, k2:

    y0 = x0 k0 + x1 k1 + x2 k2        y1 = x1 k0 + x2 k1 + x3 k2

six products. These four do, with sums that are cheap beside products of matrices:

    m0 = (x0 - x2) k0                       y0 = m0 + m1 + m2
    m1 = (x1 + x2) (k0 + k1 + k2) / 2       y1 = m1 - m2 - m3
    m2 = (x2 - x1) (k0 - k1 + k2) / 2
    m3 = (x1 - x3) k2

So there are three linear maps, of inputs, kernel and products; backward takes their transposes. The
results are those of the plain sums up to rounding: in float32 at 128 channels both are off by up to
1e-6 of the largest entry. (Winograd 1980; Lavin and Gray 2016, section 4.1.)

With dilation d the outputs t and t + d are neighbours. Time is cut into tiles of 2 d steps; x0 and
x1 are the first and the second d steps of a tile, x2 and x3 those of the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

BLOCK = 1 << 20  # bytes of a block's mapped inputs: within a core's cache
WORTH = 1_000_000  # multiply-adds of a tap from which fewer of them pay for more calls


def suits(x: Any, kernel_shape: tuple[int, ...], geometry: Any) -> bool:
    """Whether this way is right, and the faster one: it adds up more, and pads to whole tiles."""
    size, channels, filters = kernel_shape
    (batch, time, _), (stride, left, right, dilation, groups) = x.shape, geometry
    return (
        type(x) is np.ndarray
        and size == 3
        and stride == groups == 1
        and left + right == 2 * dilation
        and min(left, right) >= 0
        and x.dtype.kind == "f"
        and x.itemsize >= 4
        and channels * filters >= 64 * 128
        and 4 * (-time % (2 * dilation)) <= time
        and batch * time * channels * filters >= WORTH
    )


class Winograd:
    """Convolutions of (items, time, channels) with one kernel (3, channels, filters), as long as
    the input. NumPy only."""

    def __init__(self, kernel: Any, geometry: Any, time: int) -> None:
        self.kernel = _map_kernel(kernel)
        self.dilation, self.left, self.time = geometry.dilation, geometry.left, time
        self.tiles = -(-time // (2 * self.dilation))

    def blocks(self, x: Any, start: int, stop: int) -> Iterator[tuple[slice, Any]]:
        """Some items, and what their inputs become, (4, rows, channels), block after block."""
        count = max(BLOCK // max(2 * x[0].nbytes, 1), 1)  # mapped, it is twice as large
        for first in range(start, stop, count):
            items = slice(first, min(first + count, stop))
            yield items, _map_input(self._tiled(x[items], self.left, self.tiles + 1))

    def forward(self, inputs: Any) -> Any:
        """The outputs, (items, time, filters), of a block."""
        products = self._by_tile(np.matmul(inputs, self.kernel))
        return self._untiled(_map_products(products), 0)

    def map_gradient(self, g: Any) -> Any:
        """What the gradient of a block's outputs becomes, for the two products of backward."""
        return _map_products_transposed(self._tiled(g, 0, self.tiles))

    def input_gradient(self, upstream: Any) -> Any:
        """The gradient of the block itself, from what `map_gradient` gave."""
        products = self._by_tile(np.matmul(upstream, self.kernel.swapaxes(1, 2)))
        return self._untiled(_map_input_transposed(products), self.left)

    def kernel_gradient(self, inputs: Any, upstream: Any) -> Any:
        """This block's part of the sum that `finish` makes the kernel's gradient of."""
        return np.matmul(inputs.swapaxes(1, 2), upstream)

    def finish(self, total: Any) -> Any:
        return _map_kernel_transposed(total)

    def _tiled(self, x: Any, left: int, tiles: int) -> Any:
        """x behind `left` zeros, and zeros after it, as (items, tiles, 2, dilation, channels)."""
        items, time, channels = x.shape
        length = tiles * 2 * self.dilation
        if length != time:
            padded = np.empty((items, length, channels), x.dtype)
            padded[:, :left] = padded[:, left + time :] = 0
            padded[:, left : left + time] = x
            x = padded
        return x.reshape(items, tiles, 2, self.dilation, channels)

    def _untiled(self, x: Any, left: int) -> Any:
        """The steps that `_tiled` made (items, tiles, 2, dilation, channels) of."""
        items, tiles, _, dilation, channels = x.shape
        return x.reshape(items, tiles * 2 * dilation, channels)[:, left : left + self.time]

    def _by_tile(self, products: Any) -> Any:
        items = products.shape[1] // max(self.tiles * self.dilation, 1)
        return products.reshape(4, items, self.tiles, self.dilation, products.shape[2])


# --- The maps of kernel, input and products, and their transposes ---------------------------------
# Tiles are (items, tiles, 2, dilation, channels); what the products take and give is
# (4, rows, channels), a row for each item, tile and step of dilation.


def _map_kernel(k: Any) -> Any:
    middle, ends = k[1] * 0.5, (k[0] + k[2]) * 0.5
    return np.stack([k[0], ends + middle, ends - middle, k[2]])


def _map_kernel_transposed(m: Any) -> Any:
    ends = (m[1] + m[2]) * 0.5
    return np.stack([m[0] + ends, (m[1] - m[2]) * 0.5, ends + m[3]])


def _four(x: Any) -> tuple[Any, Any, Any, Any]:
    """x0 to x3 of each tile, of which the next tile has the last two."""
    return x[:, :-1, 0], x[:, :-1, 1], x[:, 1:, 0], x[:, 1:, 1]


def _map_input(x: Any) -> Any:
    x0, x1, x2, x3 = _four(x)
    out = np.empty((4, *x0.shape), x.dtype)
    np.subtract(x0, x2, out=out[0])
    np.add(x1, x2, out=out[1])
    np.subtract(x2, x1, out=out[2])
    np.subtract(x1, x3, out=out[3])
    return out.reshape(4, x0.size // x.shape[-1], x.shape[-1])


def _map_input_transposed(m: Any) -> Any:
    _, items, tiles, dilation, channels = m.shape
    x = np.empty((items, tiles + 1, 2, dilation, channels), m.dtype)
    x0, x1, x2, x3 = _four(x)
    x[:, -1] = 0
    x0[...] = m[0]
    np.subtract(m[1], m[2], out=x1)
    x1 += m[3]
    x2 -= m[0]
    x2 += m[1]
    x2 += m[2]
    x3 -= m[3]
    return x


def _map_products(m: Any) -> Any:
    _, items, tiles, dilation, filters = m.shape
    y = np.empty((items, tiles, 2, dilation, filters), m.dtype)
    y0, y1 = y[:, :, 0], y[:, :, 1]
    np.add(m[0], m[1], out=y0)
    y0 += m[2]
    np.subtract(m[1], m[2], out=y1)
    y1 -= m[3]
    return y


def _map_products_transposed(y: Any) -> Any:
    y0, y1 = y[:, :, 0], y[:, :, 1]
    out = np.empty((4, *y0.shape), y.dtype)
    out[0] = y0
    np.add(y0, y1, out=out[1])
    np.subtract(y0, y1, out=out[2])
    np.negative(y1, out=out[3])
    return out.reshape(4, y0.size // y.shape[-1], y.shape[-1])
