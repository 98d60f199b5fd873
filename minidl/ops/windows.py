"""Windows over images and sequences, channels last, as the rows of a matrix.

What a convolution and its two gradients compute, on bare arrays and with any number of axes between
the first, of the items, and the last, of the channels. `ops.convolution` makes ops of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np

from minidl.backend import in_two, namespace
from minidl.ops.activations import positive_part
from minidl.ops.geometry import Axis, Geometry, Run, Sizes, meeting, runs_of
from minidl.ops.products import SPLIT
from minidl.ops.winograd import Winograd, suits

BLOCK = 3 << 19  # bytes of the buffer that holds some items' windows: within a core's cache
PASS = 64  # an elementwise pass over an entry costs about as much as so many products
ROWS = 20  # of a block's matrix of windows, from which it pays to multiply them apart
SHORT = 10  # entries of a window's row up to which it is too short to be copied at once


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
    x: Any, steps: Sizes, sizes: Sizes, geometry: Geometry, start: int, stop: int,
    steps_first: bool = False,
) -> Iterator[tuple[slice, Any]]:  # fmt: skip
    """The windows that `steps` outputs see, as (groups, rows, taps * channels // groups); with
    `steps_first` all items' first outputs come before all second ones.

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
    most = max((items.stop - items.start for items in blocks), default=0)
    fill = _filler(x[start:stop], most, steps, sizes, geometry)
    buffer = None
    for items in blocks:
        count = items.stop - items.start
        if buffer is None or buffer.shape[1] != count:
            buffer = _buffer(x, (groups, count), steps, sizes, each, steps_first)
        fill(items.start - start, buffer)
        block = buffer.swapaxes(1, 2) if steps_first else buffer
        yield items, block.reshape(groups, count * math.prod(steps), taps * each)


def _blocks(x: Any, entries: int, start: int, stop: int) -> list[slice]:
    """The items `start` to `stop` in slices: on NumPy as many as fit the cache, where an item makes
    so many entries of x's dtype; elsewhere all, for few calls."""
    count = max(stop - start, 1)
    if namespace(x) is np:
        most = max(BLOCK // max(entries * x.dtype.itemsize, 1), 1)
        count = -(-count // -(-count // most))  # blocks of about one size
    return [slice(first, min(first + count, stop)) for first in range(start, stop, count)]


def _buffer(
    x: Any, front: tuple[int, int], steps: Sizes, sizes: Sizes, channels: int, steps_first: bool
) -> Any:
    """(groups, items, *steps, *sizes, channels) in memory for windows of x. Where the row of a
    window is short, the entries of one tap are neighbours, not those of one window: longer runs to
    copy, and the product takes either. With `steps_first` the first axis of outputs comes before
    the items in memory."""
    (groups, items), n, taps = front, len(steps), (*sizes, channels)
    outs = (steps[0], items, *steps[1:]) if steps_first else (items, *steps)
    if sizes[-1] * channels > SHORT:
        buffer = namespace(x).empty((groups, *outs, *taps), x.dtype)
    else:
        apart = namespace(x).empty((groups, *taps, *outs), x.dtype)
        buffer = apart.transpose(0, *range(n + 2, 2 * n + 3), *range(1, n + 2))
    return buffer.swapaxes(1, 2) if steps_first else buffer


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
    runs = _runs(x, steps, tuple(sizes), geometry)
    steps_first = len(runs) > 1

    def work(start: int, stop: int) -> None:
        for items, columns in columns_of(x, steps, sizes, geometry, start, stop, steps_first):
            block = out[items]
            if steps_first:
                block = xp.empty((steps[0], len(block), *steps[1:], filters), x.dtype)
            found = _by_group(block, geometry.groups)
            for rows, taps in _slices(runs, columns, steps, tuple(sizes)):
                _products(columns[:, rows, taps], matrices[:, taps], found[:, rows])
            if steps_first:
                out[items] = block.swapaxes(0, 1)
            finish(out[items], bias, positive)

    def work_less(start: int, stop: int) -> None:
        for items, inputs in way.blocks(x, start, stop):
            way.forward(inputs, out[items])
            finish(out[items], bias, positive)

    if _few_products(x, kernel.shape, geometry):
        way, work = Winograd(kernel, geometry, x.shape[1:-1]), work_less

    over_batch(work, x, out.size * math.prod(sizes) * channels)
    return out


def _runs(x: Any, steps: Sizes, sizes: Sizes, geometry: Geometry) -> list[Run]:
    """The runs along the first axis; on devices one, for few calls."""
    if namespace(x) is not np:
        return [Run(slice(0, steps[0]), slice(0, sizes[0]))]
    rows = math.prod(steps)
    first, *_ = _blocks(x, rows * math.prod(sizes) * x.shape[-1], 0, max(x.shape[0], 1))
    most = first.stop * rows // ROWS
    return runs_of(x.shape[1], steps[0], sizes[0], geometry.axes[0], most)


def _slices(runs: list[Run], columns: Any, steps: Sizes, sizes: Sizes) -> list:
    """The rows and columns of a matrix of windows that each run is."""
    rows, width = columns.shape[1] // max(steps[0], 1), columns.shape[2] // sizes[0]
    return [
        (slice(o.start * rows, o.stop * rows), slice(t.start * width, t.stop * width))
        for o, t in runs
    ]


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
    """`transpose` for any stride: products, added where their taps point to. The items come after
    the axes, so that it is cheap to leave out the outputs that see nothing but padding."""
    xp, groups, (*sizes, channels, _) = namespace(y), geometry.groups, kernel.shape
    last, steps = geometry.axes[-1], y.shape[1:-1]
    out = xp.empty((y.shape[0], *lengths, groups * channels), y.dtype)
    joint, parts = _parts(kernel, lengths, steps, geometry)
    side = -(-(last.left + lengths[-1] + last.right) // joint)
    from_y, into_out = _items_last(y, groups), _items_last(out, groups)
    products = math.prod((*steps, *sizes[:-1], channels * groups))

    def work(start: int, stop: int) -> None:
        for items in _blocks(y, products * joint, start, stop):
            shape = (groups, *lengths[:-1], side, items.stop - items.start, joint * channels)
            padded = xp.zeros(shape, out.dtype)  # along the last axis only
            for seen, matrices in parts:
                given = xp.ascontiguousarray(from_y[..., seen, items, :])
                for outs, matrix, place in matrices:
                    block = given[outs]
                    rows = block.reshape(groups, math.prod(block.shape[1:-1]), block.shape[-1])
                    spread = _products(rows, matrix)
                    padded[place] += spread.reshape(*block.shape[:-1], matrix.shape[-1])
            for phase in range(joint):
                first = -(-(last.left - phase) // joint)
                target = into_out[..., first * joint + phase - last.left :: joint, items, :]
                inside = slice(first, first + target.shape[-3])
                target[...] = padded[..., inside, :, phase * channels : (phase + 1) * channels]
            finish(out[items], bias, positive)

    over_batch(work, y, y.shape[0] * products * sizes[-1] * y.shape[-1] // groups)
    return out


def _items_last(x: Any, groups: int) -> Any:
    """A view (groups, *axes, items, channels // groups)."""
    n = x.ndim
    x = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
    return x.transpose(n - 1, *range(1, n - 1), 0, n)


def _parts(kernel: Any, lengths: Sizes, steps: Sizes, geometry: Geometry) -> tuple[int, list]:
    """`joint` neighbouring taps along the last axis make a part: so many as meet neighbouring
    inputs with those of the next output, for long runs to add. Returns (joint, parts), of each part
    (seen, matrices): the outputs along the last axis that see inputs through it, and for each
    choice of taps along the other axes (outs, matrix, place): the outputs that see inputs through
    these, the taps' matrix (groups, filters // groups, taps * channels), and where the products
    belong in (groups, *lengths[:-1], places along the last axis, items, joint * channels)."""
    groups, (*sizes, channels, filters) = geometry.groups, kernel.shape
    *axes, last = geometry.axes
    joint = last.stride if last.dilation == 1 else 1
    kernel = kernel.reshape(*sizes, channels, groups, filters // groups)
    kernel = namespace(kernel).moveaxis(kernel, (-2, -1), (0, 1))
    sides = list(zip(steps[:-1], lengths[:-1], axes, strict=True))
    every, parts = slice(None), []
    for first in range(0, sizes[-1], joint):
        taps = range(first, min(first + joint, sizes[-1]))
        ends = [meeting(tap, steps[-1], lengths[-1], last)[:2] for tap in taps]
        ends = [(low, high) for low, high in ends if low < high]
        if not ends:
            continue
        seen = slice(min(low for low, _ in ends), max(high for _, high in ends))
        start, stride = first * last.dilation // joint, last.stride // joint
        places = slice(start + seen.start * stride, start + (seen.stop - 1) * stride + 1, stride)
        matrices = []
        for others in product(*(range(size) for size in sizes[:-1])):
            met = [meeting(tap, *side) for tap, side in zip(others, sides, strict=True)]
            if all(low < high for low, high, _ in met):
                matrix = kernel[(every, every, *others, slice(taps.start, taps.stop))]
                matrix = matrix.reshape(*matrix.shape[:2], math.prod(matrix.shape[2:]))
                outs = (every, *(slice(low, high) for low, high, _ in met))
                ins = (every, *(inputs for *_, inputs in met))
                matrices.append((outs, matrix, (*ins, places, every, slice(matrix.shape[-1]))))
        parts.append((seen, matrices))
    return joint, parts


def correlate(x: Any, y: Any, sizes: Sizes, geometry: Geometry) -> Any:
    """What `y`, of the output's shape, gives to a kernel of these `sizes`."""
    xp, groups = namespace(x), geometry.groups
    _, *steps, filters = y.shape
    channels = x.shape[-1] // groups
    if _alone(geometry, channels):
        return _correlate_alone(x, y, sizes, geometry)
    dtype = np.result_type(x.dtype, y.dtype)
    runs = _runs(x, tuple(steps), sizes, geometry)
    steps_first = len(runs) > 1

    def work(start: int, stop: int) -> Any:
        shape = (groups, math.prod(sizes) * channels, filters // groups)
        total, part = xp.zeros(shape, dtype), xp.empty(shape, dtype)
        for items, columns in columns_of(
            x, tuple(steps), sizes, geometry, start, stop, steps_first
        ):
            given = _by_group(y[items].swapaxes(0, 1) if steps_first else y[items], groups)
            for rows, taps in _slices(runs, columns, tuple(steps), sizes):
                seen = columns[:, rows, taps].swapaxes(1, 2)
                total[:, taps] += _products(seen, given[:, rows], part[:, taps])
        return total.transpose(1, 0, 2).reshape(*sizes, channels, filters)

    def work_less(start: int, stop: int) -> Any:
        total = np.zeros((4 ** len(sizes), channels, filters), dtype)
        for items, inputs in way.blocks(x, start, stop):
            total += way.kernel_gradient(inputs, way.map_gradient(y[items]))
        return way.finish(total)

    if _few_products(x, (*sizes, channels, filters), geometry):
        way, work = Winograd(None, geometry, x.shape[1:-1]), work_less
    first, *second = over_batch(work, x, y.size * math.prod(sizes) * channels)
    for other in second:
        first += other
    return first


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
            rows = block[ins] * y[items][outs]
            rows = rows.reshape(math.prod(rows.shape[:-1]), filters)
            total[(*taps, 0)] = xp.ones(len(rows), dtype) @ rows
        return total

    return sum(_alone_in_blocks(work, y), xp.zeros((*sizes, 1, filters), dtype))
