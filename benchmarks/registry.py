"""What can be measured: workloads, and for each the systems that implement it.

An implementation is a function without arguments that makes everything ready and returns
`run(count)`: do the work `count` times and return the last value, by which the systems are checked
to do the same work. What it needs of a system it imports inside.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

Run = Callable[[int], Any]

REFERENCE, SAME_ALLOCATOR = "pytorch", "pytorch same allocator"
MODULES = {
    "minidl": "minidl",
    REFERENCE: "torch",
    SAME_ALLOCATOR: "torch",
    "autograd": "autograd",
    "mygrad": "mygrad",
    "dezero": "dezero",
}  # in the order of the table
# What `md.tune_allocator()` sets, in glibc's own words: plain integers, else they are ignored.
ENVIRONMENTS = {
    SAME_ALLOCATOR: {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "100000000000",
        "MALLOC_TOP_PAD_": "67108864",
    }
}

_implementations: dict[tuple[str, str], Callable[[], Run]] = {}


def implements(workload: str, *systems: str) -> Callable:
    """Decorator: this is how `systems` do `workload`."""

    def register(make: Callable[[], Run]) -> Callable[[], Run]:
        for system in systems:
            _implementations[workload, system] = make
        return make

    return register


def find(workload: str, system: str) -> Callable[[], Run]:
    """What `system` does for `workload`."""
    _load()
    return _implementations[workload, system]


def workloads() -> list[str]:
    """All names, in the order of definition. The first word is what `--only` asks for."""
    _load()
    return list(dict.fromkeys(workload for workload, _ in _implementations))


def systems_of(workload: str) -> list[str]:
    """The systems that implement `workload` and are installed here."""
    _load()
    return [s for s in MODULES if (workload, s) in _implementations and installed(s)]


def installed(system: str) -> bool:
    return importlib.util.find_spec(MODULES[system]) is not None


def repeated(step: Callable[[], Any]) -> Run:
    """`run(count)` for a function that does the work once."""

    def run(count: int) -> Any:
        for _ in range(count):
            value = step()
        return value

    return run


def as_in_fit(run: Run, model: Any = None) -> Run:
    """With the threads and the allocator that `md.fit` uses: for this model, or for most."""
    import minidl as md
    from minidl.training.loop import threads_for

    md.tune_allocator()

    def with_threads(count: int) -> Any:
        with md.threads(2) if model is None else threads_for(model, 2):
            return run(count)

    return with_threads


def _load() -> None:
    modules = (
        "tagger",
        "attention",
        "reading",
        "spectra",
        "titles",
        "gan",
        "digits",
        "convolution",
        "overhead",
    )
    for module in modules:
        importlib.import_module(f"benchmarks.{module}")
