"""Gives all figures one look, and turns them into PNG and SVG files.

Figures are made without pyplot, so no global state changes and no display is needed.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

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
    figure.dpi = DOTS_PER_INCH
    if engine := figure.get_layout_engine():  # else savefig draws everything once more, only to place it
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return buffer.getvalue()


def svg_bytes(figure: Figure, *, dark: bool = False) -> bytes:
    """The figure as an SVG file without a background, with colours for a light page or for a dark one."""
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
    """Set title and labels, and the spines, ticks and grid that all axes share."""
    axes.set_title(title, loc="left", weight="bold", fontsize=11, color=INK)
    axes.set_xlabel(x_label, color=GREY)
    axes.set_ylabel(y_label, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=GREY, labelsize=8)
    axes.grid(color=FAINT, linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def legend(axes: Axes, above: bool = False) -> None:
    """Add a legend beside the axes, or ``above`` them, where it covers no line; a note where no line has a label."""
    if not axes.get_legend_handles_labels()[1]:
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", color=GREY)
        return
    place: Literal["lower right", "upper left"] = "lower right" if above else "upper left"
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, loc=place, bbox_to_anchor=(1.0, 1.0))


def from_zero(axes: Axes, axis: Literal["x", "y"], *, room: float = 0.12, least: float = 0.1) -> None:
    """Begin an axis of values that are never negative at 0, which matplotlib draws in the middle where all are 0.

    Args:
        axes: With all that is drawn on them.
        axis: Which axis.
        room: Share of the largest value that is left free beyond it.
        least: Smallest end of the axis.
    """
    box = axes.dataLim
    largest = box.x1 if axis == "x" else box.y1
    end = max(least, (1 + room) * largest if math.isfinite(largest) else least)
    (axes.set_xlim if axis == "x" else axes.set_ylim)(0, end)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows of horizontal bars, the first on top."""
    axes.set_yticks(np.arange(len(names)), [name.replace("_", " ") for name in names])
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.grid(visible=False, axis="y")


def short(value: float) -> str:
    """Three decimals; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.3f}"
