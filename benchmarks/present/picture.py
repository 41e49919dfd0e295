"""A picture that can be drawn in any theme, as PNG or SVG."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fast_train.benchmarks.present.theme import Theme
from fast_train.pipeline.report.plots import DPI


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

    def render(self, theme: Theme, format: str) -> bytes:
        """The file's content. format: ``png`` or ``svg``."""
        with matplotlib.rc_context(theme.rc()):
            figure = Figure(figsize=self.size, dpi=DPI, layout="constrained")
            self.draw(figure, theme)
            file = io.BytesIO()
            if format == "svg":
                FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Title": self.title})
            elif format == "png":
                FigureCanvasAgg(figure).print_png(file)
            else:
                raise ValueError(f"unknown format '{format}' of a picture; give png or svg")
        return file.getvalue()
