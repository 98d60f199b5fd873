"""Layers: what has state. Names and arguments as in Keras, channels last."""

from minidl.graph import Parameter
from minidl.layers.activation import (
    ELU,
    Activation,
    ActivityRegularization,
    Identity,
    Lambda,
    LeakyReLU,
    PReLU,
    ReLU,
    Softmax,
)
from minidl.layers.attention import MultiHeadAttention
from minidl.layers.attention_pooling import AttentionPooling
from minidl.layers.container import Sequential
from minidl.layers.conv import Conv1D
from minidl.layers.crf import CRF
from minidl.layers.dense import Dense
from minidl.layers.dropout import Dropout
from minidl.layers.embedding import Embedding
from minidl.layers.gated_conv import GatedConv1D
from minidl.layers.layer import Layer
from minidl.layers.merging import (
    Add,
    Average,
    Concatenate,
    Dot,
    Maximum,
    Minimum,
    Multiply,
    Subtract,
)
from minidl.layers.noise import (
    AlphaDropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
)
from minidl.layers.normalization import (
    BatchNormalization,
    ConditionalLayerNormalization,
    GroupNormalization,
    LayerNormalization,
    ScaleShift,
)
from minidl.layers.pooling import (
    AveragePooling1D,
    GlobalAveragePooling1D,
    GlobalMaxPooling1D,
    MaxPooling1D,
)
from minidl.layers.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from minidl.layers.recurrent import GRU, LSTM, Bidirectional, SimpleRNN, StackedRNN
from minidl.layers.shaping import (
    Cropping1D,
    Flatten,
    Permute,
    RepeatVector,
    Reshape,
    UpSampling1D,
    ZeroPadding1D,
)
from minidl.layers.transformer import TransformerDecoderBlock, TransformerEncoderBlock

__all__ = [
    "Activation", "ActivityRegularization", "Add", "AlphaDropout", "AttentionPooling", "Average",
    "AveragePooling1D", "BatchNormalization", "Bidirectional", "CRF", "Concatenate",
    "ConditionalLayerNormalization", "Conv1D", "Cropping1D", "Dense", "Dot", "Dropout", "ELU",
    "Embedding", "Flatten", "GRU", "GatedConv1D", "GaussianDropout", "GaussianNoise",
    "GlobalAveragePooling1D", "GlobalMaxPooling1D", "GroupNormalization", "Identity", "LSTM",
    "Lambda", "Layer", "LayerNormalization", "LeakyReLU", "LearnedPositions", "MaxPooling1D",
    "Maximum", "Minimum", "MultiHeadAttention", "Multiply", "PReLU", "Parameter", "Permute", "ReLU",
    "RepeatVector", "Reshape", "RotaryPositions", "ScaleShift", "Sequential", "SimpleRNN",
    "SinusoidalPositions", "Softmax", "SpatialDropout1D", "StackedRNN", "Subtract",
    "TransformerDecoderBlock", "TransformerEncoderBlock", "UpSampling1D", "ZeroPadding1D",
]  # fmt: skip
