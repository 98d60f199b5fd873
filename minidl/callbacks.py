"""Callbacks under their public name; see minidl.training.callbacks."""

from minidl.training.callbacks import *  # noqa: F403
