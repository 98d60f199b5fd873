"""What a strict program did: calls, uploads and host synchronisations, counted or forbidden.

A synchronisation makes the host wait until the device has finished all it was asked to do; an
upload copies host memory to the device. Both are scoped by context variables, so threads that copy
the caller's context (as minidl's helper thread does) count with it and others do not.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class SynchronisationError(RuntimeError):
    """The host waited for the device inside `forbid_sync`."""


class Counts:
    """Totals since `counting` was entered.

    Attributes:
        synchronisations: times the host waited for the device
        uploads: copies of host memory to the device
        calls: calls of xp's functions, operators, methods and indexing
        sites: a Counter of "what at file:line" for synchronisations and uploads
    """

    def __init__(self) -> None:
        self.synchronisations = 0
        self.uploads = 0
        self.calls = 0
        self.sites: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return (
            f"Counts(synchronisations={self.synchronisations}, uploads={self.uploads}, "
            f"calls={self.calls})"
        )


class Watch:
    """The counts and the ban in force; absent (None) nearly always, which costs nothing."""

    __slots__ = ("counts", "forbidden")

    def __init__(self, counts: tuple[Counts, ...], forbidden: bool) -> None:
        self.counts = counts
        self.forbidden = forbidden

    def call(self) -> None:
        for counts in self.counts:
            with counts._lock:
                counts.calls += 1


watching: ContextVar[Watch | None] = ContextVar("minidl_strict_watch", default=None)


def synchronise(what: str) -> None:
    """Note that `what` makes the host wait; raises where that is forbidden."""
    watch = watching.get()
    if watch is None:
        return
    site = f"{what} at {_site()}"
    if watch.forbidden:
        raise SynchronisationError(
            f"{site}: the host waits here until the device is done, inside forbid_sync; "
            "keep the value on the device (xp.where, arithmetic on 0-d arrays) or read it outside"
        )
    for counts in watch.counts:
        with counts._lock:
            counts.synchronisations += 1
            counts.sites[site] += 1


def upload(what: str) -> None:
    """Note that `what` copies host memory to the device."""
    watch = watching.get()
    if watch is not None and watch.counts:
        site = f"{what} at {_site()}"
        for counts in watch.counts:
            with counts._lock:
                counts.uploads += 1
                counts.sites[site] += 1


def _site() -> str:
    """Where the innermost frame outside the stand-in is."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        "minidl.testing.strict"
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


@contextmanager
def counting() -> Iterator[Counts]:
    """Count what strict arrays do inside: `with counting() as c: ...; c.synchronisations`."""
    outer, counts = watching.get(), Counts()
    before = outer.counts if outer else ()
    token = watching.set(Watch((*before, counts), bool(outer and outer.forbidden)))
    try:
        yield counts
    finally:
        watching.reset(token)


@contextmanager
def forbid_sync(forbidden: bool = True) -> Iterator[None]:
    """Raise SynchronisationError, naming what and where, when the host would wait inside.

    `forbid_sync(False)` lifts the ban for a part.
    """
    outer = watching.get()
    token = watching.set(Watch(outer.counts if outer else (), forbidden))
    try:
        yield
    finally:
        watching.reset(token)
