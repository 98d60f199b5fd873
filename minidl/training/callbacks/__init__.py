"""Callbacks: what happens beside the steps of a training. Keras's names."""

from minidl.training.callbacks.averaging import ExponentialMovingAverage
from minidl.training.callbacks.callback import Callback, LambdaCallback, ProgressBar
from minidl.training.callbacks.monitoring import (
    BestWeights,
    EarlyStopping,
    ModelCheckpoint,
    Monitor,
    ReduceLROnPlateau,
    TerminateOnNaN,
)
from minidl.training.callbacks.rates import LearningRateLog, LearningRateScheduler
from minidl.training.callbacks.saving import Checkpoint, CSVLogger, JSONLogger

__all__ = [
    "BestWeights",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "ExponentialMovingAverage",
    "JSONLogger",
    "LambdaCallback",
    "LearningRateLog",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "Monitor",
    "ProgressBar",
    "ReduceLROnPlateau",
    "TerminateOnNaN",
]
