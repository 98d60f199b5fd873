"""Bursts in turn, ratios pair by pair, and an eye on what else the machine is doing.

Each system is a process of its own (worker.py), warm and waiting while another has its burst. Two
systems are compared by bursts next to each other in time, a b, then b a, and so on: whatever slows
the machine slows both, and the median of the ratios is what counts. A pair is thrown away, before
anybody looks at its figures, if other processes took more than a little of the machine meanwhile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.registry import ENVIRONMENTS, REFERENCE, SAME_ALLOCATOR

FOREIGN = 0.25  # cores that others may use during a burst
WATCH = 0.05  # seconds of looking at the load before a burst
AGREEMENT = 1e-3  # how far the systems' values may be apart, relatively
# Every system finds the threads and the allocator that it would find on its own.
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Settings:
    """pairs: how many to keep of each two systems; seconds: a burst's length; patience: seconds of
    trying for a workload; any_load: keep all pairs, whatever else the machine does."""

    pairs: int = 9
    seconds: float = 0.25
    patience: float = 60.0
    any_load: bool = False


@dataclass
class Burst:
    ms: float
    quiet: bool


class Worker:
    """A process in which one system does one workload."""

    def __init__(self, workload: str, system: str, seconds: float) -> None:
        self.name = f"{workload}: {system}"
        unset = (*THREADS, *ENVIRONMENTS[SAME_ALLOCATOR])
        environment = {k: v for k, v in os.environ.items() if k not in unset}
        command = [sys.executable, "-m", "benchmarks.worker", workload, system, str(seconds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=environment | ENVIRONMENTS.get(system, {}),
        )  # fmt: skip
        self.value: float | None = None
        self.peak_mib = 0.0

    def wait(self) -> None:
        """Until it is warm."""
        answer = self._answer()
        self.value, self.peak_mib = answer["value"], answer["peak_mib"]

    def burst(self) -> Burst:
        before, began = _busy(), time.perf_counter()
        print("run", file=self._process.stdin, flush=True)
        answer = self._answer()
        after, wall = _busy(), time.perf_counter() - began
        self.peak_mib = answer["peak_mib"]
        return Burst(answer["ms"], after - before - answer["cpu"] <= FOREIGN * wall)

    def close(self) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]
        self._process.stdout.close()  # type: ignore[union-attr]
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError(f"{self.name}: the process ended: see its error above")
        return json.loads(line)


def _busy() -> float:
    """Seconds that all cores have worked, or lost to other guests of the machine, since it started.
    0 where the system does not tell (only Linux does): no load is seen then."""
    try:
        with open("/proc/stat") as file:
            fields = [int(field) for field in file.readline().split()[1:9]]
    except OSError:
        return 0.0
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def _quiet(deadline: float) -> bool:
    """Wait for the machine to be free; False if it is not by then."""
    while time.perf_counter() < deadline:
        before = _busy()
        time.sleep(WATCH)
        if _busy() - before <= FOREIGN * WATCH:
            return True
    return False


def measure(workload: str, systems: list[str], settings: Settings) -> list[dict[str, Any]]:
    """A row for each system: see `_row`."""
    with ExitStack() as stack:
        workers = {}
        for system in systems:
            workers[system] = worker = Worker(workload, system, settings.seconds)
            stack.callback(worker.close)
            worker.wait()
        _check_agreement(workers)
        rounds = _rounds(workers, _comparisons(systems), settings)
        return [_row(workload, system, workers[system], rounds) for system in systems]


def _comparisons(systems: list[str]) -> list[tuple[str, ...]]:
    """The pairs of systems to compare; a system alone where there is nothing to compare it with."""
    pairs = [(s, REFERENCE) for s in systems if s != REFERENCE and REFERENCE in systems]
    if {"minidl", SAME_ALLOCATOR} <= set(systems):
        pairs.append(("minidl", SAME_ALLOCATOR))
    return pairs or [(s,) for s in systems]


def _check_agreement(workers: dict[str, Worker]) -> None:
    first, *others = workers.values()
    for other in others:
        if not abs(other.value - first.value) <= AGREEMENT * abs(first.value):
            raise RuntimeError(
                f"not the same work: {first.name} gives {first.value}, {other.name} {other.value}"
            )


Kept = dict[tuple[str, ...], list[tuple[float, ...]]]


def _rounds(
    workers: dict[str, Worker], comparisons: list[tuple[str, ...]], settings: Settings
) -> Kept:
    """Milliseconds of neighbouring bursts, for each comparison; one of each in a round."""
    kept: Kept = {comparison: [] for comparison in comparisons}
    deadline = time.perf_counter() + settings.patience
    turn = 0
    while min(map(len, kept.values())) < settings.pairs and time.perf_counter() < deadline:
        turn += 1
        for comparison, times in kept.items():
            if len(times) == settings.pairs:
                continue
            if not (settings.any_load or _quiet(deadline)):
                break
            order = comparison[:: 1 if turn % 2 else -1]
            bursts = {system: workers[system].burst() for system in order}
            if settings.any_load or all(burst.quiet for burst in bursts.values()):
                times.append(tuple(bursts[system].ms for system in comparison))
    return kept


def _row(workload: str, system: str, worker: Worker, kept: Kept) -> dict[str, Any]:
    """median_ms of all quiet bursts; the median ratio to PyTorch and to PyTorch with the same
    allocator; the spread of the first (of the times, where there is none): the middle half of them,
    over the median; the process's peak memory; how many pairs these come from. None: not measured.
    """
    times = [ms[i] for pair, own in kept.items() for i, s in enumerate(pair) if s == system
             for ms in own]  # fmt: skip
    to_pytorch = _ratios(kept, system, REFERENCE)
    to_same = _ratios(kept, system, SAME_ALLOCATOR)
    middle = _median(to_pytorch)
    return {
        "workload": workload,
        "system": system,
        "median_ms": _median(times),
        "ratio_to_pytorch": 1.0 if system == REFERENCE and times else middle,
        "ratio_to_same_allocator": 1.0 if system == SAME_ALLOCATOR and times else _median(to_same),
        "spread": _spread(to_pytorch or times),
        "peak_mib": round(worker.peak_mib, 1),
        "pairs": len(to_pytorch or times),
    }


def _ratios(kept: Kept, system: str, other: str) -> list[float]:
    return [ours / theirs for ours, theirs in kept.get((system, other), [])]


def _median(values: list[float]) -> float | None:
    return round(median(values), 4) if values else None


def _spread(values: list[float]) -> float | None:
    if len(values) < 2:
        return None
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return round((high - low) / middle, 4)
