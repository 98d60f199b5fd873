"""The array of the strict stand-in: CuPy's interface, and none of the bridges to NumPy.

It holds a NumPy array in private. Not a subclass of np.ndarray: NumPy's C code would read a
subclass's buffer without asking. Methods are attached by `minidl.testing.strict` from the snapshot
of CuPy's interface; operators, indexing and what has a behaviour of its own are here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minidl.testing.strict_counts import synchronise, upload, watching

SCALARS = frozenset({bool, int, float, complex}) | {
    np.dtype(code).type for code in "?bhilqBHILQefdFD"
}
_INTEGERS = {kind for kind in SCALARS if issubclass(kind, np.integer)}
_BASIC = frozenset({int, slice, type(None), type(Ellipsis)} | _INTEGERS)
# These look at shapes, dtypes and addresses only, and give host values; NumPy's own do as well.
METADATA = frozenset(
    "broadcast_shapes can_cast common_type iscomplexobj isdtype isfortran isrealobj isscalar "
    "issubdtype iterable may_share_memory min_scalar_type mintypecode ndim promote_types "
    "result_type shape shares_memory size typename".split()
)
_asarray = np.asarray
quiet = np.errstate(all="ignore")  # decorates functions: CuPy never warns of what floats do


class StrictArray:
    """An array that behaves as CuPy's do, in host memory. Made by `xp.asarray` and functions of xp.

    `x.get()` copies it to NumPy (a synchronisation).
    """

    __slots__ = ("_array", "__weakref__")
    __hash__ = None  # type: ignore[assignment]
    __array_priority__ = 100

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    # --- What is known without the device

    shape = property(lambda self: self._array.shape)
    dtype = property(lambda self: self._array.dtype)
    ndim = property(lambda self: self._array.ndim)
    size = property(lambda self: self._array.size)
    nbytes = property(lambda self: self._array.nbytes)
    itemsize = property(lambda self: self._array.itemsize)
    strides = property(lambda self: self._array.strides)
    device = property(lambda self: "strict")
    T = property(lambda self: StrictArray(self._array.T))
    mT = property(lambda self: StrictArray(self._array.mT))
    real = property(lambda self: StrictArray(self._array.real))
    imag = property(lambda self: StrictArray(self._array.imag))
    flags = property(lambda self: Flags(self._array.flags))

    @property
    def base(self) -> StrictArray | None:
        """The array whose memory this view shares, newly wrapped; None where it owns its own."""
        return None if self._array.base is None else StrictArray(_asarray(self._array.base))

    def __len__(self) -> int:
        return len(self._array)

    def __iter__(self) -> Iterator[StrictArray]:
        return (self[i] for i in range(len(self._array)))

    # --- To the host: each of these waits for the device

    def __bool__(self) -> bool:
        synchronise("bool()")
        return bool(self._array)

    def __int__(self) -> int:
        synchronise("int()")
        return int(self._array)

    def __float__(self) -> float:
        synchronise("float()")
        return float(self._array)

    def __complex__(self) -> complex:
        synchronise("complex()")
        return complex(self._array)

    def __repr__(self) -> str:
        synchronise("repr()")
        return f"strict {self._array!r}"

    def __str__(self) -> str:
        synchronise("str()")
        return str(self._array)

    def __format__(self, specification: str) -> str:
        synchronise("format()")
        return format(self._array, specification)

    def get(
        self, stream: Any = None, order: Any = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray:
        """A NumPy copy."""
        synchronise("get()")
        if out is None:
            return np.array(self._array, order=order)
        out[...] = self._array
        return out

    def item(self) -> Any:
        """The only element, as a Python scalar."""
        synchronise("item()")
        return self._array.item()

    def tolist(self) -> Any:
        """The elements as nested lists."""
        synchronise("tolist()")
        return self._array.tolist()

    def tobytes(self, order: Any = "C") -> bytes:
        """The elements' bytes."""
        synchronise("tobytes()")
        return self._array.tobytes(order)

    # --- What CuPy refuses

    def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        raise TypeError(
            "implicit conversion of a device array to NumPy is refused, as by CuPy; "
            "use minidl.backend.to_host(x), or xp functions in place of NumPy's"
        )

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **keywords: Any) -> Any:
        if (method, len(inputs), keywords) == ("__call__", 2, {}):
            first, second = inputs
            if isinstance(first, np.generic):  # `np.float32(2) * x`, which CuPy computes too
                _count_call()
                return wrap(ufunc(first, second._array))
        if any(type(x) is np.ndarray for x in (*inputs, *keywords.get("out", ()))):
            raise TypeError(_MIXED.format(ufunc.__name__))
        raise TypeError(
            f"np.{ufunc.__name__} was given a device array; CuPy computes it by dispatch, which "
            "hides where the work runs: take xp = namespace(x) and call the function of xp"
        )

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function.__name__ in METADATA:
            return on_host(function)(*args, **kwargs)
        raise TypeError(
            f"np.{function.__name__} was given a device array; CuPy computes it by dispatch, which "
            "hides where the work runs: take xp = namespace(x) and call the function of xp"
        )

    def __contains__(self, value: Any) -> bool:
        raise TypeError(
            "`in`: CuPy arrays have no __contains__, so that Python compares and waits for each "
            "element; use (x == value).any()"
        )

    def __imatmul__(self, other: Any) -> Any:
        raise TypeError("`@=`: CuPy arrays have none, and `x @ y` is bound anew; write x = x @ y")

    def __delitem__(self, index: Any) -> None:
        raise ValueError("cannot delete array elements; use xp.delete or slices")

    # --- Copies and writing

    def __copy__(self) -> StrictArray:
        return StrictArray(self._array.copy())

    def __deepcopy__(self, memo: Any) -> StrictArray:
        return StrictArray(self._array.copy())

    def fill(self, value: Any) -> None:
        """Write one value into all elements: a scalar or a 0-d array of the device."""
        _count_call()
        host = unwrap_operand(value, "fill")
        if isinstance(host, np.ndarray) and host.shape != ():
            raise ValueError("fill: expected a scalar or a 0-d device array; use x[...] = value")
        self._array.fill(host)

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Upload a NumPy array of the same shape and dtype into this one's memory."""
        upload("set()")
        if type(arr) is not np.ndarray or (arr.shape, arr.dtype) != (self.shape, self.dtype):
            raise ValueError("set: expected a NumPy array of the same shape and dtype")
        self._array[...] = arr

    # --- Indexing

    def __getitem__(self, index: Any) -> StrictArray:
        _count_call()
        array, kind = self._array, type(index)
        if kind is tuple:
            if not _BASIC.issuperset(map(type, index)):
                return _gather(array, index)
        elif kind not in _BASIC:
            return _gather(array, (index,))
        result = array[index]
        if type(result) is not np.ndarray:  # a scalar; CuPy gives a 0-d view
            result = array[(*index, ...) if kind is tuple else (index, ...)]
        return StrictArray(result)

    def __setitem__(self, index: Any, value: Any) -> None:
        _count_call()
        array = self._array
        host = unwrap_operand(value, "x[index] = value")
        parts = index if type(index) is tuple else (index,)
        if _BASIC.issuperset(map(type, parts)):
            if type(value) is StrictArray:
                _refuse_overlap(array, parts, host)
            array[index] = host
            return
        parts = host_index(parts)
        if type(value) is StrictArray and host.size > 1:
            refuse_duplicates(array.shape, lambda positions: positions[parts], "x[index] = value")
        with _CuPyWraps():
            array[parts] = host


class Flags:
    """As on CuPy: no `writeable`, every array can be written."""

    __slots__ = ("c_contiguous", "f_contiguous", "owndata")

    def __init__(self, flags: Any) -> None:
        self.c_contiguous = flags.c_contiguous
        self.f_contiguous = flags.f_contiguous
        self.owndata = flags.owndata

    fnc = property(lambda self: self.f_contiguous and not self.c_contiguous)
    forc = property(lambda self: self.f_contiguous or self.c_contiguous)

    def __getitem__(self, name: str) -> bool:
        return {
            "C_CONTIGUOUS": self.c_contiguous,
            "F_CONTIGUOUS": self.f_contiguous,
            "OWNDATA": self.owndata,
        }[name]


_MIXED = (
    "{}: a device array meets a NumPy array; CuPy refuses to mix them in either order: "
    "move one with minidl.backend.to_device or to_host first"
)


def _count_call() -> None:
    watch = watching.get()
    if watch is not None:
        watch.call()


def wrap(result: Any) -> Any:
    """Device arrays for NumPy's; NumPy scalars become 0-d arrays; named tuples, plain ones."""
    if type(result) is np.ndarray:
        return StrictArray(result)
    if isinstance(result, np.generic):
        return StrictArray(_asarray(result))
    if isinstance(result, tuple):
        return tuple(map(wrap, result))
    return list(map(wrap, result)) if type(result) is list else result


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """One of METADATA's functions, for device arrays."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*(a._array if type(a) is StrictArray else a for a in args), **kwargs)

    return call


def unwrap_operand(value: Any, name: str) -> Any:
    """The NumPy array of a device array, or the scalar; all else is refused."""
    kind = type(value)
    if kind is StrictArray:
        return value._array
    return value if kind in SCALARS else refuse_operand(value, name)


def refuse_operand(value: Any, name: str) -> Any:
    """Raise the TypeError that says why `value` is no operand."""
    if isinstance(value, np.ndarray):
        raise TypeError(_MIXED.format(name))
    raise TypeError(
        f"{name}: expected a device array or a number, got {type(value).__name__}, which CuPy "
        "refuses; make an array of it with xp.asarray, once, outside the loop"
    )


# --- Operators ------------------------------------------------------------------------------------


def _other(value: Any, name: str) -> Any:
    """NotImplemented for a class that brings its own operators (Tensor), else TypeError."""
    if getattr(value, "__array_ufunc__", 0) is None:
        return NotImplemented
    return refuse_operand(value, name)


def _binary(function: Callable[..., Any]) -> tuple[Callable, Callable, Callable]:
    """The operator, its reflection and its in-place form."""
    name = function.__name__
    function = quiet(function)

    def forward(self: StrictArray, other: Any) -> Any:
        watch = watching.get()
        if watch is not None:
            watch.call()
        kind = type(other)
        if kind is StrictArray:
            result = function(self._array, other._array)
        elif kind in SCALARS:
            result = function(self._array, other)
        else:
            return _other(other, name)
        return StrictArray(result) if type(result) is np.ndarray else wrap(result)

    def reflected(self: StrictArray, other: Any) -> Any:
        _count_call()
        if type(other) not in SCALARS:
            return _other(other, name)
        return wrap(function(other, self._array))

    def in_place(self: StrictArray, other: Any) -> Any:
        _count_call()
        host = other._array if type(other) is StrictArray else other
        if host is other and type(other) not in SCALARS:
            return _other(other, name)
        function(self._array, host, out=self._array)
        return self

    return forward, reflected, in_place


def _unary(function: Callable[..., Any]) -> Callable:
    function = quiet(function)

    def operate(self: StrictArray) -> Any:
        _count_call()
        return wrap(function(self._array))

    return operate


def _attach_operators() -> None:
    arithmetic: dict[str, Callable[..., Any]] = {
        "add": np.add,
        "sub": np.subtract,
        "mul": np.multiply,
        "truediv": np.true_divide,
        "floordiv": np.floor_divide,
        "mod": np.remainder,
        "pow": np.power,
        "lshift": np.left_shift,
        "rshift": np.right_shift,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
    }
    for name, function in arithmetic.items():
        forward, reflected, in_place = _binary(function)
        setattr(StrictArray, f"__{name}__", forward)
        setattr(StrictArray, f"__r{name}__", reflected)
        setattr(StrictArray, f"__i{name}__", in_place)
    # NumPy's own operator knows the cheap powers, as CuPy's does.
    setattr(StrictArray, "__pow__", _binary(operator.pow)[0])  # noqa: B010
    products: dict[str, Callable[..., Any]] = {"matmul": np.matmul, "divmod": np.divmod}
    for name, function in products.items():
        forward, reflected, _ = _binary(function)
        setattr(StrictArray, f"__{name}__", forward)
        setattr(StrictArray, f"__r{name}__", reflected)
    comparisons: dict[str, Callable[..., Any]] = {
        "lt": np.less,
        "le": np.less_equal,
        "gt": np.greater,
        "ge": np.greater_equal,
        "eq": np.equal,
        "ne": np.not_equal,
    }
    for name, function in comparisons.items():
        setattr(StrictArray, f"__{name}__", _binary(function)[0])
    unary: dict[str, Callable[..., Any]] = {
        "neg": np.negative,
        "pos": np.positive,
        "abs": np.absolute,
        "invert": np.invert,
    }
    for name, function in unary.items():
        setattr(StrictArray, f"__{name}__", _unary(function))
    StrictArray.__hash__ = None  # type: ignore[assignment]


_attach_operators()


# --- Indexing by arrays ---------------------------------------------------------------------------


def host_index(parts: tuple) -> tuple:
    """The NumPy index for CuPy's, counting uploads and synchronisations; at most lists are new."""
    return tuple(part if type(part) in _BASIC else _host_part(part) for part in parts)


def _host_part(part: Any) -> np.ndarray:
    if type(part) is StrictArray:
        array = part._array
    elif isinstance(part, (list, tuple, np.ndarray, bool, np.bool_)):
        upload("an index of host memory")
        array = _asarray(part)
        if array.size == 0 and not isinstance(part, np.ndarray):
            array = array.astype(np.int64)
    else:
        raise IndexError(
            f"index: expected integers, slices, None, ... or arrays, got {type(part).__name__}"
        )
    if array.dtype == bool:
        synchronise("an index by a boolean mask (xp.where selects without waiting)")
    return array


def _gather(array: np.ndarray, parts: tuple) -> StrictArray:
    with _CuPyWraps():
        result = _asarray(array[host_index(parts)])
    # NumPy takes a 0-d index array for an integer and gives a view; CuPy copies.
    return StrictArray(result.copy() if np.may_share_memory(result, array) else result)


class _CuPyWraps:
    """Says, of an index out of range, what CuPy would have done."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is IndexError and "out of bounds" in str(error):
            raise IndexError(
                f"{error}; CuPy would wrap around in silence: validate indices on the host"
            ) from error


def refuse_duplicates(shape: tuple, select: Callable[[np.ndarray], np.ndarray], name: str) -> None:
    """Raise ValueError if `select` takes one of an array's elements twice."""
    positions = np.arange(int(np.prod(shape))).reshape(shape)
    with _CuPyWraps():
        chosen = _asarray(select(positions)).ravel()
    if np.unique(chosen).size != chosen.size:
        raise ValueError(
            f"{name}: an element is chosen more than once; which value stays is undefined on CuPy: "
            "use xp.add.at or xp.maximum.at, or choose each element once"
        )


def _refuse_overlap(array: np.ndarray, parts: tuple, value: np.ndarray) -> None:
    """CuPy copies between contiguous arrays by one memory copy, undefined where they overlap."""
    if array.base is None and value.base is None and array is not value:
        return
    target = array[(*parts, ...) if Ellipsis not in parts else parts]
    if (
        target.flags.c_contiguous
        and target.shape == value.shape
        and target.strides == value.strides
        and target.ctypes.data != value.ctypes.data
        and np.may_share_memory(target, value)
    ):
        raise ValueError(
            "x[index] = value: source and target overlap; the result is undefined on CuPy: "
            "assign value.copy()"
        )
