"""Optimisers; Keras's names."""

from minidl.optimizers.lookahead import Lookahead
from minidl.optimizers.optimizer import Optimizer
from minidl.optimizers.rules import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, RAdam, RMSProp
from minidl.optimizers.several import Optimizers

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lookahead",
    "Optimizer",
    "Optimizers",
    "RAdam",
    "RMSProp",
]
