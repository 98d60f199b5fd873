"""minidl: automatic differentiation, layers and training, small enough to read."""

import importlib

from minidl import (
    callbacks,
    constraints,
    data,
    decoding,
    errors,
    functional,
    initializers,
    layers,
    lipschitz,
    losses,
    metrics,
    ops,
    optimizers,
    random,
    regularizers,
    schedules,
    transforms,
)
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
from minidl.training import History, evaluate, evaluating, fit

__version__ = "0.1.0"

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
    if name == "testing":  # loaded when asked for
        return importlib.import_module("minidl.testing")
    mend = f"; use {_HABITS[name]}" if name in _HABITS else ""
    raise AttributeError(f"module 'minidl' has no attribute {name!r}{mend}")
