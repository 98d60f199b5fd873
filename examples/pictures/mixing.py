"""Pictures of what mixing does: means with intervals, regions in the plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from examples.mixing import interval
from examples.pictures.canvas import INK, PALE, page


def intervals(
    path: str | Path,
    title: str,
    x: Sequence[float],
    lines: Mapping[str, Sequence[Sequence[float]]],
    x_name: str,
    y_name: str,
) -> None:
    """Accuracies of several runs at each `x`, for each name: dots, their mean, and its 95 %
    interval. The names stand side by side; the scale is logarithmic in the error."""
    with page(path, 8, 4.5) as (figure, axes):
        figure.suptitle(title)
        for number, (name, runs) in enumerate(lines.items()):
            shift = 0.14 * (number - (len(lines) - 1) / 2)
            there = [(i + shift, values) for i, values in enumerate(runs) if len(values)]
            if not there:
                continue
            places = np.array([place for place, _ in there])
            means, halves = np.array([interval(values) for _, values in there]).T
            means, halves = 1 - means, np.nan_to_num(halves)
            drawn = axes.errorbar(
                places, means, halves, fmt="o", markersize=5, capsize=4, label=name
            )
            colour = drawn[0].get_color()
            for place, values in there:
                errors = 1 - np.array(values)
                beside = [place - 0.045] * len(values)
                axes.plot(beside, errors, ".", color=colour, alpha=0.6, markersize=4)
        axes.set_yscale("log")
        axes.invert_yaxis()
        axes.yaxis.set_major_formatter(lambda error, _: f"{1 - error:.4g}")
        axes.yaxis.set_minor_formatter(lambda error, _: f"{1 - error:.4g}")
        axes.set_xticks(range(len(x)), [f"{value:,g}" for value in x])
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid(axis="y", which="both", color=PALE, linewidth=0.5)
        if len(lines) > 1:
            axes.legend(frameon=False)


def regions(path: str | Path, title: str, planes: Sequence[Any]) -> None:
    """`Plane`s side by side: how sure a classifier is where, and the points that it was given."""
    with page(path, 3.1 * len(planes) + 0.6, 3.4, ncols=len(planes), squeeze=False) as (
        figure,
        grid,
    ):
        figure.suptitle(title)
        for axes, plane in zip(grid[0], planes, strict=True):
            image = axes.imshow(
                plane.probability, origin="lower", extent=plane.extent, cmap="RdBu_r", vmin=0,
                vmax=1, aspect="auto", alpha=0.85,
            )  # fmt: skip
            axes.contour(
                plane.probability, [0.5], origin="lower", extent=plane.extent, colors=INK,
                linewidths=1,
            )  # fmt: skip
            for label, colour in enumerate(("#2b5c8a", "#a02c2c")):
                own = plane.points[plane.labels == label]
                axes.scatter(*own.T, s=14, color=colour, edgecolors="white", linewidths=0.5)
            axes.set_title(f"{plane.method}, test {plane.accuracy:.3f}", size=10)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        figure.colorbar(image, ax=grid[0], fraction=0.02, pad=0.01)
