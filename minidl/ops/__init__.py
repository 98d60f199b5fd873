"""The ops: mathematics. Each op stands with its derivative, its samples and its domain."""
# TEMPORARY (lead): loads the modules that exist while they are being written

import importlib
import pathlib
import sys

from minidl import graph

__all__ = []
for _name in (
    "shape", "comparison", "elementwise", "activations", "reduction", "joining", "indexing",
    "products", "linalg", "convolution",
):  # fmt: skip
    if (pathlib.Path(__file__).parent / f"{_name}.py").exists():
        try:
            _module = importlib.import_module(f"minidl.ops.{_name}")
        except ImportError as _error:
            print(f"minidl.ops.{_name}: {_error}", file=sys.stderr)
            continue
        for _op in _module.__all__:
            globals()[_op] = getattr(_module, _op)
            __all__.append(_op)
graph.bind(sys.modules[__name__])
