"""Layers: what has state. Names and arguments as in Keras, channels last."""

from minidl.graph import Parameter
from minidl.layers.activation import Activation
from minidl.layers.container import Sequential
from minidl.layers.conv import Conv1D
from minidl.layers.crf import CRF
from minidl.layers.dense import Dense
from minidl.layers.dropout import Dropout
from minidl.layers.embedding import Embedding
from minidl.layers.layer import Layer
from minidl.layers.normalization import LayerNormalization

__all__ = [
    "Activation", "CRF", "Conv1D", "Dense", "Dropout", "Embedding", "Layer", "LayerNormalization",
    "Parameter", "Sequential",
]  # fmt: skip
