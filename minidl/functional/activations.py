"""Activations by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minidl import ops

_NAMES = (
    "elu", "exp", "gelu", "glu", "hard_sigmoid", "hard_silu", "hard_tanh", "leaky_relu",
    "log_sigmoid", "log_softmax", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "softmax",
    "softplus", "softsign", "tanh",
)  # fmt: skip
_SYNONYMS = {"exponential": "exp", "hard_swish": "hard_silu", "swish": "silu"}


def linear(x: Any) -> Any:
    """`x` itself."""
    return x


def activation(identifier: str | Callable | None) -> Callable:
    """The function of a name ("relu", "tanh", "softmax" over the last axis, ...).

    None and "linear" give the identity, functions pass. Raises ValueError for an unknown name.
    """
    if identifier is None or identifier == "linear":
        return linear
    if callable(identifier):
        return identifier
    name = _SYNONYMS.get(identifier, identifier)
    if name not in _NAMES:
        known = ", ".join(sorted((*_NAMES, *_SYNONYMS, "linear")))
        raise ValueError(f"activation {identifier!r} is unknown; expected one of {known}")
    return getattr(ops, name)
