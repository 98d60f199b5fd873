"""Windows over images and sequences, channels last, as the rows of a matrix.

What a convolution and its two gradients compute, on bare arrays and with any number of axes between
the first, of the items, and the last, of the channels. `ops.convolution` makes ops of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from minidl.backend import in_two, namespace
from minidl.errors import ShapeError
from minidl.ops.activations import positive_part
from minidl.ops.products import SPLIT
from minidl.ops.shape import count_of
from minidl.ops.winograd import Winograd, suits

BLOCK = 3 << 19  # bytes of the buffer that holds some items' windows: within a core's cache
PASS = 64  # an elementwise pass over an entry costs about as much as so many products
SHORT = 10  # entries of a window's row up to which it is too short to be copied at once

Sizes = tuple[int, ...]  # one number for each axis between the items and the channels


class Axis(NamedTuple):
    """How outputs meet inputs along an axis; `left` and `right` are widths of padding."""

    stride: int
    left: int
    right: int
    dilation: int = 1

    def reach(self, size: int) -> int:
        """From the first to the last entry of a window of `size` taps."""
        return self.dilation * (size - 1)

    def steps(self, length: int, size: int) -> int:
        """The number of outputs."""
        room = self.left + length + self.right - self.reach(size) - 1
        return max(room // self.stride + 1, 0)


class Geometry(NamedTuple):
    """How outputs meet inputs."""

    axes: tuple[Axis, ...]
    groups: int = 1

    def steps(self, lengths: Sizes, sizes: Sizes) -> Sizes:
        return tuple(a.steps(n, k) for a, n, k in zip(self.axes, lengths, sizes, strict=True))


def per_axis(op: str, name: str, value: Any, axes: int) -> Sizes:
    """`value`, a number or one for each axis, as numbers of 1 or more."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(values) != axes:
        raise ShapeError(f"{op}: {name}: expected a number or {axes} of them, got {value}")
    return tuple(count_of(op, name, n, least=1) for n in values)


def paddings(
    padding: Any, length: int, size: int, stride: int, dilation: int, op: str = "conv1d"
) -> tuple[int, int]:
    """`padding` along one axis as zeros on the left and on the right."""
    reach = dilation * (size - 1)
    if isinstance(padding, str):
        if padding == "valid":
            return 0, 0
        if padding == "causal":
            return reach, 0
        if padding == "same":
            total = max((-(-length // stride) - 1) * stride + reach + 1 - length, 0)
            return total // 2, total - total // 2
        raise ValueError(
            f"{op}: padding: expected 'valid', 'same', 'causal', an integer or (left, right), got "
            f"{padding!r}; use one of them"
        )
    left, right = padding if isinstance(padding, (tuple, list)) else (padding, padding)
    return count_of(op, "padding", left), count_of(op, "padding", right)


def meeting(tap: int, steps: int, length: int, axis: Axis) -> tuple[int, int, slice]:
    """The outputs low to high - 1 that see one of `length` inputs through `tap`, and those."""
    stride, offset = axis.stride, tap * axis.dilation - axis.left
    low = max(0, -(offset // stride))
    high = max(low, min(steps, -((offset - length) // stride)))
    return low, high, slice(low * stride + offset, (high - 1) * stride + offset + 1, stride)


def over_batch(work: Callable[[int, int], Any], x: Any, products: int) -> list:
    """The results of `work(start, stop)` over the batch of `x`: in two halves, where that pays."""
    batch = x.shape[0]
    if namespace(x) is not np or batch < 2 or products < SPLIT:
        return [work(0, batch)]
    half = (batch + 1) // 2
    return list(in_two(lambda: work(0, half), lambda: work(half, batch)))


# --- Matrices -------------------------------------------------------------------------------------


def matrices_of(kernel: Any, groups: int) -> Any:
    """The kernel as one matrix a group: (groups, taps * channels // groups, filters // groups)."""
    rows, filters = math.prod(kernel.shape[:-1]), kernel.shape[-1]
    return kernel.reshape(rows, groups, filters // groups).transpose(1, 0, 2)


def _by_group(x: Any, groups: int) -> Any:
    """(items, ..., channels) as (groups, rows, channels // groups); a view if it can."""
    rows, channels = math.prod(x.shape[:-1]), x.shape[-1]
    return x.reshape(rows, groups, channels // groups).transpose(1, 0, 2)


def _products(x: Any, y: Any, out: Any = None) -> Any:
    """One matrix product a group; of a single group a plain one, as CuPy copies what is batched."""
    if x.shape[0] > 1:
        return namespace(x).matmul(x, y, out=out)
    return namespace(x).matmul(x[0], y[0], out=None if out is None else out[0])


def columns_of(
    x: Any, steps: Sizes, sizes: Sizes, geometry: Geometry, start: int, stop: int
) -> Iterator[tuple[slice, Any]]:
    """The windows that `steps` outputs see, as (groups, rows, taps * channels // groups).

    Goes through the items `start` to `stop` of `x` in blocks, giving (items, windows) for each; all
    blocks share one buffer. On NumPy a block fits the cache; elsewhere it is everything: few calls.
    """
    groups, taps = geometry.groups, math.prod(sizes)
    each = x.shape[-1] // groups
    blocks = _blocks(x, math.prod(steps) * taps * x.shape[-1], start, stop)
    if taps == groups == 1 and all(axis[:3] == (1, 0, 0) for axis in geometry.axes):
        for items in blocks:  # a row of x is a window
            rows = (items.stop - items.start) * math.prod(steps)
            yield items, x[items].reshape(1, rows, each)
        return
    count = max((items.stop - items.start for items in blocks), default=0)
    buffer = _buffer(x, (groups, count), steps, sizes, each)
    fill = _filler(x[start:stop], count, steps, sizes, geometry)
    for items in blocks:
        block = buffer[:, : items.stop - items.start]
        fill(items.start - start, block)
        yield items, block.reshape(groups, block.shape[1] * math.prod(steps), taps * each)


def _blocks(x: Any, entries: int, start: int, stop: int) -> list[slice]:
    """The items `start` to `stop` in slices: on NumPy as many as fit the cache, where an item makes
    so many entries of x's dtype; elsewhere all, for few calls."""
    count = max(stop - start, 1)
    if namespace(x) is np:
        count = min(count, max(BLOCK // max(entries * x.dtype.itemsize, 1), 1))
    return [slice(first, min(first + count, stop)) for first in range(start, stop, count)]


def _buffer(x: Any, front: tuple[int, int], steps: Sizes, sizes: Sizes, channels: int) -> Any:
    """(groups, items, *steps, *sizes, channels) in memory for windows of x. Where the row of a
    window is short, the entries of one tap are neighbours, not those of one window: longer runs to
    copy, and the product takes either."""
    empty = namespace(x).empty
    if sizes[-1] * channels > SHORT:
        return empty((*front, *steps, *sizes, channels), x.dtype)
    groups, items = front
    n, taps = len(steps), (*sizes, channels)
    apart = empty((groups, *taps, items, *steps), x.dtype)
    return apart.transpose(0, *range(n + 2, 2 * n + 3), *range(1, n + 2))


def _filler(x: Any, count: int, steps: Sizes, sizes: Sizes, geometry: Geometry) -> Callable:
    """fill(first, buffer) writes the windows of so many items from `first` on to buffer."""
    if 0 in steps or x.size == 0:
        return lambda first, buffer: buffer.fill(0)
    sides = list(zip(geometry.axes, x.shape[1:-1], strict=True))
    if not any(axis.left or axis.right for axis, _ in sides):
        view = _windows(x, steps, sizes, geometry)

        def fill(first: int, buffer: Any) -> None:
            buffer[...] = view[:, first : first + buffer.shape[1]]

        return fill

    shape = (count, *(axis.left + n + axis.right for axis, n in sides), x.shape[-1])
    padded = namespace(x).zeros(shape, x.dtype)
    inside = tuple(slice(axis.left, axis.left + n) for axis, n in sides)
    view = _windows(padded, steps, sizes, geometry)

    def fill_padded(first: int, buffer: Any) -> None:
        items = buffer.shape[1]
        padded[(slice(items), *inside)] = x[first : first + items]
        buffer[...] = view[:, :items]

    return fill_padded


def _windows(x: Any, steps: Sizes, sizes: Sizes, geometry: Geometry) -> Any:
    """A view of padded x as (groups, items, *steps, *sizes, channels // groups)."""
    axes, n, groups = geometry.axes, len(steps), geometry.groups
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    reaches = tuple(axis.reach(size) + 1 for axis, size in zip(axes, sizes, strict=True))
    slide = namespace(x).lib.stride_tricks.sliding_window_view
    starts = (slice(None, s * a.stride, a.stride) for s, a in zip(steps, axes, strict=True))
    taps = (slice(None, None, axis.dilation) for axis in axes)
    view = slide(x, reaches, axis=tuple(range(1, n + 1)))
    view = view[(slice(None), *starts, slice(None), slice(None), *taps)]
    return view.transpose(n + 1, 0, *range(1, n + 1), *range(n + 3, 2 * n + 3), n + 2)


# --- The three products ---------------------------------------------------------------------------


def convolve(x: Any, kernel: Any, bias: Any, geometry: Geometry, positive: bool = False) -> Any:
    """One matrix product a block of windows; bias and relu while the block is in cache."""
    x, kernel, bias = _of_one_dtype(x, kernel, bias)
    xp, (*sizes, channels, filters) = namespace(x), kernel.shape
    steps = geometry.steps(x.shape[1:-1], sizes)
    if _alone(geometry, channels):
        return _convolve_alone(x, kernel, bias, steps, geometry, positive)
    out = xp.empty((x.shape[0], *steps, filters), x.dtype)
    matrices = matrices_of(kernel, geometry.groups)

    def work(start: int, stop: int) -> None:
        for items, columns in columns_of(x, steps, sizes, geometry, start, stop):
            _products(columns, matrices, _by_group(out[items], geometry.groups))
            finish(out[items], bias, positive)

    def work_less(start: int, stop: int) -> None:
        for items, inputs in way.blocks(x, start, stop):
            way.forward(inputs, out[items])
            finish(out[items], bias, positive)

    if _few_products(x, kernel.shape, geometry):
        way, work = Winograd(kernel, geometry, x.shape[1:-1]), work_less

    over_batch(work, x, out.size * math.prod(sizes) * channels)
    return out


def _of_one_dtype(x: Any, kernel: Any, bias: Any) -> tuple[Any, Any, Any]:
    given = [x, kernel] if bias is None else [x, kernel, bias]
    dtype = np.result_type(*(array.dtype for array in given))
    given = [array.astype(dtype, copy=False) for array in given]
    return given[0], given[1], None if bias is None else given[2]


def finish(block: Any, bias: Any, positive: bool) -> None:
    """bias and relu, in place."""
    if bias is not None:
        block += bias
    if positive:
        positive_part(block, out=block)


def transpose(
    y: Any, kernel: Any, bias: Any, lengths: Sizes, geometry: Geometry, positive: bool = False
) -> Any:
    """What `y`, of the output's shape, gives to an input of these `lengths`; bias and relu then."""
    y, kernel, bias = _of_one_dtype(y, kernel, bias)
    if _alone(geometry, kernel.shape[-2]):
        return _transpose_alone(y, kernel, bias, lengths, geometry, positive)
    if any(axis.stride > 1 for axis in geometry.axes) or 0 in lengths:
        return _scatter(y, kernel, bias, lengths, geometry, positive)
    # Each entry gathers: a convolution of y with the kernel reversed and transposed. Where padding
    # is wider than the kernel reaches, the ends of y met nothing but zeros.
    groups, (*sizes, channels, filters) = geometry.groups, kernel.shape
    n, axes, inside = len(sizes), [], []
    for axis, size, steps in zip(geometry.axes, sizes, y.shape[1:-1], strict=True):
        left, right = axis.reach(size) - axis.left, axis.reach(size) - axis.right
        inside.append(slice(max(-left, 0), steps - max(-right, 0)))
        axes.append(Axis(1, max(left, 0), max(right, 0), axis.dilation))
    reverse = kernel[(slice(None, None, -1),) * n]
    reverse = reverse.reshape(*sizes, channels, groups, filters // groups)
    reverse = reverse.transpose(*range(n), n + 2, n + 1, n)
    reverse = reverse.reshape(*sizes, filters // groups, groups * channels)
    y = y[(slice(None), *inside)]
    return convolve(y, reverse, bias, Geometry(tuple(axes), groups), positive)


def _scatter(
    y: Any, kernel: Any, bias: Any, lengths: Sizes, geometry: Geometry, positive: bool
) -> Any:
    """`transpose` for any stride: products, added where their taps point to."""
    xp, groups, (*sizes, channels, _) = namespace(y), geometry.groups, kernel.shape
    out = xp.empty((y.shape[0], *lengths, groups * channels), y.dtype)
    joint, parts = _parts(kernel, y.shape[1:-1], geometry)
    axes = list(zip(geometry.axes, lengths, strict=True))
    sides = [axis.left + length + axis.right for axis, length in axes]
    sides[-1] = -(-sides[-1] // joint)
    inside = (..., *(slice(a.left, a.left + length) for a, length in axes), slice(None))
    by_group = out.reshape(*out.shape[:-1], groups, channels)
    by_group = by_group.transpose(out.ndim - 1, *range(out.ndim - 1), out.ndim)
    products = math.prod((*y.shape[1:-1], *sizes[:-1], channels * groups))

    def work(start: int, stop: int) -> None:
        for items in _blocks(y, products * joint, start, stop):
            block = y[items]
            rows = _by_group(block, groups)[:, None]
            padded = xp.zeros((groups, len(block), *sides, joint * channels), out.dtype)
            for matrices, hits in parts:
                spread = xp.matmul(rows, matrices)
                spread = spread.reshape(*spread.shape[:2], *block.shape[:-1], spread.shape[-1])
                for number, hit in enumerate(hits):
                    padded[hit] += spread[:, number]
            padded = padded.reshape(*padded.shape[:-2], padded.shape[-2] * joint, channels)
            by_group[:, items] = padded[inside]
            finish(out[items], bias, positive)

    over_batch(work, y, y.shape[0] * products * sizes[-1] * y.shape[-1] // groups)
    return out


def _parts(kernel: Any, steps: Sizes, geometry: Geometry) -> tuple[int, list]:
    """The kernel in parts of neighbouring taps along the last axis, so many to a part that they
    meet neighbouring inputs, as do those of the next output: long runs to add. For each part,
    (groups, places, filters // groups, taps * channels) and for each place, which is a choice of
    taps along the other axes, where the products belong in (groups, items, ..., channels)."""
    groups, (*sizes, channels, filters) = geometry.groups, kernel.shape
    *axes, last = geometry.axes
    joint = last.stride if last.dilation == 1 else 1
    kernel = kernel.reshape(math.prod(sizes[:-1]), sizes[-1], channels, groups, filters // groups)
    parts = []
    for tap in range(0, sizes[-1], joint):
        part = kernel[:, tap : tap + joint].transpose(3, 0, 4, 1, 2)
        width = part.shape[3] * channels
        hits = []
        for taps in product(*(range(size) for size in sizes[:-1])):
            starts = [(t * a.dilation, a.stride) for t, a in zip(taps, axes, strict=True)]
            starts.append((tap * last.dilation // joint, last.stride // joint))
            seen = (slice(f, f + s * n, s) for (f, s), n in zip(starts, steps, strict=True))
            hits.append((slice(None), slice(None), *seen, slice(width)))
        parts.append((part.reshape(*part.shape[:3], width), hits))
    return joint, parts


def correlate(x: Any, y: Any, sizes: Sizes, geometry: Geometry) -> Any:
    """What `y`, of the output's shape, gives to a kernel of these `sizes`."""
    xp, groups = namespace(x), geometry.groups
    _, *steps, filters = y.shape
    channels = x.shape[-1] // groups
    if _alone(geometry, channels):
        return _correlate_alone(x, y, sizes, geometry)
    dtype = np.result_type(x.dtype, y.dtype)

    def work(start: int, stop: int) -> Any:
        shape = (groups, math.prod(sizes) * channels, filters // groups)
        total, part = xp.zeros(shape, dtype), xp.empty(shape, dtype)
        for items, columns in columns_of(x, tuple(steps), sizes, geometry, start, stop):
            _products(columns.swapaxes(1, 2), _by_group(y[items], groups), part)
            total += part
        return total.transpose(1, 0, 2).reshape(*sizes, channels, filters)

    def work_less(start: int, stop: int) -> Any:
        total = np.zeros((4 ** len(sizes), channels, filters), dtype)
        for items, inputs in way.blocks(x, start, stop):
            total += way.kernel_gradient(inputs, way.map_gradient(y[items]))
        return way.finish(total)

    if _few_products(x, (*sizes, channels, filters), geometry):
        way, work = Winograd(None, geometry, x.shape[1:-1]), work_less
    first, *second = over_batch(work, x, y.size * math.prod(sizes) * channels)
    return first + second[0] if second else first


def _few_products(x: Any, kernel_shape: tuple[int, ...], geometry: Geometry) -> bool:
    """Whether Winograd's way is the faster one: not so for sequences that nothing else is done to,
    where it saves a third of the products."""
    return len(kernel_shape) > 3 and suits(x, kernel_shape, geometry)


# --- Each channel alone ---------------------------------------------------------------------------
# With as many groups as channels there is nothing for a matrix to mix: elementwise products, summed
# tap by tap. The filters of a channel see copies of it.


def _alone(geometry: Geometry, channels_of_a_group: int) -> bool:
    return geometry.groups > 1 and channels_of_a_group == 1


def _meetings(lengths: Sizes, steps: Sizes, sizes: Sizes, geometry: Geometry) -> list:
    """Each tap with the outputs and the inputs that meet through it, as indices."""
    found = []
    sides = list(zip(steps, lengths, geometry.axes, strict=True))
    for taps in product(*(range(size) for size in sizes)):
        met = [meeting(tap, *side) for tap, side in zip(taps, sides, strict=True)]
        if all(low < high for low, high, _ in met):
            outs = tuple(slice(low, high) for low, high, _ in met)
            found.append((taps, (slice(None), *outs), (slice(None), *(seen for *_, seen in met))))
    return found


def _weighted(met: list, kernel: Any) -> list:
    """The outputs and inputs of each tap, and its weights, repeated for each output along the last
    axis: a longer run to multiply with."""
    tile = namespace(kernel).tile
    counts = [outs[-1].stop - outs[-1].start for _, outs, _ in met]
    weights = [tile(kernel[(*t, 0)], (n, 1)) for (t, *_), n in zip(met, counts, strict=True)]
    return [(outs, ins, w) for (_, outs, ins), w in zip(met, weights, strict=True)]


def _copies(x: Any, filters: int) -> Any:
    """x with a channel for each filter."""
    each = filters // x.shape[-1]
    return x if each == 1 else namespace(x).repeat(x, each, axis=-1)


def _alone_in_blocks(work: Callable[[slice], Any], x: Any) -> list:
    """work(items) for blocks of the batch."""

    def run(start: int, stop: int) -> list:
        return [work(items) for items in _blocks(x, x[:1].size * 4, start, stop)]

    return [result for some in over_batch(run, x, PASS * x.size) for result in some]


def _convolve_alone(
    x: Any, kernel: Any, bias: Any, steps: Sizes, geometry: Geometry, positive: bool
) -> Any:
    xp, (*sizes, _, filters) = namespace(x), kernel.shape
    out = xp.zeros((x.shape[0], *steps, filters), x.dtype)
    met = _weighted(_meetings(x.shape[1:-1], steps, tuple(sizes), geometry), kernel)

    def work(items: slice) -> None:
        block = _copies(x[items], filters)
        for outs, ins, weights in met:
            out[items][outs] += block[ins] * weights
        finish(out[items], bias, positive)

    _alone_in_blocks(work, out)
    return out


def _transpose_alone(
    y: Any, kernel: Any, bias: Any, lengths: Sizes, geometry: Geometry, positive: bool
) -> Any:
    xp, groups, (*sizes, _, filters) = namespace(y), geometry.groups, kernel.shape
    out = xp.empty((y.shape[0], *lengths, groups), y.dtype)
    met = _weighted(_meetings(lengths, y.shape[1:-1], tuple(sizes), geometry), kernel)

    def work(items: slice) -> None:
        total = xp.zeros((*out[items].shape[:-1], filters), out.dtype)
        for outs, ins, weights in met:
            total[ins] += y[items][outs] * weights
        copies = (*total.shape[:-1], groups, filters // groups)
        out[items] = total if filters == groups else total.reshape(copies).sum(axis=-1)
        finish(out[items], bias, positive)

    _alone_in_blocks(work, y)
    return out


def _correlate_alone(x: Any, y: Any, sizes: Sizes, geometry: Geometry) -> Any:
    xp, filters = namespace(x), y.shape[-1]
    dtype = np.result_type(x.dtype, y.dtype)
    met = _meetings(x.shape[1:-1], y.shape[1:-1], sizes, geometry)

    def work(items: slice) -> Any:
        total = xp.zeros((*sizes, 1, filters), dtype)
        block = _copies(x[items], filters)
        for taps, outs, ins in met:
            rows = (block[ins] * y[items][outs]).reshape(-1, filters)
            total[(*taps, 0)] = xp.ones(len(rows), dtype) @ rows
        return total

    return sum(_alone_in_blocks(work, y), xp.zeros((*sizes, 1, filters), dtype))
