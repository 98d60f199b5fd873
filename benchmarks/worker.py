"""One system doing one workload: `python -m benchmarks.worker WORKLOAD SYSTEM [SECONDS]`.

It warms up and says {"value": ..., "peak_mib": of the process}. Then it answers each line "run"
with a burst of about SECONDS: {"ms": of one time, "seconds": of the burst, "cpu": seconds of it,
"peak_mib": of the process}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from time import perf_counter, process_time

from benchmarks.registry import Run, find

WARM_UP = 2.0  # bursts


def main(workload: str, system: str, seconds: float) -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer

    def say(**answer: float) -> None:
        print(json.dumps(answer), file=answers)

    run = find(workload, system)()
    value = float(run(1))
    count = _warm_up(run, seconds)
    say(value=value, peak_mib=_peak_mib())
    for line in sys.stdin:
        if line.strip() != "run":
            sys.exit(f"benchmarks.worker: expected 'run', got {line!r}")
        cpu, began = process_time(), perf_counter()
        run(count)
        wall, cpu = perf_counter() - began, process_time() - cpu
        say(ms=1000 * wall / count, seconds=wall, cpu=cpu, peak_mib=_peak_mib())


def _warm_up(run: Run, seconds: float) -> int:
    """How many times fill `seconds`, found while warming up."""
    count, spent = 1, 0.0
    while spent < WARM_UP * seconds:
        began = perf_counter()
        run(count)
        last = perf_counter() - began
        spent += last
        count = max(1, round(min(seconds * count / last, 10 * count)))
    return count


def _peak_mib() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 0.25)
