"""A picture that can be drawn as PNG or SVG, light and dark, in colours that the colour-blind tell apart.

The colours are Okabe and Ito's (2008), as in `pipeline.report.plots`. The dark theme takes the brighter half of them:
the darker blue is hard to see on black. Give series a marker or a line style besides their colour.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fast_train.pipeline.report.plots import BLUE, DPI, GREEN, ORANGE, RED

SKY, PURPLE, YELLOW = "#56B4E9", "#CC79A7", "#F0E442"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours as ``#RRGGBB``. series: of the lines and bars, in the order in which they are used. highlight: of the
    one thing that a picture is about."""

    name: str
    background: str
    surface: str
    text: str
    muted: str
    grid: str
    highlight: str
    series: tuple[str, ...]

    def rc(self) -> Any:
        """matplotlib's settings, a dictionary for `matplotlib.rc_context`."""
        return {
            "figure.facecolor": self.background,
            "figure.dpi": DPI,
            "savefig.facecolor": self.background,
            "axes.facecolor": self.background,
            "axes.edgecolor": self.muted,
            "axes.labelcolor": self.text,
            "axes.titlecolor": self.text,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "text.color": self.text,
            "xtick.color": self.text,
            "ytick.color": self.text,
            "grid.color": self.grid,
            "legend.frameon": False,
            "legend.labelcolor": self.text,
            "hatch.color": self.background,
            "hatch.linewidth": 0.8,
            "font.size": 10,
            "axes.titlesize": 11,
            "lines.linewidth": 1.8,
            "lines.markersize": 5,
            # Outlines, not letters: the picture looks the same on a machine without the font.
            "svg.fonttype": "path",
            # The same figure gives the same file.
            "svg.hashsalt": "fast-train",
        }


LIGHT = Theme(
    name="light",
    background="#FFFFFF",
    surface="#F5F6F8",
    text="#1B1D21",
    muted="#5C636E",
    grid="#D9DCE1",
    highlight=RED,
    series=(BLUE, ORANGE, GREEN, PURPLE, SKY, RED, "#333333"),
)
DARK = Theme(
    name="dark",
    background="#14161A",
    surface="#1E2127",
    text="#E8EAED",
    muted="#A3AAB5",
    grid="#363B44",
    highlight="#FF8A3D",
    series=(SKY, ORANGE, "#2CC79B", PURPLE, YELLOW, "#FF8A3D", "#DDDDDD"),
)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """name: of its files, without suffix. title: a heading. caption: in words, what one sees; also its description for
    those who see no pictures. size: width and height in inches. draw: puts everything into an empty figure; it is
    called for each theme and format, so it must not change anything else."""

    name: str
    title: str
    caption: str
    size: tuple[float, float]
    draw: Callable[[Figure, Theme], None]

    def render(self, theme: Theme, format: Literal["png", "svg"]) -> bytes:
        """The file's content."""
        with matplotlib.rc_context(theme.rc()):
            figure = Figure(figsize=self.size, dpi=DPI, layout="constrained")
            self.draw(figure, theme)
            file = io.BytesIO()
            if format == "svg":
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Title": self.title})
            else:
                FigureCanvasAgg(figure).print_png(file)
        return file.getvalue()
