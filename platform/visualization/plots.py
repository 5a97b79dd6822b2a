"""How figures look, and how they become pictures.

Every figure is a matplotlib ``Figure`` made without pyplot, so nothing global is touched and no display is needed.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

DOTS_PER_INCH = 130
INK, GREY, FAINT = "#1c2127", "#4b5563", "#d1d5db"
ON_DARK = {INK: "#e4e7eb", GREY: "#98a1ab", FAINT: "#3a4048"}
SERIES = ("#2f86e0", "#f08a24", "#3fae6a", "#b14fc5", "#d64550", "#8a6d3b", "#17a2b8", "#6b7280")


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def svg_bytes(figure: Figure, *, dark: bool = False) -> bytes:
    """The figure as an SVG file without a background, for a light page or a dark one."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    for light, other in ON_DARK.items() if dark else ():
        text = text.replace(light, other)
    return text.encode()


def save_png(figure: Figure, path: str | Path) -> None:
    """Write the figure as a PNG file."""
    Path(path).write_bytes(png_bytes(figure))


def new_figure(title: str, x_label: str, y_label: str, *, height: float = 4.0) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; ``height`` in inches."""
    figure = Figure(figsize=(7.2, height), layout="constrained")
    axes = figure.add_subplot()
    style(axes, title, x_label, y_label)
    return figure, axes


def style(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    """Titles, and the quiet look that all axes share."""
    axes.set_title(title, loc="left", weight="bold", fontsize=11, color=INK)
    axes.set_xlabel(x_label, color=GREY)
    axes.set_ylabel(y_label, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def legend(axes: Axes, outside: bool = False) -> None:
    """What the lines are, or that there are none."""
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", color=GREY)
    elif outside:
        axes.legend(
            handles, labels, frameon=False, fontsize=8, labelcolor=INK, loc="lower right", bbox_to_anchor=(1.0, 1.0)
        )
    else:
        axes.legend(handles, labels, frameon=False, fontsize=8, labelcolor=INK)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names at the rows of horizontal bars, the first on top."""
    axes.set_yticks(np.arange(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(visible=False, axis="y")


def short(value: float) -> str:
    """Three digits; a dash for what is no number."""
    return "-" if math.isnan(value) else f"{value:.3f}"
