"""Run benchmarks and print a table: `python -m benchmarks --only W1,W8 --json FILE`."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import registry
from benchmarks.measure import Settings, measure

QUICK = Settings(pairs=1, seconds=0.01, any_load=True)
COLUMNS = "{:<22} {:<24} {:>9} {:>9} {:>8} {:>7} {:>9} {:>6}"
HEADS = ("workload", "system", "ms", "/ pytorch", "/ same", "spread", "peak MiB", "pairs")
NOTE = """\
Each system in its own process; bursts in turn, ratios pair by pair of neighbouring bursts, medians.
/ same: to PyTorch with the allocator's settings that md.tune_allocator makes. spread: the middle
half of the ratios over their median. Pairs that ran under someone else's load were thrown away.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    settings = QUICK if options.quick else Settings(pairs=options.pairs)
    names = [name for name in registry.workloads() if _asked(name, options.only)]
    if not names:
        known = ", ".join(registry.workloads())
        raise SystemExit(f"benchmarks: --only: no such workload; known are {known}")
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(NOTE)
    print(COLUMNS.format(*HEADS))
    rows = []
    for name in names:
        systems = [s for s in registry.systems_of(name) if _asked(s, options.systems)]
        for row in measure(name, systems, settings) if systems else []:
            rows.append(row)
            print(COLUMNS.format(*_cells(row)), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--only", type=_names, metavar="W1,W8", help="workloads; all if not given")
    add("--systems", type=_names, metavar="minidl,pytorch", help="all installed if not given")
    add("--pairs", type=int, default=9, help="bursts of each two systems, default %(default)s")
    add("--json", type=Path, metavar="FILE", help="write the rows there, too")
    add("--quick", action="store_true", help="a smoke run: its figures mean nothing")
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return text.split(",")


def _asked(name: str, wanted: list[str] | None) -> bool:
    """`wanted` holds the name, or the first word of a workload's."""
    return wanted is None or name in wanted or name.split()[0] in wanted


def _cells(row: dict[str, Any]) -> list[Any]:
    def number(name: str, form: str) -> str:
        return "-" if row[name] is None else form.format(row[name])

    return [
        row["workload"],
        row["system"],
        number("median_ms", "{:.2f}"),
        number("ratio_to_pytorch", "{:.3f}"),
        number("ratio_to_same_allocator", "{:.3f}"),
        number("spread", "{:.0%}"),
        number("peak_mib", "{:.0f}"),
        row["pairs"],
    ]


if __name__ == "__main__":
    main()
