"""Robustness: what attacks reach, what is certified, and the slopes that lie under the bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from examples.pictures.canvas import INK, PALE, page

COLOURS = ("#c8102e", "#e08a00", "#1f6fb2", "#5b8c3a")


def robustness(path: str | Path, networks: Mapping[str, Mapping]) -> None:
    """Accuracy against the size of what is added, for each network.

    Left, an attack of some length (solid), and what is certified (dashed): the truth lies in the
    shade between them. Middle, the gradient's sign. Right, noise.
    """
    with page(path, 12.5, 4.6, ncols=3, sharey=True, width_ratios=[2, 1, 1]) as (figure, row):
        figure.suptitle("Accuracy against the size of what is added, test digits")
        for colour, (name, found) in zip(COLOURS, networks.items(), strict=False):
            kinds = "projected gradient", "gradient sign", "noise"
            for axes, kind in zip(row, kinds, strict=True):
                axes.plot(*_curve(found, kind), "-", color=colour, label=name)
            at, certified = _curve(found, "certified")
            row[0].plot(at, certified, "--", color=colour)
            row[0].fill_between(
                at, certified, _curve(found, kinds[0])[1], color=colour, alpha=0.1, linewidth=0
            )
        row[0].plot([], [], color=INK, label="attacked (projected gradient)")
        row[0].plot([], [], "--", color=INK, label="certified")
        row[0].set_ylabel("accuracy")
        row[0].set_xlabel("length (L2) of the attack")
        row[1].set_xlabel("the gradient's sign: by pixel")
        row[2].set_xlabel("length (L2) of noise")
        row[0].legend(frameon=False, loc="upper right")
        for axes in row:
            axes.set_ylim(-0.02, 1.02)
            axes.grid(axis="y", color=PALE, linewidth=0.5)


def _curve(found: Mapping, kind: str) -> tuple[list[float], list[float]]:
    """Sizes and accuracies, from nothing on."""
    return [0.0, *map(float, found[kind])], [found["accuracy"], *found[kind].values()]


def slopes(
    path: str | Path, local: Mapping[str, np.ndarray], networks: Mapping[str, Mapping]
) -> None:
    """The slopes at the test digits, the largest found anywhere, and the proved bound."""
    with page(path, 8.5, 1.2 + 0.8 * len(local)) as (figure, axes):
        figure.suptitle("How much each network stretches distances")
        for row, (name, values) in enumerate(local.items()):
            colour, bound = COLOURS[row % len(COLOURS)], networks[name]["bound"]
            jitter = np.random.default_rng(0).uniform(-0.22, 0.22, len(values))
            axes.plot(values, row + jitter, ".", color=colour, markersize=2, alpha=0.4)
            axes.plot(networks[name]["largest slope found"], row, "^", color=INK, markersize=7)
            axes.plot([bound, bound], [row - 0.35, row + 0.35], color=INK, linewidth=2)
            axes.annotate(
                f"{bound:.2f}", (bound, row), (5, 0), textcoords="offset points", va="center"
            )
        axes.plot([], [], ".", color=INK, label="at a test digit")
        axes.plot([], [], "^", color=INK, label="the largest found")
        axes.plot([], [], color=INK, linewidth=2, label="proved bound")
        axes.set_yticks(range(len(local)), list(local))
        axes.invert_yaxis()
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.set_xlabel("change of the logits over change of the image (L2)")
        figure.legend(frameon=False, ncols=3, loc="outside lower center")


def radii(path: str | Path, networks: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """Of each digit the certified radius, and the length of the smallest mistake found."""
    width = 1 + 3.4 * len(networks)
    with page(path, width, 4.2, ncols=len(networks), squeeze=False, sharex=True, sharey=True) as (
        figure,
        (row,),
    ):
        figure.suptitle("No mistake is nearer than the certified radius: no point under the line")
        limit = max(float(radius.max()) for radius, _ in networks.values())
        for axes, colour, (name, (radius, smallest)) in zip(row, COLOURS, networks.items()):
            shown = radius > 0
            axes.plot(radius[shown], smallest[shown], ".", color=colour, markersize=3, alpha=0.6)
            axes.plot([0, limit], [0, limit], color=INK, linewidth=1)
            axes.set_title(name, size=10)
            axes.set_xlabel("certified radius")
        row[0].set_ylabel("smallest mistake found")
        row[0].set_xlim(left=0)
        row[0].set_ylim(bottom=0)
