"""Metrics under their public name; see minidl.training.metrics."""

from minidl.training.metrics import *  # noqa: F403
