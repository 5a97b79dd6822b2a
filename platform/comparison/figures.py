"""Figures of a comparison: AP bars, curves over time, and ablation ladders."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posefleet.data.evaluation.bootstrap import CONFIDENCE, Interval, differences
from posefleet.data.evaluation.evaluate import STATISTICS, Evaluation
from posefleet.platform.visualization.plots import GREY, SERIES, legend, name_rows, short, style


def comparison_figure(ap: Mapping[str, float], predict_ms: Mapping[str, Mapping[int, float]]) -> Figure:
    """Methods side by side.

    Args:
        ap: AP of each.
        predict_ms: Of each, people in the image -> milliseconds of predicting it.
    """
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_aps(left, ap)
    _draw_times(right, predict_ms, series_colours(ap))
    return figure


def ap_bars(ap: Mapping[str, float]) -> Figure:
    """The left half of :func:`comparison_figure`."""
    figure = _half(len(ap))
    _draw_aps(figure.add_subplot(), ap)
    return figure


def time_curves(ap: Mapping[str, float], predict_ms: Mapping[str, Mapping[int, float]]) -> Figure:
    """The right half of :func:`comparison_figure`."""
    figure = _half(len(ap))
    _draw_times(figure.add_subplot(), predict_ms, series_colours(ap))
    return figure


def _half(runs: int) -> Figure:
    return Figure(figsize=(4.8, 1.2 + 0.35 * max(runs, 6)), layout="constrained")


def best_first(ap: Mapping[str, float]) -> list[str]:
    """Names by AP, those without a number last."""
    return sorted(ap, key=lambda name: -np.nan_to_num(ap[name], nan=-1.0))


def series_colours(ap: Mapping[str, float]) -> dict[str, str]:
    """The colour that each of several runs has in every figure, best first."""
    return dict(zip(best_first(ap), itertools.cycle(SERIES), strict=False))


def _draw_aps(axes: Axes, ap: Mapping[str, float]) -> None:
    colours = series_colours(ap)
    style(axes, "Average precision", "AP", "")
    bars = axes.barh(list(colours), [ap[name] for name in colours], height=0.6, color=list(colours.values()))
    axes.bar_label(bars, [short(ap[name]) for name in colours], padding=3, fontsize=8, color=GREY)
    name_rows(axes, list(colours))
    room = max(0.0, (5 - len(colours)) / 2)  # above and below few bars, which would be walls else
    axes.set_ylim(len(colours) - 0.5 + room, -0.5 - room)
    axes.margins(x=0.12)


def _draw_times(axes: Axes, predict_ms: Mapping[str, Mapping[int, float]], colours: Mapping[str, str]) -> None:
    style(axes, "Time of predicting one image", "people in the image", "ms")
    for name, colour in colours.items():
        axes.plot(*zip(*predict_ms[name].items(), strict=True), marker="o", label=name, color=colour)
    axes.set_ylim(0, 1.1 * max(max(times.values()) for times in predict_ms.values()))
    legend(axes)


def ablation_figure(here: Mapping[str, Sequence[float]], paper: Mapping[str, float]) -> Figure:
    """The rows of an ablation, and how they compare in the paper.

    Args:
        here: Of each row, the AP of every seed.
        paper: Its AP in the paper.
    """
    names = list(here)
    figure = Figure(figsize=(9.6, 1.6 + 0.35 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    style(left, "Here", "AP, every seed and the mean", "")
    style(right, "In the paper", "AP", "")
    for row, name in enumerate(names):
        left.plot(here[name], [row] * len(here[name]), "o", color=SERIES[0], alpha=0.6, markeredgewidth=0)
        left.plot(np.mean(here[name]), row, "|", color=GREY, markersize=14, markeredgewidth=2)
    right.plot(list(paper.values()), range(len(names)), "o", color=SERIES[1])
    name_rows(left, names)
    right.grid(visible=False, axis="y")
    left.margins(y=0.1)
    return figure


def comparison_table(
    evaluations: Mapping[str, Evaluation], minus: Mapping[tuple[str, str], Interval] | None = None
) -> str:
    """Evaluations side by side as a Markdown table, best AP first, the best of every column bold.

    Says below where evaluations were not made the same way, since then their numbers do not compare.

    Args:
        evaluations: By name.
        minus: From :func:`ap_differences`, if that was asked already.
    """
    order = best_first({name: evaluation.ap for name, evaluation in evaluations.items()})
    minus = ap_differences(evaluations) if minus is None else minus
    columns = {key: [evaluations[name].statistics[key] for name in order] for key in STATISTICS}
    best = {
        key: max((round(v, 4) for v in values if not math.isnan(v)), default=None) for key, values in columns.items()
    }
    lines = ["| run | " + " | ".join(STATISTICS) + " |", "|---|" + "---:|" * len(STATISTICS)]
    if len(order) > 1:
        lines = [f"{lines[0]} AP minus the best |", f"{lines[1]}---:|"]
    for row, name in enumerate(order):
        cells = [short(columns[key][row]) for key in STATISTICS]
        bold = [len(order) > 1 and round(columns[key][row], 4) == best[key] for key in STATISTICS]
        shown = [f"**{cell}**" if is_best else cell for cell, is_best in zip(cells, bold, strict=True)]
        if row:
            shown.append(_judged(minus.get((name, order[0]))))
        elif len(order) > 1:
            shown.append("")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    protocols = [str(evaluations[name].protocol) for name in order]
    if len(set(protocols)) == 1:
        told = f" In brackets: {CONFIDENCE:.0%} of draws of images with replacement." if len(order) > 1 else ""
        return "\n".join([*lines, "", f"All: {protocols[0]}.{told}"])
    differing = [f"- {name}: {protocol}" for name, protocol in zip(order, protocols, strict=True)]
    return "\n".join([*lines, "", "Not made the same way, compare with care:", *differing])


def ap_differences(evaluations: Mapping[str, Evaluation]) -> dict[tuple[str, str], Interval]:
    """AP of the first minus that of the second of each two, where both were scored on the same images and people."""
    matches = {name: e.matches for name, e in evaluations.items() if e.matches is not None}
    return differences(matches)


def _judged(found: Interval | None) -> str:
    """A difference of two APs, and whether it may be noise."""
    if found is None:
        return "-"
    return str(found) if found.certain else f"{found}, may be noise"
