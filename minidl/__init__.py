"""minidl: automatic differentiation, layers and training, small enough to read."""

import importlib
from typing import TYPE_CHECKING

from minidl import errors, ops, random
from minidl.autodiff import (
    anomaly_mode,
    enable_grad,
    grad,
    no_grad,
    primitive,
    recompute,
    stop_gradient,
)
from minidl.backend import default_dtype, device, threads, tune_allocator
from minidl.creation import arange, eye, full, linspace, ones, zeros
from minidl.derivatives import hessian, hvp, jacobian, jvp, vjp
from minidl.graph import Parameter, Tensor, tensor
from minidl.ops import *  # noqa: F403
from minidl.random import seed
from minidl.serialization import load, save

if TYPE_CHECKING:
    from minidl.training import History, evaluate, evaluating, fit

__version__ = "0.1.0"

_LATER = {  # loaded when asked for: an op's user does not wait for the layers
    "callbacks", "constraints", "conversion", "data", "decoding", "functional", "initializers",
    "layers", "lipschitz", "losses", "metrics", "optimizers", "regularizers", "schedules",
    "testing", "training", "transforms",
}  # fmt: skip
_OF_TRAINING = {"History", "evaluate", "evaluating", "fit"}

_HABITS = {  # what users of PyTorch look for here
    "cat": "md.concatenate",
    "randn": "md.tensor(md.random.generator().normal(shape))",
    "rand": "md.tensor(md.random.generator().uniform(0, 1, shape))",
    "manual_seed": "md.seed",
    "nn": "md.layers, md.losses and minidl.functional",
    "optim": "md.optimizers",
    "from_numpy": "md.tensor",
    "clamp": "md.clip",
    "unsqueeze": "md.expand_dims",
    "permute": "md.transpose",
}


def __getattr__(name: str) -> object:
    if name in _LATER:
        return importlib.import_module(f"minidl.{name}")
    if name in _OF_TRAINING:
        return globals().setdefault(name, getattr(importlib.import_module("minidl.training"), name))
    mend = f"; use {_HABITS[name]}" if name in _HABITS else ""
    raise AttributeError(f"module 'minidl' has no attribute {name!r}{mend}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_OF_TRAINING})
