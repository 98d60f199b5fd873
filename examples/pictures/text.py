"""Pictures of texts: attention, spans, and what a conditional random field sees."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.pictures.canvas import INK, MARK, PALE, chinese_font, label, page, with_note


def heat_map(path: str | Path, title: str, weights: np.ndarray, rows: str, columns: str) -> None:
    """How much each character of `rows` looks at each of `columns`: weights (rows, columns).

    White is nothing, dark the largest weight there is.
    """
    width = max(7.5, 0.42 * len(columns) + 1.2)
    with page(path, width, max(2.4, 0.42 * len(rows) + 1.2)) as (figure, axes):
        figure.suptitle(with_note(title))
        image = axes.imshow(weights, cmap="Blues", vmin=0, aspect="auto")
        figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01)
        _characters(axes, columns, [label(character) for character in rows])


def trellis(
    path: str | Path,
    text: str,
    tags: str,
    emissions: np.ndarray,
    transitions: np.ndarray,
    best: np.ndarray,
    allowed: np.ndarray,
) -> None:
    """The lattice that a linear-chain CRF scores: one column a character, one row a tag.

    Nodes are coloured by emission score, edges are as dark as their transition scores, forbidden
    ones are absent; the best (Viterbi) path is red. The transition scores stand beside it.
    Shapes: emissions (time, tags), transitions and allowed (tags, tags), best (time,).
    """
    time, kinds = emissions.shape
    width = max(9.0, 0.85 * time + 4.5)
    with page(path, width, 4.6, ncols=2, width_ratios=[width - 4.2, 4.2]) as (figure, axes):
        figure.suptitle(with_note("The trellis: emission scores, transitions, and the best path"))
        left, right = axes
        permitted = transitions[allowed]
        low, spread = permitted.min(), max(float(np.ptp(permitted)), 1e-6)
        for step in range(time - 1):
            for i, j in np.argwhere(allowed):
                chosen = best[step] == i and best[step + 1] == j
                left.plot(
                    [step, step + 1],
                    [i, j],
                    color=MARK if chosen else INK,
                    linewidth=3 if chosen else 1,
                    alpha=1 if chosen else 0.1 + 0.5 * (transitions[i, j] - low) / spread,
                    zorder=2 if chosen else 1,
                )
        steps, rows = np.meshgrid(range(time), range(kinds), indexing="ij")
        limit = float(np.abs(emissions).max()) or 1.0
        on_path = best[:, None] == np.arange(kinds)
        left.scatter(
            steps, rows, c=emissions.ravel(), cmap="RdYlGn", vmin=-limit, vmax=limit, s=620,
            zorder=3, edgecolors=np.where(on_path.ravel(), MARK, PALE), linewidths=2,
        )  # fmt: skip
        for step, row in np.ndindex(time, kinds):
            score = emissions[step, row]
            left.text(
                step, row, f"{score:.1f}", ha="center", va="center", size=8, zorder=4,
                color=_readable(score, limit),
            )  # fmt: skip
        _characters(left, text, tags)
        left.set_xlim(-0.6, time - 0.4)
        left.set_ylim(kinds - 0.5, -0.5)
        _matrix(right, transitions, allowed, tags)


def marginals(
    path: str | Path,
    text: str,
    tags: str,
    probabilities: np.ndarray,
    best: np.ndarray,
    ends: np.ndarray,
) -> None:
    """p(tag | sentence), shape (time, tags), the best path framed; below it, p(a word ends here).

    best (time,) holds the tags of the best path; `ends` lists the tags that close a word. The
    probabilities are the gradient of log Z by the emission scores.
    """
    from matplotlib.patches import Rectangle

    time, kinds = probabilities.shape
    with page(path, max(7.0, 0.62 * time + 1.5), 4.6, nrows=2, height_ratios=[3, 2]) as (
        figure,
        axes,
    ):
        figure.suptitle(with_note("Marginals: the gradient of log Z by the emissions"))
        above, below = axes
        above.imshow(probabilities.T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for step, row in np.ndindex(time, kinds):
            value = probabilities[step, row]
            above.text(
                step, row, f"{value:.2f}", ha="center", va="center", size=8,
                color="white" if value > 0.6 else INK,
            )  # fmt: skip
        for step, row in enumerate(best):
            above.add_patch(
                Rectangle((step - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=MARK, linewidth=2)
            )
        _characters(above, text, tags)
        closing = probabilities[:, ends].sum(axis=1)
        chosen = np.isin(best, ends)
        below.bar(range(time), closing, color=np.where(chosen, MARK, PALE))
        below.set_ylim(0, 1.02)
        below.set_ylabel("p(a word\nends here)")
        _characters(below, text)
        below.set_xlim(above.get_xlim())


def spans(
    path: str | Path,
    question: str,
    passage: str,
    ends: np.ndarray,
    answer: str = "",
    columns: int = 38,
) -> None:
    """p(the answer starts here) upwards and p(it ends here) downwards, under each character.

    ends: (len(passage), 2). The passage is wrapped into lines of so many `columns`; the answer is
    marked wherever it stands.
    """
    rows = max(1, -(-len(passage) // columns))
    peak = float(ends.max(initial=1e-3))
    with page(path, 12, 1.5 * rows + 0.8, nrows=rows, squeeze=False) as (figure, axes):
        shown = "".join(map(label, question))
        found = "".join(map(label, answer)) or "no answer"
        figure.suptitle(with_note(f"{shown}  {found}"))
        for row, axis in enumerate(axes[:, 0]):
            begin = row * columns
            part = passage[begin : begin + columns]
            start, end = ends[begin : begin + columns].T
            places = range(len(part))
            axis.bar(places, start, color=MARK, label="start")
            axis.bar(places, -end, color=INK, label="end")
            for place in places:
                if _inside(passage, answer, begin + place):
                    axis.axvspan(place - 0.5, place + 0.5, color=PALE, zorder=0)
            _characters(axis, part)
            axis.set_xlim(-0.6, columns - 0.4)
            axis.set_ylim(-1.1 * peak, 1.1 * peak)
            axis.set_yticks([-peak, 0, peak], [f"{peak:.2f}", "0", f"{peak:.2f}"])
        axes[0, 0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))


def _inside(passage: str, answer: str, place: int) -> bool:
    """Whether the character at `place` belongs to the answer somewhere in the passage."""
    first = max(0, place - len(answer) + 1)
    return any(passage.startswith(answer, i) for i in range(first, place + 1)) and bool(answer)


def _characters(axes, text: str, tags: Sequence[str] | None = None) -> None:
    axes.set_xticks(range(len(text)), [label(character) for character in text])
    axes.tick_params(axis="x", length=0, labelsize=14 if chinese_font() else 8)
    if tags is not None:
        axes.set_yticks(range(len(tags)), tags)
        axes.tick_params(axis="y", length=0, labelsize=12)
    axes.spines[:].set_visible(False)


def _matrix(axes, transitions: np.ndarray, allowed: np.ndarray, tags: str) -> None:
    shown = np.where(allowed, transitions, np.nan)
    limit = max(1.0, float(np.nanmax(np.abs(shown))))  # so that small scores look small
    axes.imshow(shown, cmap="RdYlGn", vmin=-limit, vmax=limit)
    for i, j in np.ndindex(*transitions.shape):
        score, style = transitions[i, j], {"ha": "center", "va": "center"}
        if allowed[i, j]:
            axes.text(j, i, f"{score:.2f}", color=_readable(score, limit), size=9, **style)
        else:
            axes.text(j, i, "forbidden", color=INK, size=7, **style)
    axes.set_xticks(range(len(tags)), tags)
    axes.set_yticks(range(len(tags)), tags)
    axes.set_title("transition scores, from row to column", size=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _readable(score: float, limit: float) -> str:
    """The colour for a number on the diverging colours, which are dark at both ends."""
    return "white" if abs(score) > 0.75 * limit else INK
