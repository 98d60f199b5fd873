"""Tensor and its place in the graph: data, and where it came from. No mathematics here.

A Tensor is an array and a place. The place is None for a constant, a `Leaf` for a tensor that the
user made with `requires_grad=True`, a `Node` for the recorded result of an op. Places point to
earlier places only, never to Tensors' places that come later: no reference cycles, so a graph is
freed as soon as its last Tensor is dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from minidl import backend
from minidl.errors import DeviceError, DtypeError, GradientError, ShapeError

_creation = itertools.count()


class Leaf:
    """The place of a tensor whose gradient is accumulated: the graph's end."""

    __slots__ = ("shape", "dtype", "grad", "buffer", "hooks", "version", "written", "__weakref__")
    parents = ()

    def __init__(self, array: backend.Array, version: list[int] | None = None) -> None:
        self.version = version  # its tensor's
        self.shape = array.shape
        self.dtype = array.dtype
        self.grad: Tensor | None = None
        self.buffer: backend.Array | None = None  # an optimiser's: gradients are written into it
        self.written = [0]  # the version of what has been in it, shared by all those tensors
        self.hooks: list | None = None


class Node:
    """One recorded op: who made it, from which places, and what its derivative needs.

    `parents` holds a place or None for each differentiable argument; `saved` the values that the
    rules name (None once freed). A node without an op is one output of several: `plan` is then its
    number, and its parent the op's node.
    """

    __slots__ = (
        "op", "plan", "parents", "saved", "order", "shape", "dtype", "hooks", "trace",
        "__weakref__",
    )  # fmt: skip

    def __init__(self, op, plan, parents, saved, shape, dtype, trace=None) -> None:
        self.op = op
        self.plan = plan
        self.parents = parents
        self.saved = saved
        self.order = next(_creation)
        self.shape = shape
        self.dtype = dtype
        self.hooks = None
        self.trace = trace


class Tensor:
    """An array that remembers how it was computed. Immutable to users: see `assign_`.

    `md.tensor` makes one by copying `data`: an array keeps its dtype, Python floats take the
    default dtype. Raises DtypeError for complex and non-numeric data, and for
    `requires_grad=True` on integers.
    """

    __slots__ = ("_data", "_node", "_version", "__weakref__")
    __array_ufunc__ = None  # array + tensor is ours to answer, on NumPy and on CuPy

    def __init__(
        self,
        data: Any,
        requires_grad: bool = False,
        dtype: Any = None,
        device: str | None = None,
    ) -> None:
        self._data = _own(data, dtype, device)
        # When this memory was last written, on the clock that orders nodes; shared by views.
        self._version: list[int] | None = [0]
        self._node: Node | Leaf | None = None
        self.requires_grad = requires_grad

    # Data

    @property
    def data(self) -> backend.Array:
        """The bare array: a read-only view on the CPU (CuPy and the stand-in have no such flag)."""
        if type(self._data) is not np.ndarray:
            return self._data
        view = self._data.view()
        view.flags.writeable = False
        return view

    @property
    def shape(self) -> tuple[int, ...]:
        return self._data.shape

    @property
    def ndim(self) -> int:
        return self._data.ndim

    @property
    def size(self) -> int:
        return self._data.size

    @property
    def dtype(self) -> np.dtype:
        return self._data.dtype

    @property
    def device(self) -> str:
        return backend.device_of(self._data)

    def numpy(self) -> np.ndarray:
        """The values on the host: a read-only view on the CPU, a copy from elsewhere."""
        return backend.to_host(self.data)

    def item(self) -> Any:
        """The only element, as a Python number."""
        if self.size != 1:
            raise ShapeError(f"item: expected one element, got shape {self.shape}; index it first")
        return self._data.item()

    def tolist(self) -> Any:
        """The values as nested lists."""
        return self.numpy().tolist()

    # Place in the graph

    @property
    def requires_grad(self) -> bool:
        """True when a gradient reaches this tensor. May be set on tensors that no op made."""
        return self._node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if isinstance(self._node, Node):
            raise GradientError(
                "requires_grad: expected a tensor that no op made, got the result of "
                f"{_name(self)}; use x.detach() for one outside the graph"
            )
        if not value:
            self._node = None
        elif self._data.dtype.kind != "f":
            raise DtypeError(
                f"requires_grad: expected a float tensor, got dtype {self.dtype}; use "
                "x.astype('float32')"
            )
        elif self._node is None:
            self._node = Leaf(self._data, self._version)

    @property
    def grad(self) -> Tensor | None:
        """The gradient that `backward` accumulated, for tensors made with requires_grad=True."""
        return self._node.grad if isinstance(self._node, Leaf) else None

    @grad.setter
    def grad(self, value: Any) -> None:
        if self._node.__class__ is not Leaf:
            raise GradientError("grad: only a tensor made with requires_grad=True holds one")
        if value is not None:
            if not isinstance(value, Tensor):
                value = Tensor(value, dtype=self.dtype, device=self.device)
            if value.shape != self.shape:
                raise ShapeError(f"grad: expected shape {self.shape}, got {value.shape}")
        self._node.grad = value

    def detach(self) -> Tensor:
        """The same data outside the graph. Memory and version are shared."""
        return wrap(self._data, None, self._version)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
        """Call `hook(gradient)` once a backward pass, with this tensor's full gradient.

        What it returns, if not None, replaces the gradient. Returns a function that removes it.
        """
        if self._node is None:
            raise GradientError("register_hook: the tensor does not require a gradient")
        hooks = self._node.hooks = self._node.hooks or []
        hooks.append(hook)
        return lambda: hooks.remove(hook) if hook in hooks else None

    def assign_(self, array: Any) -> Tensor:
        """Write `array` (of this shape) into this tensor's memory; backward through an earlier use
        of the old values raises from then on. For tensors that no op made."""
        if self._version is None or self._node.__class__ is Node:
            raise GradientError(
                f"assign_: expected a tensor that no op made, got the result of {_name(self)}; "
                "make one with md.tensor(x)"
            )
        value = array._data if isinstance(array, Tensor) else _own(array, self.dtype, self.device)
        if not np.can_cast(value.dtype, self.dtype, "same_kind"):
            raise DtypeError(
                f"assign_: array: expected {self.dtype} or what casts to it, got {value.dtype}; "
                f"use array.astype({str(self.dtype)!r})"
            )
        if value.shape != self.shape:
            raise ShapeError(f"assign_: array: expected shape {self.shape}, got {value.shape}")
        if type(value) is not type(self._data):
            value = backend.to_device(value, self.device)
        self._data[...] = value
        self._touch()
        return self

    def _touch(self) -> None:
        """Note a write into this tensor's memory: nodes older than it must not use it any more."""
        if self._version is not None:
            self._version[0] = next(_creation)

    # Python's protocols

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("iteration over a 0-d tensor")
        return (self[i] for i in range(self.shape[0]))  # type: ignore[index]

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"bool: a tensor of shape {self.shape} is neither true nor false; use md.any(x) "
                "or md.all(x)"
            )
        return bool(self._data)

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __index__(self) -> int:
        if self._data.dtype.kind not in "iu" or self.shape:
            raise TypeError("only a 0-d integer tensor can be an index")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __pos__(self) -> Tensor:
        return self

    def __round__(self, decimals: int = 0) -> Tensor:
        return self.round(decimals)

    def __getattr__(self, name: str) -> Any:
        mend = HABITS.get(name)
        raise AttributeError(
            f"a tensor has no attribute {name!r}" + (f"; use {mend}" if mend else "")
        )

    __hash__ = object.__hash__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if type(self._data) is not np.ndarray:
            raise DeviceError(f"np.asarray: the tensor is on {self.device}; use x.numpy()")
        if copy is False:
            raise ValueError("np.asarray(tensor, copy=False): a tensor gives copies; use x.data")
        return np.array(self._data, dtype=dtype)

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "tensors are immutable: x[i] = v cannot be differentiated; use "
            "x = md.index_put(x, i, v) or md.scatter_add(x, i, v)"
        )

    def __deepcopy__(self, memo: dict) -> Tensor:
        if isinstance(self._node, Node):
            raise GradientError("deepcopy: copy x.detach(): the result of an op is in a graph")
        new = object.__new__(type(self))
        memo[id(self)] = new
        for slot in _slots(type(self)):
            setattr(new, slot, getattr(self, slot))
        new._data, new._version, new._node = self._data.copy(), [0], None
        new.requires_grad = self.requires_grad
        return new

    def __repr__(self) -> str:
        values = np.array2string(self.numpy(), separator=", ", prefix="tensor(", threshold=100)
        parts = [values, f"shape={self.shape}", f"dtype={self.dtype}", f"device={self.device!r}"]
        if isinstance(self._node, Node):
            parts.append(f"op={_name(self)}")
        elif self._node is not None:
            parts.append("requires_grad=True")
        return f"{type(self).__name__.lower()}({', '.join(parts)})"

    if TYPE_CHECKING:  # the methods and operators that `bind` adds

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...


class Parameter(Tensor):
    """A tensor that is trained: a leaf with a name, and from its layer perhaps a regularizer, and a
    constraint, what it must be after each step (see `minidl.constraints`)."""

    __slots__ = ("_regularizer", "constraint", "name")

    regularized = False  # whether any parameter ever got a regularizer: else nobody has to look

    def __init__(
        self, data: Any, name: str | None = None, dtype: Any = None, device: str | None = None
    ) -> None:
        super().__init__(data, requires_grad=True, dtype=dtype, device=device)
        self.name = name
        self._regularizer: Callable[[Tensor], Tensor] | None = None
        self.constraint: Callable[[Tensor], Tensor] | None = None

    @property
    def regularizer(self) -> Callable[[Tensor], Tensor] | None:
        """A function to a scalar, which `losses()` of the layers around adds to a model's loss."""
        return self._regularizer

    @regularizer.setter
    def regularizer(self, function: Callable[[Tensor], Tensor] | None) -> None:
        self._regularizer = function
        Parameter.regularized = True

    def __repr__(self) -> str:
        named = "" if self.name is None else f"name={self.name!r}, "
        return super().__repr__().replace("(", "(" + named, 1)


def tensor(
    data: Any, requires_grad: bool = False, dtype: Any = None, device: str | None = None
) -> Tensor:
    """A Tensor holding a copy of `data`; see Tensor."""
    return Tensor(data, requires_grad, dtype, device)


def wrap(array: backend.Array, node: Node | Leaf | None, version: list[int] | None) -> Tensor:
    """A Tensor around an array of the engine's own, uncopied."""
    new = object.__new__(Tensor)
    new._data = array
    new._node = node
    new._version = version
    return new


def unwrap(value: Any) -> Any:
    """The bare array of a Tensor; anything else as it is."""
    return value._data if isinstance(value, Tensor) else value


def _own(data: Any, dtype: Any, device: str | None) -> backend.Array:
    """A fresh array of a dtype that tensors take."""
    if isinstance(data, Tensor):
        data = data._data
    if backend.is_array(data):
        owner = backend.device_of(data)
        target = device or (None if owner == "cpu" else owner)  # host arrays follow md.device
        array = data.astype(dtype or data.dtype)  # a copy
    else:
        target = device
        if isinstance(data, (list, tuple)) and any(isinstance(item, Tensor) for item in data):
            raise TypeError("tensor: data: got a list of Tensors; join them with md.stack")
        try:
            array = np.array(data, dtype=dtype)
        except ValueError as error:
            raise ShapeError(f"tensor: data: {error}; stack tensors with md.stack") from error
        if dtype is None and array.dtype == np.float64 and not isinstance(data, np.generic):
            array = array.astype(backend.current_dtype())
    if array.dtype.kind not in "fiub":
        raise DtypeError(f"tensor: data: expected real numbers or booleans, got {array.dtype}")
    return backend.to_device(array, target)


def _name(x: Tensor) -> str:
    node = x._node
    if isinstance(node, Node) and node.op is None:
        node = node.parents[0]  # one output of several
    return node.op.__name__ if isinstance(node, Node) else "an op"


def _slots(kind: type) -> list[str]:
    names = (name for base in kind.__mro__ for name in getattr(base, "__slots__", ()))
    return [name for name in names if name != "__weakref__"]


# --- Operators and methods ------------------------------------------------------------------------

OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "divide", "pow": "power",
    "matmul": "matmul", "mod": "mod", "floordiv": "floor_divide",
}  # fmt: skip
HABITS = {  # what users of PyTorch and NumPy look for, and what stands for it here
    "clone": "x itself (tensors are immutable), or md.tensor(x)",
    "copy": "x itself (tensors are immutable), x.numpy().copy() or md.tensor(x)",
    "contiguous": "x itself",
    "view": "x.reshape(shape)",
    "permute": "x.transpose(axes)",
    "t": "x.T",
    "unsqueeze": "x.expand_dims(axis)",
    "cpu": "x.to('cpu')",
    "cuda": "x.to('gpu')",
    "pow": "x ** y",
    "add_": "x = x + y",
    "zero_": "x.grad = None for gradients, x.assign_(array) for data",
    "requires_grad_": "x.requires_grad = True",
    "retain_grad": "md.grad(y, [x]) or x.register_hook",
    "dim": "x.ndim",
    "float": "x.astype('float32')",
    "double": "x.astype('float64')",
    "masked_fill": "md.where(mask, value, x)",
}
BOOLEAN = {"and": "logical_and", "or": "logical_or", "xor": "not_equal", "invert": "logical_not"}
COMPARISONS = {
    "eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater",
    "ge": "greater_equal",
}  # fmt: skip
UNARY = {"neg": "negative", "abs": "abs"}
METHODS = (
    "abs all any argmax argmin argsort astype broadcast_to clip cos cumsum diagonal dot exp "
    "expand_dims expm1 flatten flip log log1p logsumexp log_softmax max maximum mean min minimum "
    "moveaxis norm prod ravel relu repeat reshape roll round sigmoid sign sin softmax sort split "
    "sqrt square squeeze std sum swapaxes take tanh tile topk trace transpose tril triu var"
).split()


def bind(ops: Any) -> None:
    """Give Tensor its operators and methods, once the ops are defined."""

    def forward(op: Callable) -> Callable:
        if hasattr(op, "apply"):  # a primitive, without the search for a Tensor among arguments
            return lambda self, other: op.apply((self, other), {})
        return lambda self, other: op(self, other)

    def reflected(op: Callable) -> Callable:
        if hasattr(op, "apply"):
            return lambda self, other: op.apply((other, self), {})
        return lambda self, other: op(other, self)

    for name, op in OPERATORS.items():
        setattr(Tensor, f"__{name}__", forward(getattr(ops, op)))
        setattr(Tensor, f"__r{name}__", reflected(getattr(ops, op)))
    for name, op in BOOLEAN.items():
        setattr(Tensor, f"__{name}__", _of_truths(getattr(ops, op)))
        if name != "invert":
            setattr(Tensor, f"__r{name}__", _of_truths(getattr(ops, op)))  # they are symmetric
    for name, op in COMPARISONS.items():
        setattr(Tensor, f"__{name}__", forward(getattr(ops, op)))
    for name, op in UNARY.items():
        setattr(Tensor, f"__{name}__", _method(getattr(ops, op), name))
    Tensor.__getitem__ = forward(ops.getitem)  # type: ignore[method-assign]
    for name in METHODS:
        setattr(Tensor, name, _method(getattr(ops, name), name))
    Tensor.T = property(lambda self: ops.transpose(self))  # type: ignore[attr-defined]
    Tensor.mT = property(lambda self: ops.swapaxes(self, -1, -2))  # type: ignore[attr-defined]


def _of_truths(op: Callable) -> Callable:
    """`op` for booleans only: on integers NumPy's &, |, ^ and ~ mean bits, and a mask inverted by
    ~ while it is of integers is a mask of -1 and -2."""

    def operator(self: Tensor, *others: Any) -> Any:
        for x in (self, *others):
            dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
            if dtype != np.bool_:
                raise DtypeError(
                    f"{op.__name__}: &, |, ^ and ~ take booleans, got {dtype}; compare first, as "
                    "in x != 0"
                )
        return op(self, *others)

    return operator


def _method(op: Callable, name: str) -> Callable:
    apply = getattr(op, "apply", None)

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return apply((self, *args), kwargs) if apply else op(self, *args, **kwargs)

    method.__name__, method.__doc__ = name, op.__doc__
    return method
