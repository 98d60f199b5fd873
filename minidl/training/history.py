"""What a training has measured, epoch by epoch."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any


class History:
    """One row of numbers an epoch: `history["loss"]` is the column, None where it was not measured.

    `history.epoch` numbers the rows; `history.interrupted` tells whether Ctrl-C ended the run.
    """

    def __init__(self) -> None:
        self.epoch: list[int] = []
        self.rows: list[dict[str, float]] = []
        self.interrupted = False

    @property
    def history(self) -> dict[str, list[float | None]]:
        """All columns by name."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    def append(self, epoch: int, logs: dict[str, float]) -> None:
        """Add the numbers of an epoch."""
        self.epoch.append(epoch)
        self.rows.append({name: float(value) for name, value in logs.items()})

    def __getitem__(self, name: str) -> list[float | None]:
        columns = self.history
        if name not in columns:
            raise KeyError(f"{name!r}; measured were {', '.join(columns) or 'nothing'}")
        return columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.history

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path: str | os.PathLike) -> None:
        """Write the rows as CSV or JSON, by the ending of `path`. Raises ValueError for others."""
        target, columns = Path(path), self.history
        if target.suffix == ".json":
            target.write_text(json.dumps({"epoch": self.epoch, **columns}, indent=1) + "\n")
        elif target.suffix == ".csv":
            with open(target, "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["epoch", *columns])
                for epoch, row in zip(self.epoch, self.rows, strict=True):
                    writer.writerow([epoch, *(row.get(name, "") for name in columns)])
        else:
            raise ValueError(f"History.save: expected a path in .csv or .json, got {path}")

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": list(self.epoch), "rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.rows = list(state["epoch"]), [dict(row) for row in state["rows"]]

    def __repr__(self) -> str:
        last = (
            ", ".join(f"{name}={value:.4g}" for name, value in self.rows[-1].items())
            if self.rows
            else ""
        )
        return f"History({len(self)} epochs{': ' + last if last else ''})"
