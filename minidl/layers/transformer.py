"""Transformer blocks: attention and a feed-forward network, each with a residual around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from minidl.errors import ShapeError
from minidl.layers.attention import Cache, FixedCache, MultiHeadAttention
from minidl.layers.dense import Dense
from minidl.layers.dropout import Dropout
from minidl.layers.layer import Layer
from minidl.layers.normalization import LayerNormalization


class DecoderCache(NamedTuple):
    """What a decoder block remembers of the steps so far, and of the memory (None without one)."""

    own: Cache
    memory: FixedCache | None


class _Block(Layer):
    """What both blocks share; `attention` gets these options, and those of either."""

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        key_dim: int | None = None,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation: Any = "relu",
        normalize_first: bool = True,
        epsilon: float = 1e-5,
        input_size: int | None = None,
        **attention: Any,
    ) -> None:
        self.intermediate_dim = intermediate_dim
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.attention_dropout = attention_dropout
        self.activation = activation
        self.normalize_first = normalize_first
        self.epsilon = epsilon
        self.dropout = Dropout(dropout)
        self._options = attention
        if input_size is not None:
            self.build((None, None, input_size))

    def _attention(self, size: int, memory: int | None = None, **options: Any) -> Any:
        if self.key_dim is None and size % self.num_heads:
            raise ShapeError(
                f"{type(self).__name__}: num_heads: expected a divisor of the input's size {size}, "
                f"got {self.num_heads}; give key_dim"
            )
        return MultiHeadAttention(
            self.num_heads,
            self.key_dim or size // self.num_heads,
            dropout=self.attention_dropout,
            input_size=(size, memory or size, memory or size),
            **options,
        )

    def _build_rest(self, size: int) -> None:
        self.intermediate = Dense(self.intermediate_dim, self.activation, input_size=size)
        self.output = Dense(size, input_size=self.intermediate_dim)
        self.output_norm = LayerNormalization(self.epsilon, input_size=size)

    def _feed_forward(self, x: Any) -> Any:
        return self.output(self.intermediate(x))

    def _residual(self, x: Any, norm: Layer, function: Callable) -> Any:
        """x + dropout(function(norm(x))), or norm(x + dropout(function(x)))."""
        if self.normalize_first:
            return x + self.dropout(function(norm(x)))
        return norm(x + self.dropout(function(x)))


class TransformerEncoderBlock(_Block):
    """Self-attention and a feed-forward network: (batch, time, size) -> the same.

    layer(x, mask=None, use_causal_mask=False); mask (batch, time): what is real, True = keep; the
    other steps are not seen. Inside: `attention` with its `attention_norm`; `intermediate` (Dense
    to intermediate_dim, `activation`), `output` (Dense back) with `output_norm`. Normalizes what
    goes in (normalize_first, as deep stacks need: Xiong et al. 2020), or the sum, as in Vaswani et
    al. 2017. dropout: of both results; attention_dropout: of the probabilities. key_dim: size /
    num_heads if None. Further options, pattern, window, stride and rotary, are
    MultiHeadAttention's.
    """

    def build(self, input_shape: Any) -> None:
        size = input_shape[-1]
        self.attention = self._attention(size, **self._options)
        self.attention_norm = LayerNormalization(self.epsilon, input_size=size)
        self._build_rest(size)

    def call(self, x: Any, mask: Any = None, use_causal_mask: bool = False) -> Any:
        def attend(x: Any) -> Any:
            return self.attention(x, value_mask=mask, use_causal_mask=use_causal_mask)

        x = self._residual(x, self.attention_norm, attend)
        return self._residual(x, self.output_norm, self._feed_forward)


class TransformerDecoderBlock(_Block):
    """Causal self-attention, attention to a memory, and a feed-forward network.

    layer(x, memory, mask=None, memory_mask=None): x (batch, time, size) -> the same; memory (batch,
    source, memory_size), the encoder's output. With cross_attention=False there is no memory:
    layer(x). Inside and options as in TransformerEncoderBlock, and `cross_attention` with its
    `cross_attention_norm`.

    Decoding: cache = layer.empty_cache(batch, memory), then output, cache = layer(step,
    memory_mask=memory_mask, cache=cache), a step or a few at a time.
    """

    def __init__(
        self,
        intermediate_dim: int,
        num_heads: int,
        *args: Any,
        cross_attention: bool = True,
        memory_size: int | None = None,
        **options: Any,
    ) -> None:
        self.has_memory = cross_attention
        self.memory_size = memory_size
        super().__init__(intermediate_dim, num_heads, *args, **options)

    def build(self, input_shape: Any) -> None:
        size = input_shape[-1]
        self.attention = self._attention(size, **self._options)
        self.attention_norm = LayerNormalization(self.epsilon, input_size=size)
        if self.has_memory:
            self.cross_attention = self._attention(size, self.memory_size)
            self.cross_attention_norm = LayerNormalization(self.epsilon, input_size=size)
        self._build_rest(size)

    def empty_cache(self, batch: int, memory: Any = None) -> DecoderCache:
        """What decoding starts from: no steps, and the memory's keys and values."""
        self._require_built("empty_cache")
        self._check_memory(memory)
        fixed = self.cross_attention.fixed_cache(memory) if self.has_memory else None
        return DecoderCache(self.attention.empty_cache(batch), fixed)

    def call(
        self,
        x: Any,
        memory: Any = None,
        mask: Any = None,
        memory_mask: Any = None,
        cache: DecoderCache | None = None,
    ) -> Any:
        own: Any = None
        if cache is None:
            self._check_memory(memory)

        def attend(x: Any) -> Any:
            nonlocal own
            if cache is None:
                return self.attention(x, value_mask=mask, use_causal_mask=True)
            out, own = self.attention(x, value_mask=mask, use_causal_mask=True, cache=cache.own)
            return out

        def look(x: Any) -> Any:
            if cache is None:
                return self.cross_attention(x, memory, value_mask=memory_mask)
            return self.cross_attention(x, value_mask=memory_mask, cache=cache.memory)[0]

        x = self._residual(x, self.attention_norm, attend)
        if self.has_memory:
            x = self._residual(x, self.cross_attention_norm, look)
        x = self._residual(x, self.output_norm, self._feed_forward)
        return x if cache is None else (x, DecoderCache(own, cache.memory))

    def _check_memory(self, memory: Any) -> None:
        if (memory is not None) != self.has_memory:
            raise ValueError(
                "TransformerDecoderBlock: memory: expected "
                + ("the encoder's output" if self.has_memory else "None, as cross_attention=False")
                + f", got {'None' if memory is None else f'shape {memory.shape}'}"
            )
