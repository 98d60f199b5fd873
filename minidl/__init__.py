"""minidl: automatic differentiation, layers and training, small enough to read."""

from minidl import (
    callbacks,
    data,
    errors,
    functional,
    initializers,
    layers,
    losses,
    metrics,
    ops,
    optimizers,
    random,
    schedules,
    testing,
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
from minidl.training import History, evaluate, fit

__version__ = "0.1.0"
