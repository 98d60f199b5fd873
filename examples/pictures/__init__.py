"""The examples' pictures: PNG files."""

from examples.pictures.canvas import available, chinese_font, label, page
from examples.pictures.certificates import radii, robustness, slopes
from examples.pictures.images import grid
from examples.pictures.plots import confusion, curves, learning_curve, scatters, signals
from examples.pictures.text import heat_map, marginals, spans, trellis

__all__ = [
    "available", "chinese_font", "confusion", "curves", "grid", "heat_map", "label",
    "learning_curve", "marginals", "page", "radii", "robustness", "scatters", "signals", "slopes",
    "spans", "trellis",
]  # fmt: skip
