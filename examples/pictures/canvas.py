"""A page to draw on, without a screen, by matplotlib, imported at first use; and its characters.

Chinese characters need a font that has them: one from an installed package, else one of the
system's, else their code points stand in the picture, with a note that says so.
"""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from functools import cache
from pathlib import Path

# Packages that carry a font with the simplified characters, and where in the package it is.
PACKAGED_FONTS = (
    ("pylopdf_fonts_zh_cn", "NotoSansSC-Regular.otf"),
    ("mplfonts", "fonts/NotoSansCJKsc-Regular.otf"),
)
SYSTEM_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "Source Han Sans CN",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans GB",
    "Heiti SC",
    "Microsoft YaHei",
    "SimHei",
    "Arial Unicode MS",
    "Droid Sans Fallback",
)
NO_FONT = "no Chinese font found: code points shown (pip install pylopdf-fonts-zh-cn)"
INK, PALE, MARK = "#1f2933", "#c3cbd3", "#c8102e"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@cache
def chinese_font() -> str | None:
    """The name of a font with Chinese characters that matplotlib knows; None if there is none."""
    from matplotlib import font_manager

    for package, file in PACKAGED_FONTS:
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            path = Path(folder, file)
            if path.is_file():
                font_manager.fontManager.addfont(path)
                return font_manager.FontProperties(fname=path).get_name()
    known = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in SYSTEM_FONTS if name in known), None)


@cache
def _drawable() -> frozenset[int]:
    """The code points that the fonts have."""
    from matplotlib import font_manager

    names = ["DejaVu Sans", *filter(None, [chinese_font()])]
    paths = [font_manager.findfont(name) for name in names]
    return frozenset().union(*(font_manager.get_font(path).get_charmap() for path in paths))


@contextmanager
def page(path: str | Path, width: float, height: float, **grid):
    """A figure and its axes (`grid` as for `Figure.subplots`), saved at the end to `path`."""
    import matplotlib
    from matplotlib.figure import Figure

    font = chinese_font()
    style = {
        "font.family": ["DejaVu Sans", font] if font else ["DejaVu Sans"],
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": PALE,
        "text.color": INK,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(**grid)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)


def label(character: str) -> str:
    """A character as it can be shown: itself, or its code point where no font has it."""
    return character if ord(character) in _drawable() else f"{ord(character):X}"


def with_note(title: str) -> str:
    """The title, and that characters are missing, if they are."""
    return title if chinese_font() else f"{title}\n({NO_FONT})"
