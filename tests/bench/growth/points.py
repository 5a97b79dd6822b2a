"""Measured points as a table and as a plot."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from growth.measures import MEASURES

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """One measure at one size."""

    measure: str
    size: int
    seconds: float
    cpu: float
    before: float
    """MB of resident memory when the work began: the interpreter and its libraries, and material in memory."""
    peak: float


def table(points: Sequence[Point]) -> str:
    """Markdown: a row for each point; growth stands at the largest size of a measure."""
    head = ["what", "size", "CPU s", "clock s", "CPU a unit", "peak MB", "MB before", "bytes a unit", "growth"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for name, group in itertools.groupby(points, lambda point: point.measure):
        some = list(group)
        for point in some:
            last = point is some[-1] and len(some) > 1
            cells = [
                f"{MEASURES[name].what} (`{name}`)" if point is some[0] else "",
                f"{point.size:,}",
                f"{point.cpu:.2f}",
                f"{point.seconds:.2f}",
                _unit(point.cpu / point.size),
                f"{point.peak:.0f}",
                f"{point.before:.0f}",
                f"{(point.peak - point.before) * 1e6 / point.size:,.0f}",
                f"{exponent(*some[-2:]):.2f}" if last else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def exponent(smaller: Point, larger: Point) -> float:
    """p of CPU seconds ~ size^p."""
    return math.log(larger.cpu / smaller.cpu) / math.log(larger.size / smaller.size)


def figure(points: Sequence[Point]) -> "Figure":
    """CPU seconds and peak memory over samples, and CPU seconds over the other counts, on logarithmic axes."""
    from matplotlib.figure import Figure  # not in the processes that are measured

    from posefleet.platform.visualization.plots import GREY, SERIES, style

    drawn = Figure(figsize=(10.0, 4.2), layout="constrained")
    panels = drawn.subplots(1, 3)
    panels_of = {"samples": ((panels[0], "cpu"), (panels[1], "peak")), "counts": ((panels[2], "cpu"),)}
    style(panels[0], "CPU seconds by samples", "images", "s")
    style(panels[1], "Peak memory by samples", "images", "MB")
    style(panels[2], "CPU seconds by other counts", "ranks, checkpoints, runs, trials", "s")
    numbers = {"samples": 0, "counts": 0}
    for name, group in itertools.groupby(points, lambda point: point.measure):
        some, measure = list(group), MEASURES[name]
        colour = SERIES[numbers[measure.axis] % len(SERIES)]
        line = "o-" if numbers[measure.axis] < len(SERIES) else "s--"
        numbers[measure.axis] += 1
        for axes, value in panels_of[measure.axis]:
            values = [getattr(point, value) for point in some]
            axes.plot([p.size for p in some], values, line, color=colour, label=measure.what, markersize=3.5)
    for axes in panels:
        axes.set_xscale("log")
        axes.set_yscale("log")
    panels[1].axhline(1024 * 1.048576, color=GREY, linestyle=":", label="1 GiB")
    for axes, place, columns in ((panels[1], "left", 3), (panels[2], "right", 2)):  # inside they would hide lines
        names = axes.get_legend_handles_labels()
        drawn.legend(*names, loc=f"outside lower {place}", ncols=columns, frameon=False, fontsize=8)
    return drawn


def _unit(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
