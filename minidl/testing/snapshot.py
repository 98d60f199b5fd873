"""Write `cupy_api.json`: the names and parameters of an installed CuPy, for the strict stand-in.

CuPy can be imported and looked at without a GPU. Run `python -m minidl.testing.snapshot` when the
CuPy that minidl supports moves on; the file is what `minidl.testing.strict` knows of CuPy.

A signature is one line of names: `a axis= out=` has one required and two optional parameters; `/`
ends the positional ones, `*` starts the keyword ones, `*name` and `**name` take the rest.
A ufunc is one line too: inputs, outputs, the methods that work, and `at:` with what `.at` does.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

FILE = Path(__file__).with_name("cupy_api.json")
SUBMODULES = ("linalg", "fft", "lib.stride_tricks")
_METHODS = ("reduce", "accumulate", "reduceat")


def take_snapshot() -> dict[str, Any]:
    """What CuPy offers, as plain data. Raises ImportError without CuPy."""
    import cupy
    import cupyx.scipy.special
    import numpy as np

    modules = {"": cupy, "special": cupyx.scipy.special}
    for name in SUBMODULES:
        modules[name] = _submodule(cupy, name)
    return {
        "cupy": cupy.__version__,
        "functions": {name: _functions(module) for name, module in modules.items()},
        "ufuncs": {name: _ufuncs(module) for name, module in modules.items()},
        "host": sorted(name for name in _public(cupy) if _from_numpy(cupy, np, name)),
        "other": sorted(
            name
            for name in _public(cupy)
            if not _from_numpy(cupy, np, name) and not _is_function(getattr(cupy, name))
        ),
        "methods": _methods(cupy.ndarray),
        "attributes": sorted(
            name
            for name in _public(cupy.ndarray)
            if inspect.isdatadescriptor(getattr(cupy.ndarray, name))
        ),
    }


def _submodule(package: ModuleType, dotted: str) -> Any:
    module: Any = package
    for part in dotted.split("."):
        module = getattr(module, part)
    return module


def _public(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_") and name != "annotations"]


def _from_numpy(cupy: ModuleType, np: ModuleType, name: str) -> bool:
    """Types and constants that CuPy passes on from NumPy: the host's, no array is involved."""
    value = getattr(cupy, name)
    if isinstance(value, type):
        return value.__module__.split(".")[0] == "numpy"
    return name in ("s_", "index_exp", "newaxis") or type(value) is float


def _is_function(value: Any) -> bool:
    return callable(value) and not isinstance(value, type)


def _functions(module: ModuleType) -> dict[str, str]:
    found = {}
    for name in _public(module):
        value = getattr(module, name)
        if not _is_function(value) or type(value).__name__ == "ufunc":
            continue
        try:
            found[name] = _line(inspect.signature(value))
        except (TypeError, ValueError):  # compiled, without a signature
            found[name] = "*args **kwargs"
    return found


def _line(signature: inspect.Signature) -> str:
    words, starred, positional = [], False, False
    for parameter in signature.parameters.values():
        if positional and parameter.kind is not parameter.POSITIONAL_ONLY:
            words.append("/")
        positional = parameter.kind is parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        mark = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        default = "" if parameter.default is parameter.empty else "="
        words.append(f"{mark}{parameter.name}{default}")
    return " ".join(words + ["/"] * positional)


def _ufuncs(module: ModuleType) -> dict[str, str]:
    found = {}
    for name in _public(module):
        value = getattr(module, name)
        if type(value).__name__ != "ufunc":
            continue
        words = [str(value.nin), str(value.nout), *filter(lambda m: _works(value, m), _METHODS)]
        found[name] = " ".join(words + ([f"at:{value._scatter_op}"] * bool(value._scatter_op)))
    return found


def _works(ufunc: Any, method: str) -> bool:
    """True unless CuPy says "not supported yet", which it does before it looks at the array."""
    try:
        getattr(ufunc, method)(*[None] * (2 if method == "reduceat" else 1))
    except NotImplementedError:
        return False
    except AttributeError:  # None has no .sum: the method got as far as the work
        return True
    return True


def _methods(kind: type) -> dict[str, str]:
    """From the first line of the docstrings: `_ndarray_base.sort(self, int axis=-1, kind=None)`."""
    found = {}
    for name in _public(kind):
        first = str(getattr(kind, name).__doc__).partition("\n")[0]
        head = re.fullmatch(r"\w+\.\w+\(self(?:, (.*?))?\)(?: ->.*)?", first)
        if head is None:
            continue
        words = []
        for part in re.split(r", (?![^()]*\))", head[1] or ""):
            declaration, equals, _ = part.partition("=")
            words.append(declaration.split()[-1] + equals if declaration else "")
        found[name] = " ".join(filter(None, words))
    return found


if __name__ == "__main__":
    text = json.dumps(take_snapshot(), indent=0, sort_keys=True)
    FILE.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {FILE.name}: {len(text) // 1024} KiB")
