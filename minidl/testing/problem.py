"""A function under check: evaluated at any point, in any dtype, without side effects."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from minidl import autodiff, backend, random
from minidl.errors import GradientError
from minidl.graph import Leaf, Tensor, wrap

Arrays = Sequence[np.ndarray]


class Problem:
    """A function of a flat list of float64 arrays, the `point`, whose gradient is to be checked."""

    def __init__(
        self, function: Callable, names: Sequence[str], point: Arrays, apply: Callable, device: str
    ) -> None:
        self.function = function
        self.name = _name(function)
        self.names = tuple(names)
        self.point = list(point)
        self.device = device
        self._apply = apply  # takes leaves, record and a stack that lasts as long as the graph
        self._random_state = random.generator().state()
        self._differentiates = False  # whether the function takes gradients by itself

    @contextmanager
    def at(
        self, arrays: Arrays, dtype: Any = np.float64, record: bool = True
    ) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Leaves holding `arrays` (not copies, on the CPU in float64) and the outputs there.

        Random state and buffers are as before afterwards; what is drawn is the same every time.
        """
        with ExitStack() as stack:
            stack.enter_context(autodiff.replay(self._random_state))
            stack.enter_context(backend.default_dtype(dtype))
            stack.enter_context(np.errstate(all="ignore"))
            stack.enter_context(autodiff.enable_grad() if record else autodiff.no_grad())
            leaves = [_leaf(array, dtype, self.device, record) for array in arrays]
            outputs = self._apply(leaves, record, stack)
            yield leaves, outputs

    def values(self, arrays: Arrays) -> list[np.ndarray]:
        """The outputs on the host: unrecorded, unless the function calls `md.grad` (a gradient
        penalty does), which needs a graph."""
        if not self._differentiates:
            try:
                with self.at(arrays, record=False) as (_, outputs):
                    return [backend.to_host(y._data) for y in outputs]
            except GradientError:
                self._differentiates = True
        with self.at(arrays) as (_, outputs):
            return [backend.to_host(y._data) for y in outputs]

    def derivative(self, cotangents: Arrays) -> Problem:
        """The gradient of <outputs, cotangents> as a function of the point and the cotangents."""
        count = len(self.point)

        def apply(tensors: list[Tensor], record: bool, stack: ExitStack) -> list[Tensor]:
            with autodiff.enable_grad():
                leaves = [x if x.requires_grad else _relief(x) for x in tensors[:count]]
                outputs = self._apply(leaves, True, stack)
                return gradients(outputs, leaves, tensors[count:], create_graph=record)

        names = [*self.names, *(f"g[{i}]" if i else "g" for i in range(len(cotangents)))]
        point = [*self.point, *cotangents]
        new = Problem(self.function, names, point, apply, self.device)
        new._random_state = self._random_state
        return new


def gradients(
    outputs: Sequence[Tensor],
    leaves: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    create_graph: bool = False,
) -> list[Tensor]:
    """Gradients for all leaves, zeros where a leaf is not reached; the graph is retained."""
    pairs = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return [_zeros(x) for x in leaves]
    ys, cs = zip(*pairs, strict=True)
    found = autodiff.grad(
        list(ys), list(leaves), list(cs), create_graph=create_graph, retain_graph=True,
        allow_unused=True,
    )  # fmt: skip
    return [_zeros(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def make_problem(
    f: Callable, args: Sequence, kwargs: dict, parameters: Any = None, device: str | None = None,
    floats: bool = True, bare: bool = False,
) -> Problem:  # fmt: skip
    """The Problem of f(*args, **kwargs), its outputs those that are floating.

    `floats`: Python floats are differentiated too. `bare`: f may return arrays, and outputs of any
    dtype are looked at.
    """
    planter = _Planter(device or _device_of([args, kwargs]), floats)
    names = _argument_names(f, len(args))
    arg_slots = [planter.plant(a, n) for a, n in zip(args, names, strict=True)]
    kwarg_slots = {name: planter.plant(a, name) for name, a in kwargs.items()}
    name = _name(f)

    def evaluate(tensors: Sequence[Tensor]) -> list[Tensor]:
        result = f(
            *(_fill(slot, tensors) for slot in arg_slots),
            **{key: _fill(slot, tensors) for key, slot in kwarg_slots.items()},
        )
        return [y for y in _outputs(result, name, bare) if bare or y.dtype.kind == "f"]

    named = _parameters(f, parameters, evaluate, planter)
    trained = [p for _, p in named]

    def apply(tensors: list[Tensor], record: bool, stack: ExitStack) -> list[Tensor]:
        stack.enter_context(_planted(trained, tensors[len(tensors) - len(trained) :]))
        return evaluate(tensors)

    for label, p in named:
        planter.add(backend.to_host(p._data), label)
    return Problem(f, planter.names, planter.point, apply, planter.device)


class _Slot(int):
    """Stands, in the arguments, for the tensor of this number."""


class _Planter:
    """Takes the floating arrays out of the arguments and leaves numbered slots in their place."""

    def __init__(self, device: str, floats: bool):
        self.device, self.floats = device, floats
        self.names: list[str] = []
        self.point: list[np.ndarray] = []

    def add(self, array: np.ndarray, name: str) -> _Slot:
        self.names.append(name)
        self.point.append(same_layout(array, np.float64))
        return _Slot(len(self.point) - 1)

    def plant(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            value = value._data
        if backend.is_array(value):
            if value.dtype.kind == "f":
                return self.add(backend.to_host(value), name)
            return backend.to_device(value, self.device)
        if isinstance(value, float) and self.floats:
            return self.add(np.array(float(value)), name)
        if type(value) in (list, tuple):
            if _holds_arrays(value):
                return type(value)(self.plant(v, f"{name}[{i}]") for i, v in enumerate(value))
            if self.floats and value and np.asarray(value).dtype.kind == "f":
                return self.add(np.asarray(value, np.float64), name)
        return value


def _fill(slot: Any, tensors: Sequence[Tensor]) -> Any:
    if isinstance(slot, _Slot):
        return tensors[slot]
    if type(slot) in (list, tuple):
        return type(slot)(_fill(item, tensors) for item in slot)
    return slot


def _holds_arrays(value: Any) -> bool:
    if type(value) in (list, tuple):
        return any(_holds_arrays(item) for item in value)
    return isinstance(value, Tensor) or backend.is_array(value)


def _parameters(
    f: Callable, given: Any, evaluate: Callable, planter: _Planter
) -> list[tuple[str, Tensor]]:
    """(name, parameter) of all that are trained, of `given` or else of `f`. A layer is built first,
    by a call."""
    source: Any = f if given is None else given
    if callable(getattr(source, "named_parameters", None)):
        if source is f:
            with autodiff.replay(), autodiff.enable_grad():
                evaluate([_leaf(a, np.float32, planter.device, True) for a in planter.point])
        found = list(source.named_parameters())
    elif given is None:
        found = []
    else:
        found = [(getattr(p, "name", None) or f"parameters[{i}]", p) for i, p in enumerate(given)]
    return list({id(p): (name, p) for name, p in found if p.requires_grad}.values())


@contextmanager
def _planted(parameters: Iterable[Tensor], tensors: Iterable[Tensor]) -> Iterator[None]:
    """The parameters hold the tensors' data and places inside."""
    saved = [(p, p._data, p._node, p._version) for p in parameters]
    try:
        for (p, *_), x in zip(saved, tensors, strict=True):
            p._data, p._node, p._version = x._data, x._node, [0]
        yield
    finally:
        for p, data, node, version in saved:
            p._data, p._node, p._version = data, node, version


def _outputs(result: Any, name: str, bare: bool) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        yield from _outputs(list(result.values()), name, bare)
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from _outputs(item, name, bare)
    elif bare and backend.is_array(result):
        yield wrap(result, None, None)
    elif not bare and (backend.is_array(result) or isinstance(result, (float, np.generic))):
        raise TypeError(
            f"check_gradients: {name} returned {type(result).__name__}, expected a Tensor: what it "
            "computed was not recorded; use minidl's ops on the Tensors it gets"
        )


def same_layout(array: np.ndarray, dtype: Any) -> np.ndarray:
    """A copy in fresh memory and another dtype, at the same strides counted in elements."""
    dtype = np.dtype(dtype)
    steps = [stride // array.itemsize for stride in array.strides]
    if array.flags.c_contiguous or any(
        s * array.itemsize != b for s, b in zip(steps, array.strides, strict=True)
    ):
        return np.array(array, dtype, order="C")
    if 0 in steps:
        return np.array(array, dtype, order="C")
    reach = [s * (n - 1) for s, n in zip(steps, array.shape, strict=True)]
    memory = np.zeros(1 + sum(abs(r) for r in reach), dtype)
    copy = np.ndarray(
        array.shape, dtype, memory, -sum(min(r, 0) for r in reach) * dtype.itemsize,
        [s * dtype.itemsize for s in steps],
    )  # fmt: skip
    copy[...] = array
    return copy


def _leaf(array: np.ndarray, dtype: Any, device: str, record: bool) -> Tensor:
    """A Tensor around the array itself where dtype and device allow."""
    own = backend.to_device(array.astype(dtype, copy=False), device)
    return wrap(own, Leaf(own) if record else None, [0])


def _relief(x: Tensor) -> Tensor:
    return wrap(x._data, Leaf(x._data), [0])


def _zeros(x: Tensor) -> Tensor:
    return wrap(backend.namespace(x._data).zeros(x.shape, x.dtype), None, [0])


def _device_of(value: Any) -> str:
    """The device of the first array among the arguments."""
    if isinstance(value, Tensor) or backend.is_array(value):
        return value.device if isinstance(value, Tensor) else backend.device_of(value)
    if isinstance(value, dict):
        value = list(value.values())
    found = [_device_of(item) for item in value] if type(value) in (list, tuple) else []
    return next((device for device in found if device != "cpu"), "cpu")


def _name(f: Callable) -> str:
    name = getattr(f, "__name__", type(f).__name__)
    return "function" if name == "<lambda>" else name


def _argument_names(f: Callable, count: int) -> list[str]:
    try:
        kinds = inspect.signature(f).parameters.values()
    except (TypeError, ValueError):
        return [f"inputs[{i}]" for i in range(count)]
    names = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return (names + [f"inputs[{i}]" for i in range(len(names), count)])[:count]
