"""Pictures that several examples share."""

from __future__ import annotations

import numpy as np
import pytest

from examples import pictures
from examples.pictures.images import GAP, tiled

pytestmark = pytest.mark.skipif(not pictures.available(), reason="matplotlib is not installed")


def test_tiled_images_keep_their_places():
    images = np.arange(6, dtype=float).reshape(2, 3, 1, 1, 1) / 5 * np.ones((4, 5, 1))
    side = np.array([4, 5]) + GAP
    whole = tiled(images)
    assert whole.shape == (2 * side[0], 3 * side[1])
    for row, column in np.ndindex(2, 3):
        top, left = np.array([row, column]) * side + GAP // 2
        part = whole[top : top + 4, left : left + 5]
        np.testing.assert_array_equal(part, images[row, column, ..., 0])
    assert whole.sum() == images.sum()


def test_pictures_are_drawn(tmp_path):
    images = np.random.default_rng(0).random((2, 3, 28, 28, 1))
    pictures.grid(tmp_path / "grid.png", "digits", images, ["first row", "second"], list("abc"))
    pictures.curves(
        tmp_path / "curves.png",
        "accuracy",
        [100, 500, 4000],
        {"plain": [0.8, 0.9, 0.97], "mixed": np.array([[0.7, 0.8, 0.9]] * 3)},
        "labels",
        "accuracy",
        logarithmic="x",
    )
    counts = np.array([[50, 2], [0, 1234]])
    pictures.confusion(tmp_path / "confusion.png", {"a": counts, "b": counts}, ["star", "quasar"])
    x = np.linspace(4, 9, 60)
    panel = "quasar", np.sin(x), np.cos(x), {"Mg II": 4.5, "outside": 12.0}
    pictures.signals(tmp_path / "signals.png", "spectra", x, [panel, panel], "wavelength")
    for name in ("grid", "curves", "confusion", "signals"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
