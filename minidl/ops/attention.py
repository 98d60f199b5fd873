"""Scaled dot-product attention as one op, beside its definition.

The scores (time x source) are made and used up a tile at a time, in the cache, and never kept: for
each row the op gives the logarithm of its sum of exponentials too, from which the derivative makes
the same probabilities again. Milakov and Gimelshein 2018 (the sum of exponentials in one pass);
Rabe and Staats 2021 and Dao et al. 2022 (attention and its derivative by it).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minidl.autodiff import primitive
from minidl.backend import Array, in_two, namespace
from minidl.graph import unwrap
from minidl.ops.elementwise import where
from minidl.ops.products import SPLIT, matmul
from minidl.ops.reduction import logsumexp, softmax, sum
from minidl.ops.shape import broadcast_to, shape_of, swapaxes, unbroadcast

TILE = 1 << 19  # scores in a tile: fewer cost more calls, more fall out of the cache
SIDE = 1 << 9  # sources in a tile, where there are more
BOUND = 30.0  # exponentials of scores up to this size need no maximum subtracted
FAR = -1e30  # what hides a score: it leaves nothing of its exponential, and products can carry it

# --- The definition -------------------------------------------------------------------------------


def attention_definition(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    dropout_mask: Any = None,
    causal: bool = False,
    scale: float = 1.0,
    rate: float = 0.0,
    block: int | None = None,
) -> tuple[Any, Any]:
    """softmax(query key^T scale + bias) value, and the logarithm of each row's sum.

    (..., time, size), (..., source, size), (..., source, width) give (..., time, width) and
    (..., time). What `mask` or `causal` hides has probability 0; `dropout_mask` keeps some of the
    probabilities, and those times 1 / (1 - rate). How it is computed is all that `block` says.
    """
    scores = attention_scores(query, key, bias, mask, causal, scale)
    weights = softmax(scores, -1)
    if dropout_mask is not None:
        weights = weights * dropout_mask * (1 / (1 - rate))
    out = matmul(weights, value)
    logs = logsumexp(scores, -1) if shape_of(scores)[-1] else sum(scores, -1) - math.inf
    return out, broadcast_to(logs, shape_of(out)[:-1])


def attention_scores(query: Any, key: Any, bias: Any, mask: Any, causal: bool, scale: float) -> Any:
    """query key^T scale + bias, -inf where hidden."""
    scores = matmul(query * scale, swapaxes(key, -1, -2))
    scores = scores if bias is None else scores + bias
    if causal:
        xp, (time, source) = namespace(unwrap(query)), shape_of(scores)[-2:]
        seen = xp.arange(source) <= xp.arange(time)[:, None] + (source - time)
        mask = seen if mask is None else xp.logical_and(unwrap(mask), seen)
    return scores if mask is None else where(mask, scores, -math.inf)


# --- Tiles ----------------------------------------------------------------------------------------


class _Tiles:
    """One call's arrays, in float32 at least, and how its scores are cut into tiles.

    On NumPy a tile is of some members of the batch or, of long sequences, some rows and some of
    the source of one. Elsewhere it is everything: few calls. `block` is the most of the source that
    a tile may have.
    """

    def __init__(
        self, query, key, value, bias, mask, dropout_mask, causal, scale, rate, block
    ) -> None:  # type: ignore[no-untyped-def]
        self.xp = namespace(query)
        given = [x.dtype for x in (query, key, value, bias) if x is not None]
        self.dtype = np.result_type(np.float32, *given)
        shapes = (x.shape[:-2] for x in (query, key, value))
        self.batch = np.broadcast_shapes(*shapes)
        self.query, self.key, self.value = (self._whole(x) for x in (query, key, value))
        self.bias, self.mask, self.dropout_mask = map(self._ranked, (bias, mask, dropout_mask))
        self.causal, self.scale, self.gain = causal, scale, 1 / (1 - rate)
        self.time, self.source = query.shape[-2], key.shape[-2]
        if block is None:
            parts = max(1, -(-self.source // SIDE)) if self.xp is np else 1
            block = -(-self.source // parts)
        self.columns = max(1, min(block, self.source))
        self.rows = max(1, self.time)
        if self.xp is np:
            self.rows = min(self.rows, max(16, TILE // self.columns))
        self.alone = 0 < self.time <= self.rows and 0 < self.source <= self.columns
        self.by_source = mask is not None and self.mask.shape[-2] == 1  # the same for all rows
        self._triangles: dict = {}

    def _whole(self, x: Array) -> Array:
        wide = x.astype(self.dtype, copy=False)
        return self.xp.broadcast_to(wide, (*self.batch, *x.shape[-2:]))

    def _ranked(self, x: Any) -> Any:
        if x is None:
            return None
        return x.reshape((1,) * (len(self.batch) + 2 - x.ndim) + x.shape)

    def over_batch(self, work) -> list:  # type: ignore[no-untyped-def]
        """The results of work(indices) on all indices into the batch, by two threads if it pays."""
        tile, batch = self.rows * self.columns, self.batch
        widths = self.query.shape[-1] + self.value.shape[-1]
        count = math.prod(batch)
        in_halves = count > 1 and count * self.time * self.source * widths >= SPLIT
        if self.xp is not np or not batch or (count * tile <= TILE and not in_halves):
            return [work([()])]
        members = max(1, min(TILE // tile, (count + 1) // 2))
        axis = len(batch) - 1  # is cut; a tile has those after it whole, of those before it one
        while axis > 0 and math.prod(batch[axis:]) <= members:
            axis -= 1
        most = max(1, members // math.prod(batch[axis + 1 :]))
        step = -(-batch[axis] // -(-batch[axis] // most))
        indices = [
            (*outer, slice(i, i + step), *(slice(None),) * (len(batch) - axis - 1))
            for outer in np.ndindex(batch[:axis])
            for i in range(0, batch[axis], step)
        ]
        if not in_halves or len(indices) < 2:
            return [work(indices)]
        half = (len(indices) + 1) // 2
        return list(in_two(lambda: work(indices[:half]), lambda: work(indices[half:])))

    def __iter__(self):  # type: ignore[no-untyped-def]
        """Slices of rows, each with the slices of the source that some of them see."""
        for start in range(0, self.time, self.rows):
            rows = slice(start, min(start + self.rows, self.time))
            end = self.source
            if self.causal:
                end = min(end, max(0, rows.stop + self.source - self.time))
            cuts = range(0, end, self.columns)
            yield rows, [slice(i, min(i + self.columns, end)) for i in cuts]

    def product(self, x: Array, y: Array, buffer: Array | None) -> Array:
        """x @ y^T, on NumPy in `buffer`."""
        if buffer is None:
            return self.xp.matmul(x, y.mT)
        shape = (*np.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2])
        return np.matmul(x, y.mT, out=buffer[: math.prod(shape)].reshape(shape))

    def add(self, x: Array, y: Array, out: Array) -> None:
        """out += x @ y; of a single tile, out = x @ y."""
        if self.alone and self.xp is np:
            np.matmul(x, y, out=out)
        elif self.alone:
            out[...] = self.xp.matmul(x, y)
        else:
            out += self.xp.matmul(x, y)

    def buffer(self) -> Array | None:
        """Room for one tile."""
        if self.xp is not np:
            return None
        tile = self.rows * self.columns
        members = math.prod(self.batch)
        return np.empty(tile * min(members, max(1, TILE // tile)), self.dtype)

    def far(self, index: tuple) -> Array:
        """(..., source): what a row's product adds to the scores, for a mask by source alone."""
        part = _part(self.mask, index, slice(None), slice(None))[..., 0, :]
        return self.xp.where(part, 0.0, FAR).astype(self.dtype)

    def hide(self, scores: Array, index: tuple, rows: slice, columns: slice) -> None:
        """Add the bias to a tile's scores, and what hides those that may not be seen. (A mask by
        source alone is in them already.)"""
        if self.bias is not None:
            scores += _part(self.bias, index, rows, columns)
        if self.mask is not None and not self.by_source:
            hidden = _part(self.mask, index, rows, columns).astype(self.dtype)
            hidden -= 1  # several times faster than where, or copyto with a mask
            hidden *= -FAR
            scores += hidden
        last = rows.start + self.source - self.time  # that the first row sees
        if self.causal and columns.stop > last + 1:
            first = max(columns.start, last + 1)
            sides = rows.stop - rows.start, columns.stop - first, first - last
            if sides not in self._triangles:
                i, j = (self.xp.arange(side) for side in sides[:2])
                hidden = j + sides[2] > i[:, None]
                self._triangles[sides] = self.xp.where(hidden, FAR, 0.0).astype(self.dtype)
            scores[..., first - columns.start :] += self._triangles[sides]

    def dropped(self, weights: Array, index: tuple, rows: slice, columns: slice) -> Array:
        """`weights` times what dropout does to them."""
        kept = _part(self.dropout_mask, index, rows, columns)
        return weights * (kept.astype(self.dtype) * self.gain)


def _part(x: Array, index: tuple, rows: slice, columns: slice) -> Array:
    """x[index][..., rows, columns], where `x` may have sides of 1 that stand for all."""
    everything = slice(None)
    lead = [
        i if side > 1 else everything if isinstance(i, slice) else 0
        for i, side in zip(index, x.shape, strict=False)
    ]
    ends = (i if side > 1 else everything for i, side in zip((rows, columns), x.shape[-2:]))
    return x[tuple(lead)][(..., *ends)]


def _beside(x: Array, *columns: Any) -> Array:
    """A copy of `x` (..., n, size) with further columns, numbers or (..., n), at its right."""
    size = x.shape[-1]
    out = namespace(x).empty((*x.shape[:-1], size + len(columns)), x.dtype)
    out[..., :size] = x
    for i, column in enumerate(columns):
        out[..., size + i] = column
    return out


# --- The op ---------------------------------------------------------------------------------------


@primitive(floats=True)
def attend(query, key, value, bias, mask, dropout_mask, causal, scale, rate, block):
    """As `attention_definition`."""
    tiles = _Tiles(query, key, value, bias, mask, dropout_mask, causal, scale, rate, block)
    out, total = _forward(tiles)
    return out.astype(np.result_type(query, key, value), copy=False), total


def _forward(tiles: _Tiles) -> tuple[Array, Array]:
    """The sum of exp(score) * value over a row, and of exp(score): the second is one more column
    of the product, as the values get a column of ones."""
    xp, width = tiles.xp, tiles.value.shape[-1]
    shape = (*tiles.batch, tiles.time, width)
    out = xp.empty_like(tiles.query, dtype=tiles.dtype, shape=shape)  # axes in the query's order
    logs = xp.empty(shape[:-1], tiles.dtype)
    tiny = float(np.finfo(tiles.dtype).tiny)

    def work(indices: list) -> None:
        buffer = tiles.buffer()
        for index in indices:
            query, key = tiles.query[index] * tiles.scale, tiles.key[index]
            small = _small(query, key) and tiles.bias is None
            if tiles.by_source:
                query, key = _beside(query, 1), _beside(key, tiles.far(index))
            value = _beside(tiles.value[index], 1)
            for rows, cuts in tiles:
                sums, top = _row_sums(
                    tiles, query[..., rows, :], key, value, index, rows, cuts, small, buffer
                )
                total = sums[..., width:]
                safe = xp.maximum(total, tiny)
                xp.divide(sums[..., :width], safe, out=out[index][..., rows, :])
                log = xp.log(safe) + top
                logs[index][..., rows] = xp.where(total > 0, log, -math.inf)[..., 0]

    tiles.over_batch(work)
    return out, logs


def _small(query: Array, key: Array) -> bool:
    """True on NumPy where no score can be large, by Cauchy and Schwarz: on a GPU, looking costs a
    wait."""
    if type(query) is not np.ndarray or not query.size or not key.size:
        return False
    squares = [_dots(x, x).max() for x in (query, key)]
    return bool(squares[0] * squares[1] < BOUND * BOUND)


def _dots(x: Array, y: Array) -> Array:
    """The scalar products of rows."""
    return namespace(x).einsum("...i,...i->...", x, y)


def _row_sums(tiles, query, key, value, index, rows, cuts, small, buffer):
    """Sums of exp(score - top) * value over the source, and `top`, the row's largest score so far:
    when it grows, what has been summed shrinks (the online softmax)."""
    xp = tiles.xp
    sums, top = xp.zeros((*query.shape[:-1], value.shape[-1]), tiles.dtype), 0.0
    for i, cut in enumerate(cuts):
        scores = tiles.product(query, key[..., cut, :], buffer)
        tiles.hide(scores, index, rows, cut)
        if not small:
            peak = xp.clip(scores.max(axis=-1, keepdims=True), FAR / 2, -FAR)
            if i:
                peak = xp.maximum(peak, top)
                sums *= xp.exp(top - peak)
            scores -= peak
            top = peak
        xp.exp(scores, out=scores)
        if tiles.dropout_mask is None:
            part = xp.matmul(scores, value[..., cut, :])
        else:
            part = xp.matmul(tiles.dropped(scores, index, rows, cut), value[..., cut, :])
            part[..., -1] = scores.sum(axis=-1)
        sums = part if i == 0 else sums + part
    return sums, top


def _attend_rule(
    g, query, key, value, bias, mask, dropout_mask, causal, scale, rate, block, out, needs
):
    tiles = _Tiles(query, key, value, bias, mask, dropout_mask, causal, scale, rate, block)
    into = [
        tiles.xp.empty_like(whole, dtype=tiles.dtype) if needed else None
        for whole, needed in zip((tiles.query, tiles.key, tiles.value), needs, strict=False)
    ]
    found = [*into, _backward(tiles, g, out, into, needs[3])]
    given = (query, key, value, bias)
    return tuple(
        None if d is None else d.astype(x.dtype, copy=False)
        for d, x in zip(found, given, strict=True)
    )


attend.defvjp(joint=_attend_rule, of=("query", "key", "value", "bias"))
attend.define(attention_definition)


def _backward(tiles: _Tiles, g: tuple, out: tuple, into: list, of_bias: bool) -> Array | None:
    """Write the gradients of query, key and value to `into`, where it has room for them; returns
    the bias's if asked for.

    With P the probabilities and dP = g value^T, the gradient of the scores is P * (dP - sum of P *
    dP over the row), and that sum is the one of g * out. It, and the logarithm of the row's sum of
    exponentials, are subtracted within the products that make dP and the scores, as a column more.
    """
    xp = tiles.xp
    g_out, g_logs, outcome, logs = (x.astype(tiles.dtype, copy=False) for x in (*g, *out))

    def work(indices: list) -> Array | None:
        buffers = tiles.buffer(), tiles.buffer()
        by_bias = xp.zeros(tiles.bias.shape, tiles.dtype) if of_bias else None
        for index in indices:
            log = logs[index]
            slope = g_logs[index] - _dots(g_out[index], outcome[index])
            far = (tiles.far(index),) if tiles.by_source else ()
            query = _beside(tiles.query[index] * tiles.scale, 0, *(1 for _ in far))
            query[..., tiles.query.shape[-1]] = xp.where(log > -math.inf, -log, 0.0)
            gradients = [None if d is None else d[index] for d in into]
            if not tiles.alone:
                for d in gradients:
                    if d is not None:
                        d[...] = 0
            _tile_gradients(
                tiles,
                index,
                (query, _beside(tiles.key[index], 1, *far)),
                (_beside(g_out[index], slope), _beside(tiles.value[index], 1)),
                (*gradients, by_bias),
                buffers,
            )
            if gradients[0] is not None:
                gradients[0] *= tiles.scale
        return by_bias

    found = tiles.over_batch(work)
    if not of_bias:
        return None
    return found[0] if len(found) == 1 else found[0] + found[1]


def _tile_gradients(
    tiles: _Tiles, index: tuple, scored: tuple, valued: tuple, gradients: tuple, buffers: tuple
) -> None:
    """Go through the tiles of one part of the batch and add up its gradients. `scored` are query
    and key, `valued` the gradient that comes in and value, all with their further columns."""
    by_query, by_key, by_value, by_bias = gradients
    size, width = tiles.query.shape[-1], tiles.value.shape[-1]
    for rows, cuts in tiles:
        query, upstream = scored[0][..., rows, :], valued[0][..., rows, :]
        for cut in cuts:
            key, value = scored[1][..., cut, :], valued[1][..., cut, :]
            weights = tiles.product(query, key, buffers[0])
            tiles.hide(weights, index, rows, cut)
            tiles.xp.exp(weights, out=weights)
            seen = weights
            if tiles.dropout_mask is None:
                slopes = tiles.product(upstream, value, buffers[1])
            else:
                seen = tiles.dropped(weights, index, rows, cut)
                slopes = tiles.product(upstream[..., :width], value[..., :width], buffers[1])
                slopes = tiles.dropped(slopes, index, rows, cut)
                slopes += upstream[..., width:]
            slopes *= weights  # the gradient of the scores
            if by_query is not None:
                tiles.add(slopes, key[..., :size], by_query[..., rows, :])
            if by_key is not None:
                tiles.add(slopes.mT, query[..., :size], by_key[..., cut, :])
            if by_value is not None:
                tiles.add(seen.mT, upstream[..., :width], by_value[..., cut, :])
            if by_bias is not None:
                part = _part(by_bias, index, rows, cut)
                part += unbroadcast(slopes, part.shape)


# --- Several heads at once ------------------------------------------------------------------------


@primitive(floats=True, residuals=True)
def attend_packed(packed, mask, dropout_mask, heads, size, causal, scale, rate):
    """Self-attention of `heads` heads, of queries, keys and values that lie side by side as one
    product gives them: (batch, time, heads * (size + size + width)) to (batch, time, heads *
    width). Nothing is copied to split or to join the heads."""
    tiles = _Tiles(
        *_heads(packed, heads, size), None, mask, dropout_mask, causal, scale, rate, None
    )
    out, logs = _forward(tiles)
    return join_heads(out).astype(packed.dtype, copy=False), logs


def _heads(packed: Any, heads: int, size: int) -> list:
    """Query, key and value, each (batch, heads, time, its size), of an array or a Tensor."""
    edge = heads * size
    parts = packed[..., :edge], packed[..., edge : 2 * edge], packed[..., 2 * edge :]
    return [split_heads(part, heads) for part in parts]


def split_heads(x: Any, heads: int) -> Any:
    """(batch, time, heads * size) as (batch, heads, time, size)."""
    batch, time, sizes = x.shape
    return x.reshape(batch, time, heads, sizes // heads).swapaxes(1, 2)


def join_heads(x: Any) -> Any:
    """(batch, heads, time, size) as (batch, time, heads * size)."""
    batch, heads, time, size = x.shape
    return x.swapaxes(1, 2).reshape(batch, time, heads * size)


def _attend_packed_rule(g, packed, mask, dropout_mask, heads, size, causal, scale, rate, out, kept):
    tiles = _Tiles(
        *_heads(packed, heads, size), None, mask, dropout_mask, causal, scale, rate, None
    )
    gradient = tiles.xp.empty_like(packed, dtype=tiles.dtype)
    upstream = split_heads(g, heads), tiles.xp.zeros_like(kept)
    _backward(
        tiles, upstream, (split_heads(out, heads), kept), _heads(gradient, heads, size), False
    )
    return gradient.astype(packed.dtype, copy=False)


attend_packed.defvjp(packed=_attend_packed_rule)


@attend_packed.define
def _(packed, mask, dropout_mask, heads, size, causal, scale, rate):
    three = _heads(packed, heads, size)
    return join_heads(
        attention_definition(*three, None, mask, dropout_mask, causal, scale, rate)[0]
    )
