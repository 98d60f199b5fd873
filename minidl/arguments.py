"""What an op's arguments may be: one device, one kind of number, and errors that name what is not.

`op` is a Primitive everywhere: its names, and which of its arguments are data.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from minidl import backend
from minidl.errors import DeviceError, DtypeError, GradientError, MinidlError, ShapeError
from minidl.graph import Tensor, unwrap


def agree(op: Any, args: Sequence, arrays: list) -> Sequence:
    """Refuse arrays of several devices; bring the data to one kind of number, in `arrays`.

    Integers beside float32 become float32 (NumPy would make float64 of the two), integers alone
    become the default float where the op gives floats; NumPy's scalars count as Python's, and a
    list as an array. Returns the arguments so changed.
    """
    refuse_mixed(op, arrays)
    bits = (1,) * len(arrays) if op.variadic else op._bits
    data = [i for i, bit in enumerate(bits) if bit]
    changed = list(args)
    for i in data:
        value = arrays[i]
        if isinstance(value, np.generic):
            arrays[i] = changed[i] = value.item()
        elif isinstance(value, (list, tuple)):
            device = next(backend.device_of(a) for a in arrays if backend.is_array(a))
            arrays[i] = changed[i] = Tensor(array_of(op, value), device=device)._data
    kinds = [arrays[i].dtype for i in data if backend.is_array(arrays[i])]
    if any(kind.kind not in "fiub" for kind in kinds) or any(
        type(arrays[i]) is complex for i in data
    ):
        raise DtypeError(
            f"{op.__name__}: expected real numbers or booleans, got "
            f"{', '.join(str(getattr(arrays[i], 'dtype', type(arrays[i]).__name__)) for i in data)}"
        )
    floating = [kind for kind in kinds if kind.kind == "f"]
    if floating:
        target = np.result_type(*floating)
    elif op.floats or any(type(arrays[i]) is float for i in data):
        target = backend.current_dtype()
    else:
        return changed
    for i in data:
        if backend.is_array(arrays[i]) and arrays[i].dtype.kind in "iub":
            arrays[i] = changed[i] = arrays[i].astype(target)
    return changed


def positional(body: Callable) -> Callable:
    """`body`, taking its keyword-only parameters by position too (unless it is variadic)."""
    parameters = inspect.signature(body).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    if not names or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return body
    count = len(parameters) - len(names)
    return lambda *args: body(*args[:count], **dict(zip(names, args[count:], strict=True)))


def array_of(op: Any, values: Sequence) -> np.ndarray:
    """A nested list of numbers as an array, floats in the default dtype."""
    if any(isinstance(item, Tensor) for item in values):
        raise TypeError(
            f"{op.__name__}: expected a Tensor, an array or a list of numbers, got a list of "
            "Tensors; join them with md.stack"
        )
    array = np.asarray(values)
    return array.astype(backend.current_dtype()) if array.dtype == np.float64 else array


def refuse_constant(op: Any, name: str) -> None:
    raise GradientError(
        f"{op.__name__}: {name} has no derivative here, but the tensor given requires a gradient; "
        f"pass {name}.detach(), or give the op a rule: {op.__name__}.defvjp({name}=rule)"
    )


def refuse_lost(op: Any, args: Sequence, result: Any) -> None:
    """GradientError if `op`, which has no rules, made floats of a tensor that wants a gradient."""
    out = result[0] if op.residuals else result
    outputs = out if isinstance(out, tuple) else (out,)
    if not any(getattr(o, "dtype", None) is not None and o.dtype.kind == "f" for o in outputs):
        return
    names = op.names[:1] * len(args) if op.variadic else op.names
    for name, arg in zip(names, args, strict=False):
        if isinstance(arg, Tensor) and arg.requires_grad:
            raise GradientError(
                f"{op.__name__}: {name} requires a gradient, but the op has no rule for it; give "
                f"one with {op.__name__}.defvjp({name}=rule), pass {name}.detach(), or make the op "
                "with @primitive(differentiable=False) if it has no derivative"
            )


def explain(op: Any, arrays: Sequence, error: Exception) -> None:
    """Raise an error that names op and arguments for one of NumPy's about devices or shapes."""
    refuse_mixed(op, arrays)
    if isinstance(error, ValueError) and not isinstance(error, MinidlError):
        shapes = [
            f"{name} of shape {array.shape}"
            for name, array in zip(op.names, arrays, strict=False)
            if backend.is_array(array)
        ]
        kind = ShapeError if "shape" in str(error) or "dimension" in str(error) else ValueError
        raise kind(f"{op.__name__}: {error}; got {', '.join(shapes)}") from error


def refuse_mixed(op: Any, args: Sequence) -> None:
    """DeviceError if the arrays among `args` live on several devices."""
    names = op.names[:1] * len(args) if op.variadic else op.names
    arrays = [(name, unwrap(arg)) for name, arg in zip(names, args, strict=False)]
    places = [(name, backend.device_of(a)) for name, a in arrays if backend.is_array(a)]
    if len({device for _, device in places}) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in places)
        raise DeviceError(
            f"{op.__name__}: expected arrays of one device, got {listed}; move with x.to(device)"
        )
