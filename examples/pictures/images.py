"""Pictures of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from examples.pictures.canvas import page


def grid(
    path: str | Path,
    title: str,
    images: np.ndarray,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Images (rows, columns, height, width, 1), from 0 (paper) to 1 (ink), with names beside rows
    and above columns."""
    height, width = images.shape[:2]
    named = 0.12 * max(map(len, rows)) if rows else 0.1
    with page(path, 0.67 * width + named + 0.3, 0.66 * height + 0.8) as (figure, axes):
        figure.suptitle(title)
        axes.imshow(tiled(images), cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        side = np.array(images.shape[2:4]) + GAP
        axes.set_yticks((np.arange(height) + 0.5) * side[0], rows or [""] * height)
        axes.set_xticks((np.arange(width) + 0.5) * side[1], columns or [""] * width)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)


GAP = 2  # pixels between images


def tiled(images: np.ndarray) -> np.ndarray:
    """(rows, columns, height, width, 1) as one image, with gaps of paper."""
    gap = ((0, 0), (0, 0), (GAP // 2, GAP // 2), (GAP // 2, GAP // 2))
    padded = np.pad(np.clip(images[..., 0], 0, 1), gap)
    rows, columns, height, width = padded.shape
    return padded.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)
