"""Layer: a callable with parameters, made of parameters and other layers."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minidl import autodiff, backend, constraints, initializers, regularizers
from minidl.errors import BuildError, SerializationError, ShapeError
from minidl.graph import Leaf, Parameter, Tensor

_pending: weakref.WeakSet[Layer] = weakref.WeakSet()  # layers whose added losses wait for losses()


class Layer:
    """Base of all layers and models.

    Attributes that are Parameters or Layers, or lists, tuples or dicts of them, belong to the
    layer, in the order of their first assignment (its own parameters before those of layers
    inside), and are named after them: `encoder.0.kernel`.

    Subclasses write `call(*inputs)`, and `build(input_shape)` where parameters depend on the
    input's shape. `build` runs at the first call, with the shape of the first argument (a tuple of
    shapes where that is a list or tuple), and makes parameters on that argument's device.
    """

    built = False
    training = True
    _trainable = True
    _buffers: tuple[str, ...] = ()
    _inline: tuple[str, ...] = ()  # attributes whose members are named without the attribute
    _output_shape: Any = None
    activity_regularizer: Callable[[Tensor], Tensor] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "build" in cls.__dict__:
            cls.build = _marking_built(cls.build)  # type: ignore[method-assign]

    def build(self, input_shape: Any) -> None:
        """Make the parameters that depend on the shape of the input."""
        self.built = True

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output."""
        raise NotImplementedError(f"{type(self).__name__} has no call(); write call(self, x)")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            if not self.built:
                self._build_for(args[0] if args else next(iter(kwargs.values()), None))
            output = self.call(*args, **kwargs)
        except Exception as error:
            _note_layer(error, self, args)
            raise
        if self._output_shape is None:
            self._output_shape = _shape(output)
        if self.activity_regularizer is not None:
            self.add_loss(regularizers.per_item(self.activity_regularizer, output))
        return output

    def _build_for(self, x: Any) -> None:
        for name in sorted(_METHODS & vars(self).keys()):
            if not inspect.isroutine(vars(self)[name]):
                raise TypeError(
                    f"{type(self).__name__}: attribute {name!r} hides the method {name}() that "
                    "every layer has; give it another name"
                )
        array = x
        while isinstance(array, (list, tuple)) and array:
            array = array[0]
        device = array.device if isinstance(array, Tensor) else backend.device_of(array)
        with backend.device(device):
            self.build(_shape(x))

    def __getstate__(self) -> dict[str, Any]:
        """What `copy.deepcopy` copies: losses that wait are in a graph, and belong to the call."""
        return {name: value for name, value in vars(self).items() if name != "_losses"}

    # Members

    def members(self) -> Iterator[tuple[str, Parameter | Layer]]:
        """The parameters and layers that are this layer's own, with their names here."""
        for name, value in vars(self).items():
            yield from _members("" if name in self._inline else name, value)

    def walk(self) -> Iterator[tuple[str, Layer]]:
        """This layer (named "") and all layers inside, each once, outer before inner."""
        seen: set[int] = set()
        stack: list[tuple[str, Layer]] = [("", self)]
        while stack:
            name, layer = stack.pop()
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            yield name, layer
            inner = [(_join(name, n), m) for n, m in layer.members() if isinstance(m, Layer)]
            stack.extend(reversed(inner))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their names; one that occurs twice (tied) is given once.

        Raises BuildError, naming the layers, while the sizes of some are unknown.
        """
        self._require_built("parameters")
        yield from self._made_parameters()

    def _made_parameters(self) -> Iterator[tuple[str, Parameter]]:
        seen: set[int] = set()
        for prefix, layer in self.walk():
            for name, member in layer.members():
                if isinstance(member, Parameter) and id(member) not in seen:
                    seen.add(id(member))
                    yield _join(prefix, name), member

    def parameters(self) -> list[Parameter]:
        """All parameters, in order, tied ones once. Raises BuildError before they are built."""
        return [parameter for _, parameter in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """All buffers (see `add_buffer`) with their names."""
        for prefix, layer in self.walk():
            for name in layer._buffers:
                yield _join(prefix, name), getattr(layer, name)

    def unbuilt(self) -> list[str]:
        """The names of the layers that have not been built yet."""
        return [name or type(layer).__name__ for name, layer in self.walk() if layer._waits()]

    def _waits(self) -> bool:
        return not self.built and type(self).build is not Layer.build

    def _require_built(self, what: str) -> None:
        if unbuilt := self.unbuilt():
            raise BuildError(
                f"{type(self).__name__}: {what}: not built yet: {', '.join(unbuilt)}; give their "
                "input sizes, or call the model once on a batch"
            )

    # What subclasses use

    def add_weight(
        self,
        shape: tuple[int, ...],
        initializer: Any = "glorot_uniform",
        name: str | None = None,
        dtype: Any = None,
        regularizer: Any = None,
        constraint: Any = None,
    ) -> Parameter:
        """A new Parameter on the current device: `self.kernel = self.add_weight((3, 4))`.

        regularizer: what `minidl.regularizers.get` takes; its penalty is one of `losses()`.
        constraint: what `minidl.constraints.get` takes; optimisers apply it after each step.
        """
        values = initializers.get(initializer)(tuple(shape), dtype or backend.current_dtype())
        parameter = Parameter(values, name=name, device=backend.current_device())
        parameter.requires_grad = self._trainable
        if regularizer is not None:
            parameter.regularizer = regularizers.get(regularizer)
        parameter.constraint = constraints.get(constraint)
        return parameter

    def add_buffer(self, name: str, value: Any) -> None:
        """Declare attribute `name` as state that is saved and moved but not trained.

        A buffer is a constant Tensor: update it by rebinding (`self.mean = new_mean`), never by
        writing into it, so that a graph recorded earlier keeps the values it saw.
        """
        # A copy: an optimiser writes into a parameter's memory.
        setattr(self, name, Tensor(value, device=backend.current_device()))
        if name not in self._buffers:
            self._buffers = (*self._buffers, name)

    def add_loss(self, value: Tensor) -> None:
        """Add a scalar to the loss of the model that this layer is in (see `losses`)."""
        if autodiff.replaying():
            return
        if np.ndim(value) != 0:
            raise ShapeError(
                f"add_loss: value: expected a scalar, got shape {np.shape(value)}; use md.mean"
            )
        if self not in _pending:
            self._losses: list[Tensor] = []
        self._losses.append(value)
        _pending.add(self)

    def losses(self) -> list[Tensor]:
        """What this layer and those inside added by `add_loss`, and the penalties of parameters.

        What was added is forgotten; that of several calls adds up until it is asked for, as `fit`
        does at every step. The penalty of a parameter with a regularizer (see `add_weight`) is
        there once, however often the parameter is used, and not while it is frozen.
        """
        found = self.forget_losses()
        if Parameter.regularized:
            for _, p in self._made_parameters():
                if p.regularizer is not None and p.requires_grad:
                    found.append(p.regularizer(p))
        return found

    def forget_losses(self) -> list[Tensor]:
        """Only what was added by `add_loss`, and forget it."""
        if not _pending:
            return []
        found = [layer for _, layer in self.walk() if layer in _pending]
        for layer in found:
            _pending.discard(layer)
        return [loss for layer in found for loss in vars(layer).pop("_losses")]

    # Modes

    def train(self, mode: bool = True) -> Layer:
        """Set training mode (dropout on) here and inside; returns self."""
        for _, layer in self.walk():
            layer.training = mode
        return self

    def eval(self) -> Layer:
        """Set evaluation mode (dropout off) here and inside; returns self."""
        return self.train(False)

    @property
    def trainable(self) -> bool:
        """Whether the parameters here and inside get gradients. Setting it drops old gradients.

        A parameter that another layer shares is frozen there too.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        for _, layer in self.walk():
            layer._trainable = bool(value)
            for _, member in layer.members():
                if isinstance(member, Parameter):
                    member.requires_grad = False  # a frozen parameter keeps no gradient
                    member.requires_grad = bool(value)

    # Moving

    def to(self, device: str) -> Layer:
        """Move parameters and buffers to `device` in place (gradients are dropped); returns self.

        Optimisers notice and move their state at the next step.
        """
        return self._replace(lambda array: backend.to_device(array, device))

    def astype(self, dtype: Any) -> Layer:
        """Cast floating parameters and buffers in place (gradients are dropped); returns self."""
        return self._replace(lambda a: a.astype(dtype) if a.dtype.kind == "f" else a)

    def _replace(self, change: Callable[[backend.Array], backend.Array]) -> Layer:
        for _, layer in self.walk():
            for _, member in layer.members():
                if isinstance(member, Parameter):
                    _set_data(member, change(member._data))
            for name in layer._buffers:
                setattr(layer, name, Tensor(change(getattr(layer, name)._data)))
        return self

    @property
    def device(self) -> str:
        """Where the parameters are (the current device where there are none)."""
        first = next(self._tensors(), None)
        return backend.current_device() if first is None else first.device

    @property
    def dtype(self) -> np.dtype:
        """The dtype of the first floating parameter (the default dtype where there are none)."""
        kinds = (t.dtype for t in self._tensors() if t.dtype.kind == "f")
        return next(kinds, backend.current_dtype())

    def _tensors(self) -> Iterator[Tensor]:
        for _, layer in self.walk():
            yield from (m for _, m in layer.members() if isinstance(m, Parameter))
        yield from (buffer for _, buffer in self.named_buffers())

    # State

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all parameters and buffers on the host, by name.

        Raises BuildError, naming the layers, while the sizes of some are unknown.
        """
        self._require_built("state_dict")
        named = [*self.named_parameters(), *self.named_buffers()]
        state = {name: np.array(tensor.numpy()) for name, tensor in named}
        if len(state) < len(named):
            names = [name for name, _ in named]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise SerializationError(
                f"state_dict: {type(self).__name__}: several parameters are named "
                f"{', '.join(twice)}; rename an attribute or a key"
            )
        return state

    def load_state_dict(
        self, state: dict[str, Any], strict: bool = True
    ) -> tuple[list[str], list[str]]:
        """Write the values of `state` into parameters and buffers of the same names.

        Returns the names missing from `state` and those it has too many. Raises SerializationError
        for these if `strict`, and for other shapes in any case; nothing is then changed.
        """
        self._require_built("load_state_dict")
        own: dict[str, Tensor] = dict([*self.named_parameters(), *self.named_buffers()])
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        shapes = [
            f"{name}: expected {tensor.shape}, got {np.shape(state[name])}"
            for name, tensor in own.items()
            if name in state and np.shape(state[name]) != tensor.shape
        ]
        listed = {"shapes differ": shapes}
        if strict:
            listed |= {"missing": missing, "unexpected": unexpected}
        problems = [f"{what}: {', '.join(names)}" for what, names in listed.items() if names]
        if problems:
            raise SerializationError(
                f"load_state_dict: {type(self).__name__}: {'; '.join(problems)}. Build the model "
                "as it was when saved, or pass strict=False to load what has the same name"
            )
        for name, parameter in self.named_parameters():
            if name in state:
                parameter.assign_(state[name])
        for prefix, layer in self.walk():
            for name in layer._buffers:
                if (path := _join(prefix, name)) in state:
                    old = own[path]
                    setattr(layer, name, Tensor(state[path], dtype=old.dtype, device=old.device))
        return missing, unexpected

    # Looking

    def summary(self) -> str:
        """A table of the layers, their output shapes at the first call, and parameter counts."""
        rows = [("layer", "output shape", "parameters")]
        seen: set[int] = set()
        for name, layer in self.walk():
            own = [m for _, m in layer.members() if isinstance(m, Parameter)]
            new = [p for p in own if id(p) not in seen]
            seen.update(map(id, new))
            count = "?" if layer._waits() else f"{sum(p.size for p in new):,}"
            indent = "  " * (name.count(".") + 1) if name else ""
            label = f"{indent}{name} ({type(layer).__name__})" if name else type(layer).__name__
            rows.append((label, _batched(layer._output_shape), count))
        return _table(rows) + "\n" + self._totals()

    def _totals(self) -> str:
        parameters = [p for _, p in self._made_parameters()]
        total = sum(p.size for p in parameters)
        trainable = sum(p.size for p in parameters if p.requires_grad)
        text = f"{total:,} parameters, {trainable:,} of them trainable"
        unbuilt = self.unbuilt()
        return text + (f"; not built yet: {', '.join(unbuilt)}" if unbuilt else "")

    def __repr__(self) -> str:
        inner = [(name, m) for name, m in self.members() if isinstance(m, Layer)]
        parts = [f"({name}): " + repr(m).replace("\n", "\n  ") for name, m in inner]
        if parts:
            return f"{type(self).__name__}(\n  " + "\n  ".join(parts) + "\n)"
        return f"{type(self).__name__}({', '.join(_options(self))})"


# --- Helpers --------------------------------------------------------------------------------------

_METHODS = {name for name, v in vars(Layer).items() if callable(v) and not name.startswith("_")}


def _marking_built(build: Callable) -> Callable:
    """`build` that sets `built`, also when a user calls it."""

    @functools.wraps(build)
    def wrapped(self: Layer, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.built = True
        if not self._trainable:  # frozen before the layers inside were made
            self.trainable = False

    return wrapped


def _note_layer(error: Exception, layer: Layer, args: tuple) -> None:
    """Note on `error` the innermost layer that it left, named as `layer`, which it leaves, does."""
    inner, given = vars(error).setdefault("_left", (layer, [s for a in args if (s := _shape(a))]))
    name = next((name for name, found in layer.walk() if found is inner), None)
    if name is None:  # called by other means than as a member
        return
    kind = type(inner).__name__
    place = f"{name} ({kind}) of {type(layer).__name__}" if name else kind
    shapes = f", given {', '.join(map(str, given))}" if given else ""
    notes = [n for n in getattr(error, "__notes__", ()) if not n.startswith("in layer ")]
    error.__notes__ = [*notes, f"in layer {place}{shapes}"]  # type: ignore[attr-defined]


def _members(name: str, value: Any) -> Iterator[tuple[str, Parameter | Layer]]:
    if isinstance(value, (Parameter, Layer)):
        yield name, value
    elif isinstance(value, Tensor) and isinstance(value._node, Leaf):
        raise TypeError(
            f"{name}: a layer trains Parameters, got a Tensor that requires a gradient; make it "
            "with self.add_weight(shape) or md.Parameter(array)"
        )
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from _members(_join(name, str(i)), item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _members(_join(name, str(key)), item)


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _shape(value: Any) -> Any:
    """The shape of an array; a tuple of shapes for a list or tuple; None for the rest."""
    if isinstance(value, (list, tuple)):
        return tuple(_shape(item) for item in value)
    return getattr(value, "shape", None)


def _set_data(parameter: Parameter, array: backend.Array) -> None:
    """Give a parameter other memory (dtype, device); its gradient goes with the old one."""
    if array is parameter._data:
        return
    parameter._data = array
    parameter._node = None if parameter._node is None else Leaf(array)
    parameter._touch()


def _options(layer: Layer) -> Iterator[str]:
    """`name=value` for the constructor's arguments that are kept and not defaults."""
    for name, p in inspect.signature(type(layer).__init__).parameters.items():
        value = getattr(layer, name, p.default)
        several = p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if name == "self" or several or value is None or isinstance(value, Tensor):
            continue
        value = getattr(value, "__name__", value)
        if value != p.default:
            yield f"{name}={value!r}"


def _batched(shape: Any) -> str:
    if isinstance(shape, tuple) and any(isinstance(side, tuple) for side in shape):
        return ", ".join(_batched(side) for side in shape)
    if not isinstance(shape, tuple):
        return "?"
    return f"({', '.join(['batch', *map(str, shape[1:])])})" if shape else "()"


def _table(rows: list[tuple[str, str, str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
