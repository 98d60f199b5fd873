"""From a line of CuPy's API to a function that takes what CuPy takes, and computes with NumPy's.

Each parameter has a role, by its name, that says what may be passed; roles are looked up once, when
a name of xp is first used, so that a call costs little more than NumPy's own.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from minidl.testing.strict_array import (
    SCALARS,
    StrictArray,
    host_index,
    quiet,
    refuse_duplicates,
    refuse_operand,
    unwrap_operand,
    wrap,
)
from minidl.testing.strict_counts import synchronise, upload, watching

# --- Roles ----------------------------------------------------------------------------------------

_ARRAYS = frozenset(
    "A a a1 a2 ar ar1 ar2 arr arr1 arr2 array ary aweights b choices condition dst element f filt "
    "fp fweights indices keys m mask out prototype sample sorter test_elements v weights where x "
    "x1 x2 xp y z".split()
)
_OPERANDS = frozenset(  # a number will do
    "a_max a_min append fill_value max min prepend q src to_begin to_end val values vals".split()
)
_SEVERAL = frozenset("tup condlist choicelist multi_index".split())
_INDICES_OF = {"take": "indices", "delete": "indices", "put": "ind indices", "repeat": "repeats"}
_OPERANDS_OF = {
    "where": "x y",
    "isclose": "a b",
    "allclose": "a b",
    "linspace": "start stop",
    "put": "v",
    "digitize": "bins",
    "histogram": "bins",
    "select": "default",
    "polygamma": "n",
}
_ARRAYS_OF = {"matrix_power": "M", "polyval": "p", "roots": "p"}
_PLAIN_OF = {"tril_indices": "m", "triu_indices": "m"}


def _role(function: str, parameter: str) -> Callable[[Any], Any]:
    """The converter of one parameter's values to what NumPy is given."""
    where = f"{function}: {parameter}"

    def listed(table: dict[str, str]) -> bool:
        return parameter in table.get(function, "").split()

    if listed(_INDICES_OF):
        return lambda value: _index(value, where)
    if listed(_OPERANDS_OF) or parameter in _OPERANDS:
        return lambda value: None if value is None else unwrap_operand(value, where)
    if parameter in _SEVERAL:
        return lambda value: _several(value, where)
    if listed(_ARRAYS_OF) or (parameter in _ARRAYS and not listed(_PLAIN_OF)):
        return _device(where)
    return _plain(where)


def _device(where: str) -> Callable[[Any], Any]:
    def role(value: Any) -> Any:
        if type(value) is StrictArray:
            return value._array
        if value is None:  # an optional array; NumPy refuses it where it is none
            return None
        if type(value) in SCALARS:
            raise TypeError(
                f"{where}: expected a device array, got {type(value).__name__}; CuPy's function "
                "works on arrays alone: use NumPy or Python on host numbers"
            )
        return refuse_operand(value, where)

    return role


def _plain(where: str) -> Callable[[Any], Any]:
    def role(value: Any) -> Any:
        if type(value) is StrictArray:
            raise TypeError(
                f"{where}: expected a host value, got a device array; reading it would synchronise"
            )
        return value

    return role


def _several(value: Any, where: str) -> Any:
    if isinstance(value, (list, tuple)):
        return list(map(_device(where), value))
    raise TypeError(f"{where}: expected a list of device arrays, got {type(value).__name__}")


def _index(value: Any, where: str) -> Any:
    if type(value) is int:
        return value
    if type(value) is StrictArray:
        return value._array
    if where.startswith("repeat") and isinstance(value, np.ndarray):
        return refuse_operand(value, where)
    return host_index((value,))[0]


# --- Signatures -----------------------------------------------------------------------------------


class Signature:
    """One line of the snapshot, and the names that NumPy has for its parameters."""

    def __init__(self, name: str, line: str, function: Callable[..., Any]) -> None:
        self.positional: list[str] = []
        self.keywords: set[str] = set()
        self.required: list[str] = []
        self.rest = self.any_keyword = False
        after_star = False
        for word in line.split():
            parameter = word.strip("*=")
            if word == "/":
                self.keywords.clear()
            elif word.startswith("**"):
                self.any_keyword = True
            elif word.startswith("*"):
                after_star, self.rest = True, len(word) > 1
            else:
                self.keywords.add(parameter)
                if not after_star:
                    self.positional.append(parameter)
                    self.required += [parameter] * (not word.endswith("="))
        self.renamed = self._numpy_names(function)
        self.roles = [_role(name, parameter) for parameter in self.positional]
        self.role_of = {key: _role(name, key) for key in {*self.keywords, *self.positional}}

    def _numpy_names(self, function: Callable[..., Any]) -> dict[str, str]:
        try:
            theirs = inspect.signature(function).parameters
        except (TypeError, ValueError):  # compiled: same names, or NumPy's own error
            return {}
        pairs = zip(self.positional, theirs.values(), strict=False)
        either = inspect.Parameter.POSITIONAL_OR_KEYWORD
        return {ours: p.name for ours, p in pairs if ours not in theirs and p.kind is either}


# CuPy's parameters that NumPy has not, or has elsewhere, are left out: strict is the narrower.
_LINES = {
    "argmax": "a axis= * out= keepdims=",
    "argmin": "a axis= * out= keepdims=",
    "nanargmax": "a axis= * out= keepdims=",
    "nanargmin": "a axis= * out= keepdims=",
    "matmul": "x1 x2 / out= * dtype= casting=",
    "einsum": "subscripts / *operands dtype= optimize=",
    "pad": "array pad_width mode= **kwargs",
    "meshgrid": "*xi indexing= sparse= copy=",
    "percentile": "a q axis= out= overwrite_input= method= keepdims=",
    "quantile": "a q axis= out= overwrite_input= method= keepdims=",
    "histogram": "x bins= range= density= weights=",
    "cov": "a y= rowvar= bias= ddof= fweights= aweights= * dtype=",
    "corrcoef": "a y= rowvar= * dtype=",
    "unpackbits": "a axis= * bitorder=",
    "sliding_window_view": "x window_shape axis=",
}

# Functions that wait for the device, how often, and when (given the arguments).
_WAITS: dict[str, int] = dict.fromkeys(
    "argwhere nonzero flatnonzero compress extract delete place mask_indices unique unique_all "
    "unique_counts unique_inverse unique_values union1d intersect1d setdiff1d setxor1d "
    "ravel_multi_index unravel_index real_if_close nanmax nanmin histogram histogram2d histogramdd "
    "asarray_chkfinite percentile quantile nanmedian interp".split(),
    1,
) | {"bincount": 2, "trim_zeros": 2}
_WAITS_IF: dict[str, tuple[int, Callable[[tuple, dict], bool]]] = {
    "where": (1, lambda args, kwargs: len(args) + len(kwargs) == 1),
    "repeat": (2, lambda args, kwargs: type((*args[1:], kwargs.get("repeats"))[0]) is not int),
    "average": (1, lambda args, kwargs: "weights" in kwargs or len(args) > 2),
    "choose": (2, lambda args, kwargs: kwargs.get("mode", "raise") == "raise" and len(args) < 4),
}
_ARRAY_RESULT = frozenset(["allclose", "array_equal", "array_equiv", "count_nonzero"])
_WARN_OF_EMPTY = frozenset("mean var std median average".split())
_AS_METHODS = frozenset("sum prod max min mean any all var std cumsum cumprod".split())


def adapt(name: str, line: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """CuPy's function `name` of signature `line`, computed by NumPy's `function`.

    The result refuses keywords, positions and arguments that CuPy refuses, counts the call and its
    synchronisations, and returns device arrays.
    """
    if name in _AS_METHODS:
        function = getattr(np.ndarray, name)  # spares NumPy's own dispatch
    signature = Signature(name, _LINES.get(name, line), function)
    function = quiet(_of_empty(function) if name in _WARN_OF_EMPTY else function)
    roles, most = signature.roles, len(signature.positional)
    out_at = signature.positional.index("out") if "out" in signature.positional else most
    required = len(signature.required)
    rest = _rest_role(name) if signature.rest else None

    def call(*args: Any, **kwargs: Any) -> Any:
        watch = watching.get()
        if watch is not None:
            watch.call()
        out = args[out_at] if len(args) > out_at and rest is None else kwargs.get("out")
        if kwargs:
            keywords = _keywords(name, signature, kwargs)
        if len(args) > most or len(args) < required:
            _check_count(name, signature, args, kwargs)
        host = [role(value) for role, value in zip(roles, args, strict=False)]
        if rest is not None:
            host += [rest(value) for value in args[most:]]
        result = function(*host, **keywords) if kwargs else function(*host)
        return wrap(result) if out is None else out

    def call_to_array(*args: Any, **kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        return result if type(result) is StrictArray else StrictArray(np.asarray(result))

    adapted = _guarded(name, call_to_array if name in _ARRAY_RESULT else call)
    adapted.__name__ = adapted.__qualname__ = name
    adapted.__doc__ = f"CuPy's {name}({line})."
    return adapted


def _of_empty(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` without NumPy's warning that the mean of nothing is nan."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if args and args[0].size:
            return function(*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return function(*args, **kwargs)

    return call


def _keywords(name: str, signature: Signature, kwargs: dict) -> dict:
    host = {}
    for key, value in kwargs.items():
        if key not in signature.keywords and not signature.any_keyword:
            raise TypeError(
                f"{name}: CuPy has no keyword {key!r} here; it takes "
                f"{', '.join(sorted(signature.keywords)) or 'none'}"
            )
        role = signature.role_of.get(key) or _plain(f"{name}: {key}")
        host[signature.renamed.get(key, key)] = role(value)
    return host


def _check_count(name: str, signature: Signature, args: tuple, kwargs: dict) -> None:
    if len(args) > len(signature.positional) and not signature.rest:
        raise TypeError(
            f"{name}: CuPy takes {len(signature.positional)} positional arguments "
            f"({', '.join(signature.positional)}), got {len(args)}"
        )
    missing = [p for p in signature.required[len(args) :] if p not in kwargs]
    if missing:
        raise TypeError(f"{name}: CuPy requires {', '.join(missing)}")


def _rest_role(name: str) -> Callable[[Any], Any]:
    if name in ("reshape", "transpose"):
        return _plain(f"{name}: axes and sizes")
    return lambda value: unwrap_operand(value, name)


def _guarded(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` with its synchronisations counted, and with what strict refuses of its own accord."""
    times, condition = _WAITS_IF.get(name, (_WAITS.get(name, 0), None))
    check = _CHECKS.get(name)
    if not times and check is None:
        return call

    def guarded(*args: Any, **kwargs: Any) -> Any:
        if times and (condition is None or condition(args, kwargs)):
            for _ in range(times):
                synchronise(f"{name}()")
        if check is not None:
            args, kwargs = check(args, kwargs)
        return call(*args, **kwargs)

    return guarded


# --- Checks of single functions -------------------------------------------------------------------


def _stable(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    if kwargs.get("kind") not in (None, "stable") or len(args) > 2:
        raise ValueError("sort: kind can only be None or 'stable' in CuPy, and it is a keyword")
    return args, {**kwargs, "kind": "stable"}


def _scatters_once(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    array, indices, values, axis = (*args, *(kwargs[k] for k in ("values", "axis") if k in kwargs))
    if type(array) is type(indices) is StrictArray and type(values) not in SCALARS:
        refuse_duplicates(
            array.shape,
            lambda positions: np.take_along_axis(positions, indices._array, axis),
            "put_along_axis",
        )
    return args, kwargs


def _same_dtype_out(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    out = kwargs.get("out", args[3] if len(args) > 3 else None)
    if out is not None and args and out.dtype != args[0].dtype:
        raise TypeError(f"take: out: CuPy wants dtype {args[0].dtype}, got {out.dtype}")
    return args, kwargs


def _no_median(args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
    if mode == "median":
        raise ValueError("pad: mode 'median' is not supported by CuPy")
    return args, kwargs


_CHECKS: dict[str, Callable[[tuple, dict], tuple[tuple, dict]]] = {
    "sort": _stable,
    "argsort": _stable,
    "put_along_axis": _scatters_once,
    "take": _same_dtype_out,
    "pad": _no_median,
}


# --- Arrays from host memory ----------------------------------------------------------------------


def from_host(obj: Any, dtype: Any = None, copy: Any = True, order: Any = "K") -> StrictArray:
    """A device array of anything that CuPy's `array` takes, an upload if it was in host memory."""
    if type(obj) is StrictArray:
        host = np.array(obj._array, dtype=dtype, copy=copy or None, order=order)
        return obj if host is obj._array else _checked(host)
    if type(obj) not in SCALARS:
        if _device_leaves(obj):
            return _checked(np.array(_nested(obj), dtype=dtype))
        upload("asarray() of host memory")
    return _checked(np.array(obj, dtype=dtype, order=order))


def _checked(host: np.ndarray) -> StrictArray:
    if host.dtype.kind not in "biufc" or host.dtype.type not in SCALARS:
        raise ValueError(f"asarray: CuPy has no arrays of dtype {host.dtype}")
    return StrictArray(host)


def _device_leaves(obj: Any) -> bool:
    """Whether a list begins with a device array; `_nested` refuses mixtures."""
    while isinstance(obj, (list, tuple)) and obj:
        obj = obj[0]
    return type(obj) is StrictArray


def _nested(obj: Any) -> Any:
    if isinstance(obj, (list, tuple)):
        return [_nested(item) for item in obj]
    return _device("asarray: an item")(obj)
