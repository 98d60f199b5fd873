"""Attention layers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from minidl import backend, ops, random
from minidl.errors import DtypeError, ShapeError
from minidl.functional import attention as functional
from minidl.graph import Tensor, unwrap, wrap
from minidl.layers.layer import Layer
from minidl.ops.attention import attend, attend_packed, join_heads, split_heads


class Cache(NamedTuple):
    """The keys and values of all steps so far, each (batch, heads, steps, size)."""

    key: Tensor
    value: Tensor


class FixedCache(NamedTuple):
    """The keys and values of a memory that does not grow: an encoder's output."""

    key: Tensor
    value: Tensor


class MultiHeadAttention(Layer):
    """Attention of `num_heads` heads, each with maps of its own, joined and mapped once more.

    layer(query) is self-attention; layer(query, value) attends to `value`, whose keys are made from
    `key` where that is given too. query: (batch, time, inputs) -> (batch, time, output_dim), by
    default `inputs`. Weights: `query_kernel` and `key_kernel` (inputs, num_heads * key_dim),
    `value_kernel` (inputs, num_heads * value_dim), `output_kernel` (num_heads * value_dim,
    output_dim), the heads side by side, and a bias for each. value_dim: key_dim if None.

    query_mask, value_mask (batch, steps): what is real, True = keep; the output is 0 where
    query_mask is False. attention_mask: (batch, time, source), or broadcasting to (batch, heads,
    time, source). use_causal_mask: no step sees a later one. return_attention_scores: gives
    (output, probabilities (batch, heads, time, source), before dropout).

    cache: for decoding a few steps at a time, gives (output, cache). `empty_cache(batch)` grows by
    the keys and values of each call; `fixed_cache(memory)` holds those of a memory, made once.

    pattern: "full", or "local" (sources up to `window` steps away), "atrous" (a multiple of
    `stride` steps away), "sparse" (either); these are self-attention, and cost less. dropout: of
    the probabilities, in training, pattern "full" only. rotary: rotate queries and keys by their
    positions. input_size: a number, or (query's, value's, key's), to build at once.
    Vaswani et al. 2017, section 3.2.2. Raises ShapeError, DtypeError, and ValueError for options
    that exclude each other.
    """

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_dim: int | None = None,
        pattern: str = "full",
        window: int | None = None,
        stride: int | None = None,
        rotary: bool = False,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        input_size: int | tuple[int, int, int] | None = None,
    ) -> None:
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = key_dim if value_dim is None else value_dim
        self.dropout = dropout
        self.use_bias = use_bias
        self.output_dim = output_dim
        self.pattern = pattern
        self.window = window
        self.stride = stride
        self.rotary = rotary
        self._initializers = kernel_initializer, bias_initializer
        self._check_options()
        if input_size is not None:
            sizes = (input_size,) * 3 if isinstance(input_size, int) else input_size
            self.build(tuple((None, None, size) for size in sizes))

    def _check_options(self) -> None:
        if self.num_heads < 1 or self.key_dim < 1 or self.value_dim < 1:
            raise ShapeError(
                "MultiHeadAttention: num_heads, key_dim, value_dim: expected 1 or more, got "
                f"{self.num_heads}, {self.key_dim}, {self.value_dim}"
            )
        if self.rotary and self.key_dim % 2:
            raise ShapeError(
                "MultiHeadAttention: key_dim: expected an even number for rotary positions, got "
                f"{self.key_dim}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"MultiHeadAttention: dropout: expected a number in [0, 1), got {self.dropout}"
            )
        wanted = {
            "full": (),
            "local": ("window",),
            "atrous": ("stride",),
            "sparse": ("window", "stride"),
        }
        if self.pattern not in wanted:
            raise ValueError(
                f"MultiHeadAttention: pattern: expected one of {', '.join(wanted)}, got "
                f"{self.pattern!r}"
            )
        given = tuple(n for n in ("window", "stride") if getattr(self, n) is not None)
        if given != wanted[self.pattern]:
            raise ValueError(
                f"MultiHeadAttention: pattern {self.pattern!r} takes "
                f"{' and '.join(wanted[self.pattern]) or 'neither window nor stride'}, got "
                f"{' and '.join(given) or 'none'}"
            )
        if self.dropout and self.pattern != "full":
            raise ValueError(
                f"MultiHeadAttention: dropout: expected 0 for pattern {self.pattern!r}, whose "
                f"probabilities are never laid out, got {self.dropout}; drop from its output"
            )

    def build(self, input_shape: Any) -> None:
        """input_shape: the query's, or those of query, value and key."""
        shapes = input_shape if isinstance(input_shape[0], tuple) else (input_shape,) * 3
        query, value, key = (shape[-1] for shape in shapes)
        heads = self.num_heads
        self.output_dim = query if self.output_dim is None else self.output_dim
        sizes = {
            "query": (query, heads * self.key_dim),
            "key": (key, heads * self.key_dim),
            "value": (value, heads * self.value_dim),
            "output": (heads * self.value_dim, self.output_dim),
        }
        for name, shape in sizes.items():
            kernel = self.add_weight(shape, self._initializers[0], f"{name}_kernel")
            setattr(self, f"{name}_kernel", kernel)
            bias = None
            if self.use_bias:
                bias = self.add_weight(shape[1:], self._initializers[1], f"{name}_bias")
            setattr(self, f"{name}_bias", bias)

    def __call__(self, query: Any, value: Any = None, key: Any = None, **options: Any) -> Any:
        value = query if value is None else value
        key = value if key is None else key
        if not self.built:
            self._build_for((query, value, key))
        return super().__call__(query, value, key, **options)

    def call(
        self,
        query: Any,
        value: Any,
        key: Any,
        query_mask: Any = None,
        value_mask: Any = None,
        attention_mask: Any = None,
        use_causal_mask: bool = False,
        return_attention_scores: bool = False,
        cache: Cache | FixedCache | None = None,
    ) -> Any:
        self._check_call(query, value, key, attention_mask, return_attention_scores, cache)
        source = (0 if isinstance(cache, FixedCache) else key.shape[1]) + (
            0 if cache is None else cache.key.shape[2]
        )
        query_mask = self._mask("query_mask", query_mask, query.shape[:2], query)
        value_mask = self._mask("value_mask", value_mask, (query.shape[0], source), query)
        if self.pattern != "full":
            out = self._by_pattern(query, value_mask, use_causal_mask)
            return self._finish(join_heads(out), query_mask)
        mask = _both(value_mask, self._full_mask(attention_mask, query, source))
        dropped = self._dropout_mask(
            (query.shape[0], self.num_heads, query.shape[1], source), query
        )
        options = (mask, dropped, use_causal_mask)
        plain = query is value is key and cache is None and not self.rotary
        if plain and not return_attention_scores:
            return self._finish(self._packed(query, *options), query_mask)
        q, k, v, grown = self._three(query, value, key, cache)
        out = attend(q, k, v, None, *options, self._scale, self._rate, None)[0]
        out = self._finish(join_heads(out), query_mask)
        if return_attention_scores:
            return out, functional.attention_weights(q, k, mask, use_causal_mask)
        return out if cache is None else (out, grown)

    # Its parts

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.key_dim)

    @property
    def _rate(self) -> float:
        return self.dropout if self.training else 0.0

    def _map(self, x: Any, *names: str) -> Any:
        """x times the kernels of these names, side by side, as one product."""
        kernels = [getattr(self, f"{name}_kernel") for name in names]
        kernel = kernels[0] if len(kernels) == 1 else ops.concatenate(kernels, axis=1)
        out = ops.matmul(x, kernel)
        if not self.use_bias:
            return out
        biases = [getattr(self, f"{name}_bias") for name in names]
        return out + (biases[0] if len(biases) == 1 else ops.concatenate(biases))

    def _packed(self, x: Any, mask: Any, dropped: Any, causal: bool) -> Any:
        packed = self._map(x, "query", "key", "value")
        sizes = self.num_heads, self.key_dim
        return attend_packed(packed, mask, dropped, *sizes, causal, self._scale, self._rate)

    def _three(self, query: Any, value: Any, key: Any, cache: Any) -> tuple:
        """Query, key and value by heads, and the cache with what is new in it."""
        heads = self.num_heads
        start = cache.key.shape[2] if isinstance(cache, Cache) else 0
        q = split_heads(self._map(query, "query"), heads)
        if self.rotary:
            q = functional.rotary(q, offset=start)
        if isinstance(cache, FixedCache):
            return q, cache.key, cache.value, cache
        k, v = self._key_and_value(value, key, start)
        if cache is None:
            return q, k, v, None
        k = ops.concatenate([cache.key, k], axis=2)
        v = ops.concatenate([cache.value, v], axis=2)
        return q, k, v, Cache(k, v)

    def _key_and_value(self, value: Any, key: Any, start: int = 0) -> tuple[Any, Any]:
        k = split_heads(self._map(key, "key"), self.num_heads)
        v = split_heads(self._map(value, "value"), self.num_heads)
        return functional.rotary(k, offset=start) if self.rotary else k, v

    def _by_pattern(self, x: Any, value_mask: Any, causal: bool) -> Any:
        functions: dict[str, Any] = {
            "local": functional.local_attention,
            "atrous": functional.atrous_attention,
            "sparse": functional.sparse_attention,
        }
        reach = [n for n in (self.window, self.stride) if n is not None]
        three = self._three(x, x, x, None)[:3]
        return functions[self.pattern](*three, *reach, mask=value_mask, causal=causal)

    def _finish(self, out: Any, query_mask: Any) -> Any:
        out = self._map(out, "output")
        if query_mask is None:
            return out
        return ops.where(query_mask[..., None], out, 0.0)

    def _dropout_mask(self, shape: tuple[int, ...], like: Any) -> Any:
        if not self._rate:
            return None
        device = backend.device_of(unwrap(like))
        return wrap(random.generator().bernoulli(1 - self._rate, shape, device), None, None)

    # Caches

    def empty_cache(self, batch: int) -> Cache:
        """What decoding starts from: the keys and values of no steps."""
        self._require_built("empty_cache")
        xp, dtype = backend.module_of(self.device), self.dtype
        sizes = self.key_dim, self.value_dim
        shapes = [(batch, self.num_heads, 0, size) for size in sizes]
        return Cache(*(wrap(xp.zeros(shape, dtype), None, None) for shape in shapes))

    def fixed_cache(self, value: Any, key: Any = None) -> FixedCache:
        """The keys and values of a memory (batch, source, inputs), for `cache` in cross-attention;
        mask what is not real in it by value_mask."""
        self._require_built("fixed_cache")
        return FixedCache(*self._key_and_value(value, value if key is None else key))

    # Checks

    def _check_call(
        self, query: Any, value: Any, key: Any, attention_mask: Any, scores: bool, cache: Any
    ) -> None:
        for name, x in (("query", query), ("value", value), ("key", key)):
            if len(x.shape) != 3:
                raise ShapeError(
                    f"MultiHeadAttention: {name}: expected (batch, steps, inputs), got {x.shape}; "
                    "use x[None] for one item"
                )
        if cache is not None and not isinstance(cache, (Cache, FixedCache)):
            raise TypeError(
                "MultiHeadAttention: cache: expected empty_cache(batch), fixed_cache(memory) or "
                f"what an earlier call gave, got {type(cache).__name__}"
            )
        if scores and cache is not None:
            raise ValueError(
                "MultiHeadAttention: return_attention_scores: expected False with a cache; take "
                "functional.attention.attention_weights"
            )
        if self.pattern == "full":
            return
        if not query is value is key or attention_mask is not None or scores or cache is not None:
            raise ValueError(
                f"MultiHeadAttention: pattern {self.pattern!r}: expected self-attention, without "
                "attention_mask, return_attention_scores or cache; use pattern 'full'"
            )

    def _mask(self, name: str, mask: Any, shape: tuple[int, ...], like: Any) -> Any:
        mask = _booleans(name, mask, like)
        if mask is not None and mask.shape != shape:
            raise ShapeError(
                f"MultiHeadAttention: {name}: expected shape {shape}, (batch, steps), got "
                f"{mask.shape}"
            )
        return None if mask is None else mask if name == "query_mask" else mask[:, None, None, :]

    def _full_mask(self, mask: Any, query: Any, source: int) -> Any:
        mask = _booleans("attention_mask", mask, query)
        if mask is None:
            return None
        batch, time = query.shape[:2]
        mask = mask[:, None] if mask.ndim == 3 else mask
        sides = zip(mask.shape[::-1], (source, time, self.num_heads, batch), strict=False)
        if mask.ndim > 4 or any(side not in (1, n) for side, n in sides):
            raise ShapeError(
                f"MultiHeadAttention: attention_mask: expected {(batch, time, source)}, (batch, "
                f"time, source), or four axes with heads, got {mask.shape}"
            )
        return mask


def _booleans(name: str, mask: Any, like: Any) -> Any:
    """`mask` as a bare array of booleans, where `like` is; None stays None."""
    if mask is None:
        return None
    array = unwrap(mask)
    array = array if backend.is_array(array) else np.asarray(array)
    if array.dtype != np.bool_:
        raise DtypeError(
            f"MultiHeadAttention: {name}: expected booleans (True = keep), got {array.dtype}; use "
            f"{name} != 0, or {name} == 0 of one to be added to the scores (0 = keep, -inf = hide)"
        )
    return backend.to_device(array, backend.device_of(unwrap(like)))


def _both(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return one if other is None else other
    return backend.namespace(one).logical_and(one, other)
