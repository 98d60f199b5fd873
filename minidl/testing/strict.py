"""A strict stand-in for CuPy, device "strict": finds without a GPU what fails or is slow on one.

`xp` offers the names and keywords of CuPy's API (a snapshot of it is package data) over arrays in
host memory. It refuses what CuPy refuses: implicit conversion to NumPy, mixing with NumPy arrays,
lists as operands, names, keywords and ufunc methods that CuPy lacks. It also refuses what CuPy lets
pass and should not: NumPy's functions on device arrays by dispatch, host arrays given to functions
of xp, elements written twice by one `a[i] = v`, indices out of range (CuPy wraps around).
Reductions give 0-d arrays. Where CuPy would synchronise with the host or upload, it counts, or
raises:

    with strict.counting() as counts:
        train_step()
    assert counts.synchronisations == 0

    with strict.forbid_sync():
        train_step()

What it cannot see: races inside kernels, memory, speed, and the last digits of a GPU's sums.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidl import backend
from minidl.testing.strict_array import (
    METADATA,
    SCALARS,
    StrictArray,
    host_index,
    on_host,
    quiet,
    refuse_operand,
    unwrap_operand,
    wrap,
)
from minidl.testing.strict_calls import adapt, from_host
from minidl.testing.strict_counts import (
    Counts,
    SynchronisationError,
    counting,
    forbid_sync,
    synchronise,
    watching,
)
from minidl.training.callbacks import Callback

__all__ = [
    "Counts",
    "ForbidSync",
    "StrictArray",
    "SynchronisationError",
    "counting",
    "forbid_sync",
    "special",
    "xp",
]


class ForbidSync(Callback):
    """A callback for `fit`: no waiting from an epoch's first batch until its last step is done.

    So batching, placing, forward, backward, clipping, steps and other callbacks are watched, and
    what is read when an epoch ends is not. Give `fit` a `read_every` beyond the epoch's steps.
    """

    def on_epoch_begin(self, epoch: int) -> None:
        self._inside = ExitStack()
        self._inside.enter_context(forbid_sync())

    def on_train_batch_end(self, batch: int, logs: dict[str, float]) -> None:
        if self.run.stop or batch + 1 == self.run.batches:
            self._inside.close()

    def on_train_end(self) -> None:
        self._inside.close()


_API = json.loads(Path(__file__).with_name("cupy_api.json").read_text(encoding="utf-8"))


# --- Ufuncs ---------------------------------------------------------------------------------------

_SCATTERED = {  # dtypes of CuPy's atomic operations, by what `.at` does
    "add": "ilefdIL",
    "sub": "iI",
    "max": "ilfdIL",
    "min": "ilfdIL",
    "and": "ilIL",
    "or": "ilIL",
    "xor": "ilIL",
}
_UFUNC_KEYWORDS = {"out", "dtype", "casting"}


class StrictUfunc:
    """A ufunc of CuPy: keywords `out`, `dtype` and `casting`, and the methods that work there."""

    def __init__(self, name: str, line: str, function: np.ufunc) -> None:
        words = line.split()
        self.name = self.__name__ = name
        self.nin, self.nout = int(words[0]), int(words[1])
        self.nargs = self.nin + self.nout
        self._compute, self._numpy = quiet(function), function
        self._works = {word for word in words[2:] if ":" not in word}
        self._scatter = next((word[3:] for word in words if word.startswith("at:")), None)

    def __repr__(self) -> str:
        return f"<strict ufunc '{self.name}'>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watch = watching.get()
        if watch is not None:
            watch.call()
        if kwargs or len(args) != self.nin:
            return self._call_with_more(args, kwargs)
        host = [x._array if type(x) is StrictArray else self._operand(x) for x in args]
        result = self._compute(*host)
        return StrictArray(result) if type(result) is np.ndarray else wrap(result)

    def _operand(self, value: Any) -> Any:
        return value if type(value) in SCALARS else refuse_operand(value, self.name)

    def _call_with_more(self, args: tuple, kwargs: dict) -> Any:
        unknown = kwargs.keys() - _UFUNC_KEYWORDS
        if unknown:
            raise TypeError(
                f"{self.name}: CuPy's ufuncs take out, dtype and casting alone, not "
                f"{', '.join(sorted(unknown))}; select with xp.where"
            )
        if not self.nin <= len(args) <= self.nargs:
            raise TypeError(f"{self.name}: expected {self.nin} inputs, got {len(args)} arguments")
        inputs, out = args[: self.nin], kwargs.pop("out", None)
        if len(args) > self.nin:
            if out is not None:
                raise ValueError(f"{self.name}: out is given by position and by keyword")
            out = args[self.nin :] if self.nout > 1 else args[self.nin]
        outputs = out if isinstance(out, tuple) else (out,)
        if any(type(x) is not StrictArray for x in outputs if x is not None):
            raise TypeError(f"{self.name}: out: expected a device array")
        if out is not None:
            kwargs["out"] = tuple(x if x is None else x._array for x in outputs)
        result = wrap(self._compute(*(unwrap_operand(x, self.name) for x in inputs), **kwargs))
        if out is None:
            return result
        results = result if self.nout > 1 else (result,)
        given = tuple(new if o is None else o for o, new in zip(outputs, results, strict=False))
        return given if self.nout > 1 else given[0]

    def _method(self, method: str) -> Callable[..., Any]:
        if method not in self._works:
            raise NotImplementedError(
                f"{self.name}.{method} is not supported by CuPy (add and multiply alone are); use "
                "a reduction (xp.max, xp.all) or a loop over the steps"
            )
        line = "array indices axis= dtype= out=" if method == "reduceat" else _METHOD_LINES[method]
        return adapt(method, line, getattr(self._numpy, method))

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Over an axis (default 0)."""
        return self._method("reduce")(*args, **kwargs)

    def accumulate(self, *args: Any, **kwargs: Any) -> Any:
        """Along an axis (default 0)."""
        return self._method("accumulate")(*args, **kwargs)

    def reduceat(self, *args: Any, **kwargs: Any) -> Any:
        """Over ranges. CuPy subtracts running sums: float32 loses digits where they are long."""
        return self._method("reduceat")(*args, **kwargs)

    def outer(self, A: Any, B: Any, **kwargs: Any) -> Any:
        """For all pairs of elements."""
        a, b = (unwrap_operand(x, f"{self.name}.outer") for x in (A, B))
        ndim = np.ndim(b)
        expanded = np.reshape(a, np.shape(a) + (1,) * ndim)
        return self(StrictArray(expanded), StrictArray(np.asarray(b)), **kwargs)

    def at(self, a: Any, indices: Any, b: Any = None) -> None:
        """In place, each element as often as it is named; atomic, so the order of sums varies."""
        if watch := watching.get():
            watch.call()
        if self._scatter is None:
            raise NotImplementedError(
                f"{self.name}.at is not supported by CuPy; add, maximum and minimum have it"
            )
        if type(a) is not StrictArray:
            raise TypeError(f"{self.name}.at: expected a device array, got {type(a).__name__}")
        array = a._array
        if array.dtype.char not in _SCATTERED[self._scatter]:
            raise TypeError(f"{self.name}.at: CuPy has no atomic operation for {array.dtype}")
        parts = host_index(indices if type(indices) is tuple else (indices,))
        value = np.asarray(unwrap_operand(b, f"{self.name}.at")).astype(array.dtype)
        self._numpy.at(array, parts, value)


_METHOD_LINES = {
    "reduce": "array axis= dtype= out= keepdims=",
    "accumulate": "array axis= dtype= out=",
}


# --- Functions with a behaviour of their own ------------------------------------------------------


def _array(
    obj: Any, dtype: Any = None, copy: Any = True, order: Any = "K", subok: bool = False,
    ndmin: int = 0, *, blocking: bool = False,
) -> StrictArray:  # fmt: skip
    result = from_host(obj, dtype, copy, order or "K")
    missing = ndmin - result.ndim
    return result if missing <= 0 else result[(None,) * missing]


def _asarray(
    a: Any, dtype: Any = None, order: Any = None, *, copy: Any = None, blocking: bool = False
) -> StrictArray:
    return from_host(a, dtype, copy, order or "K")


def _asarray_in_order(order: str, a: Any, dtype: Any = None) -> StrictArray:
    return from_host(a, dtype, None, order)


def _asnumpy(a: Any, stream: Any = None, order: Any = "C", out: Any = None, **_: Any) -> np.ndarray:
    return a.get(order=order, out=out) if type(a) is StrictArray else np.asarray(a)


def _get_array_module(*args: Any) -> Any:
    return xp if any(type(x) is StrictArray for x in args) else np


_OWN: dict[str, Callable[..., Any]] = {
    "array": _array,
    "asarray": _asarray,
    "asanyarray": _asarray,
    "ascontiguousarray": partial(_asarray_in_order, "C"),
    "asfortranarray": partial(_asarray_in_order, "F"),
    "asnumpy": _asnumpy,
    "get_array_module": _get_array_module,
}

_NOT_MODELLED = frozenset(
    "apply_along_axis apply_over_axes array2string array_repr array_str asfarray base_repr "
    "binary_repr disp "
    "format_float_positional format_float_scientific from_dlpack frombuffer fromfile fromfunction "
    "fromiter fromstring genfromtxt get_printoptions load loadtxt piecewise polyfit printoptions "
    "require save savetxt savez savez_compressed set_printoptions show_config".split()
)
_MENDS = {
    "errstate": "it never warns; np.errstate belongs to the NumPy path",
    "block": "use concatenate",
    "insert": "use concatenate",
    "geomspace": "use logspace",
    "unstack": "use moveaxis and iterate",
    "vecdot": "use (x * y).sum(axis)",
    "multi_dot": "use matmul in the order you choose",
    "vector_norm": "use linalg.norm",
    "matrix_norm": "use linalg.norm",
    "svdvals": "use linalg.svd(x, compute_uv=False)",
    "einsum_path": "compute the path on the host with np.einsum_path and shapes",
    "nditer": "write it with whole arrays",
    "random": "draw on the host, from minidl.random, and move the draws",
    "trapz": "use trapezoid",
}


# --- The module -----------------------------------------------------------------------------------


class Namespace:
    """A module of CuPy's: its names, made at first use, each over NumPy's of the same name."""

    def __init__(self, path: str, backing: Callable[[], Any], children: dict[str, Any]) -> None:
        self._path = path
        self._backing = backing
        self.__dict__.update(children)

    def __repr__(self) -> str:
        return f"<strict stand-in for {self._title()}>"

    def _title(self) -> str:
        return {"": "cupy", "special": "cupyx.scipy.special"}.get(self._path, f"cupy.{self._path}")

    def __dir__(self) -> list[str]:
        known = {**_API["functions"].get(self._path, {}), **_API["ufuncs"].get(self._path, {})}
        return sorted({*known, *(_API["host"] if not self._path else ())})

    def __getattr__(self, name: str) -> Any:
        value = self._find(name)
        setattr(self, name, value)
        return value

    def _find(self, name: str) -> Any:
        functions = _API["functions"].get(self._path, {})
        ufuncs = _API["ufuncs"].get(self._path, {})
        top = not self._path
        known = (
            name in functions or name in ufuncs or (top and name in _API["host"] + _API["other"])
        )
        mend = f"; {_MENDS[name]}" if name in _MENDS else ""
        if not known:
            raise AttributeError(f"{self._title()} {_API['cupy']} has no {name!r}{mend}")
        if top and name in _OWN:
            return _OWN[name]
        theirs: Any = getattr(self._backing(), name, None)
        if (theirs is None and name != "newaxis") or name in _NOT_MODELLED:
            raise AttributeError(f"{self._title()}.{name} is not modelled by the stand-in{mend}")
        if name in ufuncs:
            return StrictUfunc(name, ufuncs[name], theirs)
        if name in functions:
            if name in METADATA:
                return on_host(theirs)
            return adapt(name, functions[name], theirs)
        if name in _API["host"]:
            return theirs
        raise AttributeError(f"{self._title()}.{name} is not modelled by the stand-in{mend}")


def _scipy_special() -> Any:
    import scipy.special

    return scipy.special


def _stride_tricks() -> Any:
    return np.lib.stride_tricks


xp = Namespace(
    "",
    lambda: np,
    {
        "__name__": "minidl.testing.strict.xp",
        "ndarray": StrictArray,
        "ufunc": StrictUfunc,
        "linalg": Namespace("linalg", lambda: np.linalg, {"LinAlgError": np.linalg.LinAlgError}),
        "fft": Namespace("fft", lambda: np.fft, {}),
        "lib": Namespace(
            "lib",
            lambda: None,
            {"stride_tricks": Namespace("lib.stride_tricks", _stride_tricks, {})},
        ),
    },
)
special = Namespace("special", _scipy_special, {})


# --- Methods of arrays ----------------------------------------------------------------------------


def _astype(
    self: StrictArray, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None,
    copy: bool = True,
) -> StrictArray:  # fmt: skip
    """A copy with another dtype; itself if nothing changes and copy is False."""
    if casting is not None or subok is not None:
        raise TypeError("astype: casting and subok are not supported by CuPy")
    return from_host(self, dtype, bool(copy), order or "K")


def _view(self: StrictArray, dtype: Any = None) -> StrictArray:
    """The same memory, read as `dtype`."""
    return StrictArray(self._array.view() if dtype is None else self._array.view(dtype))


_METHODS_NOT_MODELLED = frozenset(
    "byteswap dump dumps mdspan reduced_view scatter_add scatter_max scatter_min toDlpack "
    "tofile".split()
)


def _attach_methods() -> None:
    own = {"astype": _astype, "view": _view}
    for name, line in _API["methods"].items():
        if name in _METHODS_NOT_MODELLED or name in vars(StrictArray):
            continue
        function = getattr(np.ndarray, name, None) or getattr(np, name)
        setattr(StrictArray, name, own.get(name) or adapt(name, f"a {line}", function))


def _missing_attribute(self: StrictArray, name: str) -> Any:
    if name in _API["methods"] or name in _API["attributes"]:
        raise AttributeError(f"cupy.ndarray.{name} is not modelled by the stand-in")
    raise AttributeError(f"cupy.ndarray {_API['cupy']} has no attribute {name!r}")


_attach_methods()
StrictArray.__getattr__ = _missing_attribute  # type: ignore[attr-defined]


# --- Registration ---------------------------------------------------------------------------------


def _to_host(array: StrictArray) -> np.ndarray:
    synchronise("to_host()")
    return array._array.copy()


backend.register("strict", StrictArray, xp, from_host, _to_host, special)
