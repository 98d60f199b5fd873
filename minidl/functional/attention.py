"""Attention: for each step of a query, a mean of values, weighted by how well their keys fit.

query (..., time, size), key (..., source, size), value (..., source, width); the leading axes
(batch, heads) broadcast. In masks True = may be seen; a step that may see nothing gets zeros, and
gives no gradient. Vaswani et al. 2017, eq. 1.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np

from minidl import ops
from minidl.backend import (
    Array,
    current_device,
    current_dtype,
    device_of,
    is_array,
    namespace,
    to_device,
)
from minidl.errors import DtypeError, ShapeError
from minidl.graph import Tensor, unwrap, wrap
from minidl.ops.attention import attend, attend_packed, attention_scores
from minidl.ops.shape import count_of, shape_of
from minidl.samples import Draw, call, samples


def attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    causal: bool = False,
    bias: Any = None,
    scale: float | None = None,
    dropout_mask: Any = None,
    dropout_rate: float = 0.0,
) -> Tensor:
    """softmax(query key^T * scale + bias) value: (..., time, width).

    mask: booleans that broadcast to (..., time, source); causal: a step sees the sources up to its
    own, the last step all of them; bias: numbers, -inf among them, that broadcast likewise; scale:
    1 / sqrt(size) if None. dropout_mask: booleans, as mask, that keep probabilities, which are then
    multiplied by 1 / (1 - dropout_rate). Raises ShapeError for other shapes, DtypeError for a mask
    that is not boolean, ValueError for a rate outside of [0, 1).
    """
    mask, dropout_mask = _checked(
        "attention", query, key, value, bias, mask=mask, dropout_mask=dropout_mask
    )
    if not 0 <= dropout_rate < 1:
        raise ValueError(
            f"attention: dropout_rate: expected a number in [0, 1), got {dropout_rate}"
        )
    scale = _scale(scale, key)
    return attend(query, key, value, bias, mask, dropout_mask, causal, scale, dropout_rate, None)[0]


def attention_weights(
    query: Any,
    key: Any,
    mask: Any = None,
    causal: bool = False,
    bias: Any = None,
    scale: float | None = None,
) -> Tensor:
    """The weights that `attention` gives each source, (..., time, source): for looking at them.

    Raises ShapeError and DtypeError as attention does.
    """
    (mask,) = _checked("attention_weights", query, key, None, bias, mask=mask)
    return ops.softmax(attention_scores(query, key, bias, mask, causal, _scale(scale, key)), -1)


def blockwise_attention(
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    causal: bool = False,
    bias: Any = None,
    scale: float | None = None,
    block_size: int = 256,
) -> Tensor:
    """`attention`, with never more than `block_size` sources of it in memory, forward and backward.

    The sums over the source run along from block to block; where a larger score turns up, what has
    been summed is scaled down (the online softmax: Milakov and Gimelshein 2018; Rabe and Staats
    2021; Dao et al. 2022). Raises as attention does.
    """
    (mask,) = _checked("blockwise_attention", query, key, value, bias, mask=mask)
    if count_of("blockwise_attention", "block_size", block_size) == 0:
        raise ShapeError("blockwise_attention: block_size: expected 1 or more, got 0; use 256")
    return attend(query, key, value, bias, mask, None, causal, _scale(scale, key), 0.0, block_size)[
        0
    ]


def _scale(scale: float | None, key: Any) -> float:
    return 1 / math.sqrt(max(1, shape_of(key)[-1])) if scale is None else float(scale)


def _checked(
    op: str, query: Any, key: Any, value: Any, bias: Any = None, **masks: Any
) -> list[Any]:
    """The masks, as booleans where query is, once all shapes fit."""
    shapes = {"query": shape_of(query), "key": shape_of(key)}
    if value is not None:
        shapes["value"] = shape_of(value)
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ShapeError(
                f"{op}: {name}: expected (..., steps, size), got {shape}; give {name} two axes"
            )
    if shapes["key"][-1] != shapes["query"][-1]:
        raise ShapeError(
            f"{op}: key: expected size {shapes['query'][-1]}, the query's, got shape "
            f"{shapes['key']}; make key.shape[-1] equal query.shape[-1]"
        )
    if value is not None and shapes["value"][-2] != shapes["key"][-2]:
        raise ShapeError(
            f"{op}: value: expected {shapes['key'][-2]} steps, the key's, got shape "
            f"{shapes['value']}; make value.shape[-2] equal key.shape[-2]"
        )
    try:
        batch = np.broadcast_shapes(*(shape[:-2] for shape in shapes.values()))
    except ValueError:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(
            f"{op}: query: expected leading axes that broadcast, got {given}; make them equal or 1"
        ) from None
    scores = (*batch, shapes["query"][-2], shapes["key"][-2])
    if bias is not None:
        _require_broadcast(op, "bias", shape_of(bias), scores)
    return [_as_mask(op, name, mask, scores, query) for name, mask in masks.items()]


def _require_broadcast(op: str, name: str, shape: tuple, scores: tuple) -> None:
    sides = zip(shape[::-1], scores[::-1], strict=False)
    if len(shape) > len(scores) or any(side not in (1, n) for side, n in sides):
        raise ShapeError(
            f"{op}: {name}: expected a shape that broadcasts to {scores}, (..., time, source), got "
            f"{shape}; a mask of the source alone is mask[:, None, :], with heads mask[:, None, "
            "None, :]"
        )


def _as_mask(op: str, name: str, mask: Any, scores: tuple, query: Any) -> Any:
    if mask is None:
        return None
    array: Array = unwrap(mask) if is_array(unwrap(mask)) else np.asarray(mask)
    if array.dtype != np.bool_:
        raise DtypeError(
            f"{op}: {name}: expected booleans (True = keep), got {array.dtype}; use {name} != 0, "
            "or pass what is added to the scores (0 = keep, -inf = hide) as bias"
        )
    _require_broadcast(op, name, array.shape, scores)
    if isinstance(mask, Tensor):
        return mask
    place = unwrap(query)
    return to_device(array, device_of(place)) if is_array(place) else array


# --- Patterns: self-attention that leaves most pairs of steps out, and costs less -----------------


def local_attention(
    query: Any,
    key: Any,
    value: Any,
    window: int,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`attention` in which a step sees those up to `window` steps away; time * window in all.

    All three have the same steps. mask: booleans of the source, that broadcast to (..., 1, time).
    The steps are cut into blocks, each of which sees itself and its neighbours. Raises ShapeError
    and DtypeError as attention does, and for a mask of single pairs.
    """
    mask = _checked_pattern("local_attention", query, key, value, mask, window=window)
    scale = _scale(scale, key)
    return _local(query, key, value, window, mask, causal, scale)[0]


def atrous_attention(
    query: Any,
    key: Any,
    value: Any,
    stride: int,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`attention` in which a step sees those a multiple of `stride` steps away; time^2 / stride in
    all. Arguments and errors as of local_attention."""
    mask = _checked_pattern("atrous_attention", query, key, value, mask, stride=stride)
    return _atrous(query, key, value, stride, mask, causal, _scale(scale, key))[0]


def sparse_attention(
    query: Any,
    key: Any,
    value: Any,
    window: int,
    stride: int,
    mask: Any = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """`attention` in which a step sees those up to `window` steps away, and those a multiple of
    `stride` steps away (Child et al. 2019). Arguments and errors as of local_attention.

    Both parts are made apart, each step seen in one of them; the two means are averaged by the sums
    of exponentials that they were divided by.
    """
    mask = _checked_pattern(
        "sparse_attention", query, key, value, mask, window=window, stride=stride
    )
    options = mask, causal, _scale(scale, key)
    near, near_logs = _local(query, key, value, window, *options)
    far, far_logs = _atrous(query, key, value, stride, *options, apart=window)
    shares = ops.softmax(ops.stack([near_logs, far_logs], axis=-1), -1)
    return shares[..., :1] * near + shares[..., 1:] * far


def _local(
    query: Any, key: Any, value: Any, window: int, mask: Any, causal: bool, scale: float
) -> tuple[Any, Any]:
    """The result, and the logarithms of the rows' sums of exponentials."""
    time = shape_of(query)[-2]
    block = max(min(window, time), 16)  # smaller blocks are all overhead
    blocks = max(1, -(-time // block))
    query = _in_blocks(query, blocks, block)
    key, value = (_with_neighbours(x, blocks, block, causal) for x in (key, value))
    xp = namespace(unwrap(query))
    mask = xp.ones(time, bool) if mask is None else mask
    known = _with_neighbours(mask[..., None], blocks, block, causal)[..., None, :, 0]
    distance = xp.arange(shape_of(key)[-2]) - xp.arange(block)[:, None] - block
    near = xp.abs(distance) <= window
    if causal:
        near = xp.logical_and(near, distance <= 0)
    seen = xp.logical_and(known, near)
    out, logs = attend(query, key, value, None, seen, None, False, scale, 0.0, None)
    return _in_line(out, time), _in_line(logs[..., None], time)[..., 0]


def _atrous(
    query: Any,
    key: Any,
    value: Any,
    stride: int,
    mask: Any,
    causal: bool,
    scale: float,
    apart: int = -1,
) -> tuple[Any, Any]:
    """As `_local`; of steps more than `apart` steps away only."""
    time = shape_of(query)[-2]
    stride = max(1, min(stride, time))
    rows = max(1, -(-time // stride))
    query, key, value = (
        ops.swapaxes(_in_blocks(x, rows, stride), -3, -2) for x in (query, key, value)
    )
    xp = namespace(unwrap(query))
    mask = xp.ones(time, bool) if mask is None else mask
    known = _in_blocks(mask[..., None], rows, stride)[..., 0].swapaxes(-1, -2)[..., None, :]
    if apart >= 0:
        distance = xp.arange(rows) - xp.arange(rows)[:, None]
        known = xp.logical_and(known, xp.abs(distance) * stride > apart)
    out, logs = attend(query, key, value, None, known, None, causal, scale, 0.0, None)
    out, logs = ops.swapaxes(out, -3, -2), ops.swapaxes(logs, -2, -1)
    return _in_line(out, time), _in_line(logs[..., None], time)[..., 0]


def _in_blocks(x: Any, blocks: int, block: int) -> Any:
    """(..., time, size) as (..., blocks, block, size), zeros at the end."""
    *leading, time, size = shape_of(x)
    widths = [(0, 0)] * len(leading) + [(0, blocks * block - time), (0, 0)]
    return ops.reshape(ops.pad(x, widths), (*leading, blocks, block, size))


def _with_neighbours(x: Any, blocks: int, block: int, causal: bool) -> Any:
    """(..., time, size) as blocks, each between the one before it and, unless causal, the next:
    (..., blocks, 2 or 3 * block, size); zeros outside."""
    *leading, time, size = shape_of(x)
    count = 2 if causal else 3
    end = (blocks + count - 2) * block - time
    padded = ops.pad(x, [(0, 0)] * len(leading) + [(block, end), (0, 0)])
    parts = ops.reshape(padded, (*leading, blocks + count - 1, block, size))
    return ops.concatenate([parts[..., i : i + blocks, :, :] for i in range(count)], axis=-2)


def _in_line(x: Any, time: int) -> Any:
    """(..., blocks, block, size) as (..., time, size)."""
    *leading, blocks, block, size = shape_of(x)
    return ops.reshape(x, (*leading, blocks * block, size))[..., :time, :]


def _checked_pattern(op: str, query: Any, key: Any, value: Any, mask: Any, **counts: int) -> Any:
    """The mask as booleans (..., time), once all shapes and numbers fit."""
    (mask,) = _checked(op, query, key, value, mask=mask)
    time = shape_of(query)[-2]
    if shape_of(key)[-2] != time:
        raise ShapeError(
            f"{op}: key: expected {time} steps, the query's, got shape {shape_of(key)}; a pattern "
            "is of one sequence: use attention"
        )
    for name, count in counts.items():
        if count_of(op, name, count) == 0 and name == "stride":
            raise ShapeError(f"{op}: stride: expected 1 or more, got 0; use 1")
    if mask is None:
        return None
    mask = unwrap(mask)
    if mask.ndim > 1 and mask.shape[-2] != 1:
        raise ShapeError(
            f"{op}: mask: expected (..., 1, time), True where a step may be seen, got "
            f"{mask.shape}; for a mask of single pairs use attention"
        )
    mask = mask[..., 0, :] if mask.ndim > 1 else mask
    return namespace(mask).broadcast_to(mask, (*mask.shape[:-1], time))


# --- Positions ------------------------------------------------------------------------------------


def sinusoidal_positions(length: int, size: int, base: float = 10000.0) -> Tensor:
    """(length, size): sin and cos, in turn, of position * base^(-2 i / size), for i = 0, 1, ....

    A constant, on the current device. Vaswani et al. 2017, section 3.5.
    """
    length = count_of("sinusoidal_positions", "length", length)
    size = count_of("sinusoidal_positions", "size", size)
    dtype, device = current_dtype(), current_device()
    sines = _sines(length, size + size % 2, float(base), dtype, device)
    both = namespace(sines[0]).stack(sines, -1).reshape(length, size + size % 2)
    return wrap(both[:, :size].copy(), None, None)


def rotary(x: Any, offset: int = 0, base: float = 10000.0) -> Any:
    """x (..., time, size) with the pairs of its last axis turned by angles that grow with time.

    The pair (x[2 i], x[2 i + 1]) of step t is turned by (offset + t) * base^(-2 i / size): the
    scalar product of two steps so turned depends on how far apart they are, not on where. Raises
    ShapeError unless size is even. Su et al. 2021, eq. 34.
    """
    shape = shape_of(x)
    if len(shape) < 2 or shape[-1] % 2:
        raise ShapeError(
            f"rotary: x: expected (..., time, size) with an even size, got {shape}; make the last "
            "axis even"
        )
    time, size = shape[-2:]
    end = count_of("rotary", "offset", offset) + time
    array = unwrap(x)
    place = device_of(array) if is_array(array) else "cpu"
    dtype = array.dtype if is_array(array) and array.dtype.kind == "f" else current_dtype()
    rounded = 1 << max(0, end - 1).bit_length()  # few tables, while a sequence grows
    sine, cosine = (
        wrap(table[offset:end], None, None)
        for table in _sines(rounded, size, float(base), dtype, place)
    )
    pairs = ops.reshape(x, (*shape[:-1], size // 2, 2))
    left, right = pairs[..., 0], pairs[..., 1]
    turned = [left * cosine - right * sine, left * sine + right * cosine]
    return ops.reshape(ops.stack(turned, axis=-1), shape)


@lru_cache(maxsize=32)
def _sines(length: int, size: int, base: float, dtype: Any, device: str) -> tuple[Array, Array]:
    """sin and cos of position * base^(-2 i / size), (length, size / 2); not to be written into."""
    rates = base ** (-np.arange(0, size, 2) / max(size, 1))
    angles = np.arange(length)[:, None] * rates
    return tuple(to_device(f(angles).astype(dtype), device) for f in (np.sin, np.cos))


# --- Samples --------------------------------------------------------------------------------------


def _case(draw: Draw, masked: bool = True) -> tuple[list, dict[str, Any]]:
    """Query, key and value of drawn sizes, and options: the sides 0 and 1 occur, and empty rows."""
    leading = draw.shape(max_dims=2, max_side=2)
    time, source = draw.integer(0, 4), draw.integer(1, 4)
    size, width = draw.integer(1, 3), draw.integer(1, 3)
    query, key = draw.array((*leading, time, size)), draw.array((*leading, source, size))
    options: dict[str, Any] = {"causal": draw.boolean()}
    if draw.boolean():
        options["scale"] = draw.choice([0.5, 2.0])
    scores = (*leading, time, source)
    if draw.boolean():
        options["bias"] = draw.array(draw.broadcastable(scores))
    if masked and draw.boolean():
        options["mask"] = draw.mask(draw.choice([scores, (source,), (*leading, 1, source)]))
    return [query, key, draw.array((*leading, source, width))], options


@samples(attention)
def _(draw: Draw):
    arrays, options = _case(draw)
    if draw.boolean():
        scores = (*arrays[0].shape[:-1], arrays[1].shape[-2])
        options |= {"dropout_mask": draw.mask(scores), "dropout_rate": 0.25}
    return call(*arrays, **options)


@samples(attention_weights)
def _(draw: Draw):
    (query, key, _), options = _case(draw)
    return call(query, key, **options)


@samples(blockwise_attention)
def _(draw: Draw):
    arrays, options = _case(draw)
    return call(*arrays, **options, block_size=draw.integer(1, 3))


@samples(attend)
def _(draw: Draw):
    arrays, options = _case(draw, masked=False)
    arrays.append(options.get("bias"))
    return call(*arrays, None, None, options["causal"], options.get("scale", 1.0), 0.0, None)


@samples(attend_packed)
def _(draw: Draw):
    batch, time, heads, size, width = (draw.integer(low, 3) for low in (0, 1, 1, 1, 1))
    packed = draw.array((batch, time, heads * (2 * size + width)))
    mask = draw.mask((batch, 1, 1, time)) if draw.boolean() else None
    kept = draw.mask((batch, heads, time, time)) if draw.boolean() else None
    return call(packed, mask, kept, heads, size, draw.boolean(), 0.5, 0.25)


def _sequence(draw: Draw) -> tuple[list, dict[str, Any]]:
    leading, time = draw.shape(max_dims=2, max_side=2), draw.integer(0, 7)
    arrays = [draw.array((*leading, time, size)) for size in (2, 2, draw.integer(1, 2))]
    shape = draw.choice([(time,), (*leading, 1, time)])
    return arrays, {"mask": draw.mask(shape) if draw.boolean() else None, "causal": draw.boolean()}


@samples(local_attention)
@samples(atrous_attention)
def _(draw: Draw):
    arrays, options = _sequence(draw)
    return call(*arrays, draw.integer(1, 3), **options)


@samples(sparse_attention)
def _(draw: Draw):
    arrays, options = _sequence(draw)
    return call(*arrays, draw.integer(0, 2), draw.integer(1, 3), **options)


@samples(rotary)
def _(draw: Draw):
    shape = draw.shape(min_dims=1, max_dims=2)
    return call(draw.array((*shape, 2 * draw.integer(0, 2))), offset=draw.integer(0, 3))


@samples(sinusoidal_positions, differentiable=False)
def _(draw: Draw):
    return call(draw.integer(0, 4), draw.integer(0, 5))
