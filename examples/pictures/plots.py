"""Curves, bars and tables of numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.pictures.canvas import INK, PALE, page


def learning_curve(
    path: str | Path,
    title: str,
    loss: Mapping[str, Sequence[float | None]],
    quality: Mapping[str, Sequence[float | None]],
    quality_name: str,
    baselines: Mapping[str, float] | None = None,
) -> None:
    """Loss and quality after each epoch, a line for each named model; baselines are dashed."""
    from matplotlib.ticker import MaxNLocator

    with page(path, 10, 4, ncols=2) as (figure, (left, right)):
        figure.suptitle(title)
        for axes, lines, name in ((left, loss, "training loss"), (right, quality, quality_name)):
            for line, values in lines.items():
                axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=line)
            axes.set_xlabel("epoch")
            axes.set_ylabel(name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.grid(axis="y", color=PALE, linewidth=0.5)
        for style, (name, value) in zip(("--", ":", "-."), (baselines or {}).items(), strict=False):
            right.axhline(
                value, linestyle=style, color=INK, linewidth=1, label=f"{name} {value:.3f}"
            )
        for axes in (left, right):
            axes.legend(frameon=False)


def curves(
    path: str | Path,
    title: str,
    x: Sequence[float],
    lines: Mapping[str, Any],
    x_name: str,
    y_name: str,
    logarithmic: str = "",
) -> None:
    """Quantities against `x`, a line for each name.

    A line's values are (points,), or (points, 3): low, middle, high, drawn as a line in its band.
    logarithmic: the axes that are so: "", "x", "y" or "xy".
    """
    with page(path, 7.5, 4.5) as (figure, axes):
        figure.suptitle(title)
        for name, values in lines.items():
            values = np.asarray(values, float)
            middle = values if values.ndim == 1 else values[:, 1]
            (line,) = axes.plot(x, middle, marker="o", markersize=4, label=name)
            if values.ndim == 2:
                axes.fill_between(
                    x, values[:, 0], values[:, 2], color=line.get_color(), alpha=0.15, linewidth=0
                )
        if "x" in logarithmic:
            axes.set_xscale("log")
        if "y" in logarithmic:
            axes.set_yscale("log")
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid(axis="y", color=PALE, linewidth=0.5)
        axes.legend(frameon=False)


def confusion(
    path: str | Path, counts: Mapping[str, np.ndarray], classes: Sequence[str], title: str = ""
) -> None:
    """Confusion matrices side by side: rows are true classes, columns what was said.

    Colours are shares of a row; the counts stand in the cells.
    """
    width = 1.4 + (1.2 + 0.75 * len(classes)) * len(counts)
    with page(path, width, 1.4 + 0.7 * len(classes), ncols=len(counts), squeeze=False) as (
        figure,
        grid,
    ):
        figure.suptitle(title)
        for axes, (name, matrix) in zip(grid[0], counts.items(), strict=True):
            shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for row, column in np.ndindex(*matrix.shape):
                colour = "white" if shares[row, column] > 0.6 else INK
                number = f"{int(matrix[row, column]):,}"
                axes.text(column, row, number, ha="center", va="center", color=colour)
            axes.set_xticks(range(len(classes)), classes)
            axes.set_yticks(range(len(classes)), classes)
            axes.set_xlabel("said")
            axes.set_ylabel("true")
            axes.set_title(name, size=10)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)


def signals(
    path: str | Path,
    title: str,
    x: np.ndarray,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray, Mapping[str, float]]],
    x_name: str,
) -> None:
    """Curves (points,) below each other, on a ground whose colours show weights.

    A panel is its title, the values at `x`, the weights (points,) of each (red above 0, blue below,
    white at 0), and the names of places on the axis, those outside of `x` left out.
    """
    edges = np.concatenate([x[:1], (x[1:] + x[:-1]) / 2, x[-1:]])
    size = 9.5, 2.1 * len(panels) + 0.6
    with page(path, *size, nrows=len(panels), sharex=True, squeeze=False) as (figure, rows):
        figure.suptitle(title)
        for axes, (name, values, weights, places) in zip(rows[:, 0], panels, strict=True):
            low, high = np.percentile(values, [0.2, 99.8])
            room = 0.3 * (high - low)
            low, high = low - 0.2 * room, high + room
            strongest = np.percentile(np.abs(weights), 99.5) or 1.0
            axes.pcolormesh(
                edges, [low, high], weights[None], cmap="RdBu_r", vmin=-strongest, vmax=strongest,
                rasterized=True,
            )  # fmt: skip
            axes.plot(x, values, color=INK, linewidth=0.6)
            axes.set_ylim(low, high)
            axes.set_xlim(x[0], x[-1])
            axes.set_title(name, size=10, loc="left")
            axes.set_yticks([])
            seen = {n: at for n, at in places.items() if x[0] < at < x[-1]}
            for i, (place, at) in enumerate(sorted(seen.items(), key=lambda item: item[1])):
                top = high - (0.1 + 0.4 * (i % 2)) * room  # in two rows, or they overlap
                axes.plot([at, at], [low, top - 0.35 * room], color=INK, linewidth=0.5, alpha=0.5)
                ground = {"facecolor": "white", "alpha": 0.7, "pad": 0.5, "linewidth": 0}
                side = "left" if at < x[0] * 1.02 else "center"
                axes.text(at, top, place, ha=side, va="top", size=8, bbox=ground)
        rows[-1, 0].set_xlabel(x_name)


def scatters(
    path: str | Path,
    title: str,
    points: Mapping[str, Sequence[np.ndarray]],
    labels: np.ndarray,
    columns: Sequence[str] = ("",),
) -> None:
    """Points (n, 2) of ten classes: a row for each name, a column for each array of its sequence.

    labels: (n,), from 0 to 9.
    """
    from matplotlib import colormaps

    rows, width = len(points), len(columns)
    parts = {"nrows": rows, "ncols": width, "squeeze": False}
    with page(path, max(6.0, 2.6 * width + 1.4), 2.7 * rows + 0.6, **parts) as (figure, grid):
        figure.suptitle(title)
        for (name, sequence), line in zip(points.items(), grid, strict=True):
            for places, axes in zip(sequence, line, strict=True):
                for label in np.unique(labels):
                    axes.scatter(
                        *places[labels == label].T, s=14, alpha=0.8, linewidths=0,
                        color=colormaps["tab10"](label), label=str(label),
                    )  # fmt: skip
                axes.set_xticks([])
                axes.set_yticks([])
            line[0].set_ylabel(name)
        for axes, column in zip(grid[0], columns, strict=True):
            axes.set_title(column, size=10)
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside right center", frameon=False
        )
