"""Training: the loop, callbacks, metrics and history."""

from minidl.training.history import History
from minidl.training.loop import Run, evaluate, evaluating, fit

__all__ = ["History", "Run", "evaluate", "evaluating", "fit"]
