"""Weights from PyTorch's layouts, and to them. PyTorch itself is not needed.

PyTorch keeps matrices as (outputs, inputs), calls scales and shifts `weight` and `bias`, and packs
what minidl keeps apart (attention's three maps) or keeps apart what minidl sums (an LSTM's two
biases). Each layer's `Piece`s say which arrays of one side make which arrays of the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from minidl import layers
from minidl.errors import SerializationError
from minidl.layers.layer import Layer
from minidl.layers.recurrent import Recurrent

Array = np.ndarray


class Piece(NamedTuple):
    """Arrays that are converted together: `read(*theirs)` gives ours, `write(*ours)` theirs."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable[..., tuple[Array, ...]]
    write: Callable[..., tuple[Array, ...]]


def from_pytorch(layer: Layer, state: dict[str, Any], prefix: str = "") -> None:
    """Write into `layer` what `state`, a PyTorch module's state_dict(), holds under `prefix`.

    Values are PyTorch's tensors or NumPy arrays. Dense reads a Linear, Conv1D a Conv1d and so for
    Conv2D and the transposes, DepthwiseConv2D a Conv2d of as many groups as channels,
    SeparableConv2D an nn.Sequential of such a one and a Conv2d of size 1, Embedding,
    LayerNormalization, BatchNormalization, GroupNormalization, PReLU and MultiHeadAttention their
    namesakes, the Transformer blocks a TransformerEncoderLayer or TransformerDecoderLayer;
    SimpleRNN, GRU and LSTM, alone, in Bidirectional or in StackedRNN, an RNN, GRU or LSTM of as
    many layers. Any other layer is gone through: those inside are looked for under their own names,
    so Sequential reads an nn.Sequential.

    Raises SerializationError, and changes nothing, where names are missing or unexpected or shapes
    differ; BuildError while the layer has no parameters yet; TypeError for a layer with parameters
    that PyTorch has no counterpart of.
    """
    layer._require_built("from_pytorch")
    prefix = prefix.rstrip(".")
    theirs = {
        name: _host(value)
        for name, value in state.items()
        if not prefix or name.startswith(prefix + ".")
    }
    known: set[str] = set()
    found: dict[str, Array] = {}
    for path, piece in _pieces(layer):
        names = [_join(prefix, path, name) for name in piece.theirs]
        known.update(names)
        if all(name in theirs for name in names):
            values = _read(piece, names, [theirs[name] for name in names])
            found |= {_join(path, own): v for own, v in zip(piece.ours, values, strict=True)}
    problems = {
        "missing": [name for name in sorted(known) if name not in theirs],
        "unexpected": [n for n in theirs if n not in known and not n.endswith(_IGNORED)],
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{what}: {', '.join(names)}" for what, names in problems.items() if names
        )
        raise SerializationError(
            f"from_pytorch: {type(layer).__name__}: {listed}. Check prefix={prefix!r}, and options "
            "such as use_bias"
        )
    layer.load_state_dict(found, strict=False)


def to_pytorch(layer: Layer, prefix: str = "") -> dict[str, Array]:
    """The weights of `layer` under PyTorch's names and in its layouts, as NumPy arrays.

    `module.load_state_dict({name: torch.from_numpy(a) for name, a in to_pytorch(layer).items()})`
    takes them. Where PyTorch has two biases that minidl sums, the second is zero. Raises as
    `from_pytorch`.
    """
    layer._require_built("to_pytorch")
    inside = dict(layer.walk())
    found: dict[str, Array] = {}
    for path, piece in _pieces(layer):
        values = piece.write(*(_value(inside[path], name) for name in piece.ours))
        names = [_join(prefix.rstrip("."), path, name) for name in piece.theirs]
        found |= {n: np.array(v, order="C") for n, v in zip(names, values, strict=True)}
    return found


# --- One array each -------------------------------------------------------------------------------


def _renamed(own: str, other: str) -> Piece:
    return Piece((own,), (other,), lambda a: (a,), lambda a: (a,))


def _turned(own: str, other: str) -> Piece:
    """Their (outputs, inputs, *window) is our (*window, inputs, outputs)."""
    return Piece((own,), (other,), lambda a: (_in_ours(a),), lambda a: (_in_theirs(a),))


def _in_ours(a: Array) -> Array:
    return np.moveaxis(a, (0, 1), (-1, -2))


def _in_theirs(a: Array) -> Array:
    return np.moveaxis(a, (-1, -2), (0, 1))


def _of_kernel(layer: Any, kernel: str = "kernel", prefix: str = "") -> Iterator[Piece]:
    yield _turned(kernel, prefix + "weight")
    if layer.bias is not None:
        yield _renamed("bias", prefix + "bias")


def _depthwise(layer: Any, own: str, other: str) -> Piece:
    """A kernel for each channel, which they keep as one of as many groups."""
    shape = getattr(layer, own).shape
    whole = (*shape[:-2], 1, shape[-2] * shape[-1])
    return Piece(
        (own,),
        (other,),
        lambda a: (_in_ours(a).reshape(shape),),
        lambda a: (_in_theirs(a.reshape(whole)),),
    )


def _of_depthwise(layer: Any) -> Iterator[Piece]:
    yield _depthwise(layer, "kernel", "weight")
    if layer.bias is not None:
        yield _renamed("bias", "bias")


def _of_separable(layer: Any) -> Iterator[Piece]:
    """An nn.Sequential of the two convolutions."""
    yield _depthwise(layer, "depthwise_kernel", "0.weight")
    yield from _of_kernel(layer, "pointwise_kernel", "1.")


def _of_embedding(layer: Any) -> Iterator[Piece]:
    yield _renamed("embeddings", "weight")


def _of_scale(layer: Any) -> Iterator[Piece]:
    for own, other in (("gamma", "weight"), ("beta", "bias")):
        if getattr(layer, own) is not None:
            yield _renamed(own, other)


def _of_batch_norm(layer: Any) -> Iterator[Piece]:
    yield from _of_scale(layer)
    yield _renamed("moving_mean", "running_mean")
    yield _renamed("moving_variance", "running_var")


def _of_prelu(layer: Any) -> Iterator[Piece]:
    shape = layer.alpha.shape  # theirs has no axes for what is shared
    yield Piece(("alpha",), ("weight",), lambda a: (a.reshape(shape),), lambda a: (a.reshape(-1),))


# --- Attention ------------------------------------------------------------------------------------


def _of_attention(layer: Any) -> Iterator[Piece]:
    """PyTorch packs the three kernels into one where query, key and value are of one size."""
    three = ("query", "key", "value")
    kernels, biases = ([f"{name}_{kind}" for name in three] for kind in ("kernel", "bias"))
    sizes = {_value(layer, name).shape for name in kernels}
    if len(sizes) == 1:
        yield _packed(kernels, "in_proj_weight", lambda a: a.T)
    else:
        for own, letter in zip(kernels, "qkv", strict=True):
            yield _turned(own, f"{letter}_proj_weight")
    yield _turned("output_kernel", "out_proj.weight")
    if layer.use_bias:
        yield _packed(biases, "in_proj_bias", lambda a: a)
        yield _renamed("output_bias", "out_proj.bias")


def _packed(names: list[str], other: str, turn: Callable[[Array], Array]) -> Piece:
    return Piece(
        tuple(names),
        (other,),
        lambda a: tuple(turn(part) for part in np.split(a, len(names))),
        lambda *parts: (np.concatenate([turn(part) for part in parts]),),
    )


def _of_block(layer: Any) -> Iterator[Piece]:
    """A TransformerEncoderLayer or TransformerDecoderLayer: the same layers by other names."""
    names = {"attention": "self_attn", "attention_norm": "norm1"}
    if getattr(layer, "has_memory", False):
        names |= {"cross_attention": "multihead_attn", "cross_attention_norm": "norm2"}
    last = f"norm{len(names) // 2 + 1}"
    names |= {"intermediate": "linear1", "output": "linear2", "output_norm": last}
    for own, other in names.items():
        for path, piece in _pieces(getattr(layer, own)):
            yield piece._replace(
                ours=tuple(_join(own, path, name) for name in piece.ours),
                theirs=tuple(_join(other, path, name) for name in piece.theirs),
            )


# --- Recurrent layers -----------------------------------------------------------------------------


def _of_recurrent(layer: Any) -> Iterator[Piece]:
    if layer.go_backwards:
        raise TypeError(
            f"{type(layer).__name__}: go_backwards: PyTorch has no layer that only goes backwards"
        )
    yield from _of_cell(layer, "", "_l0")


def _of_bidirectional(layer: Any, path: str = "", number: int = 0) -> Iterator[Piece]:
    yield from _of_cell(layer.forward_layer, _join(path, "forward_layer"), f"_l{number}")
    yield from _of_cell(layer.backward_layer, _join(path, "backward_layer"), f"_l{number}_reverse")


def _of_stack(layer: Any) -> Iterator[Piece]:
    for i, inner in enumerate(layer.layers):
        if isinstance(inner, layers.Bidirectional):
            yield from _of_bidirectional(inner, str(i), i)
        else:
            yield from _of_cell(inner, str(i), f"_l{i}")


def _of_cell(layer: Recurrent, path: str, suffix: str) -> Iterator[Piece]:
    """One layer, one direction. A GRU's gates are z r n here, and r z n there."""
    swap = isinstance(layer, layers.GRU)

    def turn(a: Array) -> Array:
        if not swap:
            return a
        first, second, third = np.split(a, 3)
        return np.concatenate([second, first, third])

    for own, other in (("kernel", "weight_ih"), ("recurrent_kernel", "weight_hh")):
        yield Piece(
            (_join(path, own),),
            (other + suffix,),
            lambda a: (turn(a).T,),
            lambda a: (turn(a.T),),
        )
    if not layer.use_bias:
        return
    biases = ("bias_ih" + suffix, "bias_hh" + suffix)
    if swap:
        yield Piece(
            (_join(path, "bias"),),
            biases,
            lambda a, b: (np.stack([turn(a), turn(b)]),),
            lambda a: (turn(a[0]), turn(a[1])),
        )
    else:
        yield Piece(
            (_join(path, "bias"),), biases, lambda a, b: (a + b,), lambda a: (a, np.zeros_like(a))
        )


# --- All layers -----------------------------------------------------------------------------------

_OF: dict[type[Layer], Callable[[Any], Iterator[Piece]]] = {
    layers.BatchNormalization: _of_batch_norm,
    layers.Bidirectional: _of_bidirectional,
    layers.Conv1D: _of_kernel,
    layers.Conv1DTranspose: _of_kernel,
    layers.Conv2D: _of_kernel,
    layers.Conv2DTranspose: _of_kernel,
    layers.Dense: _of_kernel,
    layers.DepthwiseConv2D: _of_depthwise,
    layers.Embedding: _of_embedding,
    layers.GroupNormalization: _of_scale,
    layers.LayerNormalization: _of_scale,
    layers.MultiHeadAttention: _of_attention,
    layers.PReLU: _of_prelu,
    layers.SeparableConv2D: _of_separable,
    layers.StackedRNN: _of_stack,
    layers.TransformerDecoderBlock: _of_block,
    layers.TransformerEncoderBlock: _of_block,
    Recurrent: _of_recurrent,
}
_WHOLE = {  # whose pieces are those of the layers inside
    layers.Bidirectional,
    layers.StackedRNN,
    layers.TransformerDecoderBlock,
    layers.TransformerEncoderBlock,
}
_IGNORED = "num_batches_tracked"  # BatchNorm1d counts; nothing here asks for it


def _pieces(layer: Layer) -> Iterator[tuple[str, Piece]]:
    """(path of a layer inside, piece) of all that is converted."""
    done: list[str] = []  # whose insides are converted with them
    for path, inner in layer.walk():
        if any(path.startswith(outer) for outer in done):
            continue
        kind = next((kind for kind in type(inner).__mro__ if kind in _OF), None)
        if kind is not None:
            if kind in _WHOLE:
                done.append(path + "." if path else "")
            for piece in _OF[kind](inner):
                yield path, piece
            continue
        own = [name for name, member in inner.members() if not isinstance(member, Layer)]
        if own or inner._buffers:
            raise TypeError(
                f"conversion: {path or 'layer'} ({type(inner).__name__}): PyTorch has no "
                f"counterpart for {', '.join([*own, *inner._buffers])}; convert the layers around "
                "it one by one, with prefix"
            )


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)


def _host(value: Any) -> Array:
    """A tensor of PyTorch, minidl or NumPy as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach()
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":  # NumPy has no such numbers
        value = value.float()
    for method in ("cpu", "numpy"):
        if hasattr(value, method):
            value = getattr(value, method)()
    return np.asarray(value)


def _value(layer: Layer, path: str) -> Array:
    found: Any = layer
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    return found.numpy()


def _read(piece: Piece, names: list[str], values: list[Array]) -> tuple[Array, ...]:
    try:
        return piece.read(*values)
    except ValueError as error:
        shapes = ", ".join(f"{name} {v.shape}" for name, v in zip(names, values, strict=True))
        raise SerializationError(
            f"from_pytorch: {', '.join(piece.ours)}: cannot be made of {shapes}; the layers differ"
        ) from error
