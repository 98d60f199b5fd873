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
from minidl.layers.center_loss import CenterLoss
from minidl.layers.container import Sequential
from minidl.layers.conv import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    DepthwiseConv2D,
    SeparableConv2D,
)
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
from minidl.layers.mixing import ManifoldMixing
from minidl.layers.noise import (
    AlphaDropout,
    GaussianDropout,
    GaussianNoise,
    SpatialDropout1D,
    SpatialDropout2D,
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
    AveragePooling2D,
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
    MaxPooling1D,
    MaxPooling2D,
)
from minidl.layers.positions import LearnedPositions, RotaryPositions, SinusoidalPositions
from minidl.layers.recurrent import GRU, LSTM, Bidirectional, SimpleRNN, StackedRNN
from minidl.layers.shaping import (
    Cropping1D,
    Cropping2D,
    Flatten,
    Permute,
    PixelShuffle,
    RepeatVector,
    Reshape,
    UpSampling1D,
    UpSampling2D,
    ZeroPadding1D,
    ZeroPadding2D,
)
from minidl.layers.spectral import SpectralNorm, SpectralNormalization
from minidl.layers.transformer import TransformerDecoderBlock, TransformerEncoderBlock

__all__ = [
    "Activation", "ActivityRegularization", "Add", "AlphaDropout", "AttentionPooling", "Average",
    "AveragePooling1D", "AveragePooling2D", "BatchNormalization", "Bidirectional", "CRF",
    "CenterLoss", "Concatenate", "ConditionalLayerNormalization", "Conv1D", "Conv1DTranspose",
    "Conv2D", "Conv2DTranspose", "Cropping1D", "Cropping2D", "Dense", "DepthwiseConv2D", "Dot",
    "Dropout", "ELU", "Embedding", "Flatten", "GRU", "GatedConv1D", "GaussianDropout",
    "GaussianNoise", "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
    "GlobalMaxPooling2D", "GroupNormalization", "Identity", "LSTM", "Lambda", "Layer",
    "LayerNormalization", "LeakyReLU", "LearnedPositions", "ManifoldMixing", "MaxPooling1D",
    "MaxPooling2D", "Maximum", "Minimum", "MultiHeadAttention", "Multiply", "PReLU", "Parameter",
    "Permute", "PixelShuffle", "ReLU", "RepeatVector", "Reshape", "RotaryPositions", "ScaleShift",
    "SeparableConv2D", "Sequential", "SimpleRNN", "SinusoidalPositions", "Softmax",
    "SpatialDropout1D", "SpatialDropout2D", "SpectralNorm", "SpectralNormalization", "StackedRNN",
    "Subtract", "TransformerDecoderBlock", "TransformerEncoderBlock", "UpSampling1D",
    "UpSampling2D", "ZeroPadding1D", "ZeroPadding2D",
]  # fmt: skip
