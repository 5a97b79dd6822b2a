"""Figures of a comparison: AP bars, prediction time over people, and the rows of an ablation."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posefleet.platform.visualization.plots import GREY, SERIES, from_zero, legend, name_rows, short, style

Times = Mapping[str, Mapping[int, float]]
"""Run -> people in the image -> milliseconds of predicting it."""


def comparison_figure(ap: Mapping[str, float], predict_ms: Times) -> Figure:
    """AP of several runs as bars, and beside them their prediction times as curves."""
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    _draw_panels(figure.subplots(1, 2), ap, predict_ms)
    return figure


def comparison_halves(ap: Mapping[str, float], predict_ms: Times) -> tuple[Figure, Figure]:
    """The two panels of :func:`comparison_figure` as figures of their own, higher the more runs there are."""
    height = 1.2 + 0.35 * max(len(ap), 6)
    left, right = (Figure(figsize=(4.8, height), layout="constrained") for _ in range(2))
    _draw_panels((left.add_subplot(), right.add_subplot()), ap, predict_ms)
    return left, right


def best_first(ap: Mapping[str, float]) -> list[str]:
    """Names by AP, highest first; those whose AP is not a number come last."""
    return sorted(ap, key=lambda name: -np.nan_to_num(ap[name], nan=-1.0))


def series_colours(ap: Mapping[str, float]) -> dict[str, str]:
    """Run -> the colour that it has in every figure, best run first."""
    return dict(zip(best_first(ap), itertools.cycle(SERIES), strict=False))


def _draw_panels(panels: Sequence[Axes], ap: Mapping[str, float], predict_ms: Times) -> None:
    left, right = panels
    colours = series_colours(ap)
    style(left, "Average precision", "AP", "")
    bars = left.barh(list(colours), [ap[name] for name in colours], height=0.6, color=list(colours.values()))
    left.bar_label(bars, [short(ap[name]) for name in colours], padding=3, fontsize=8, color=GREY)
    name_rows(left, list(colours))
    room = max(0.0, (5 - len(colours)) / 2)  # rows left empty above and below, so that few bars are not too thick
    left.set_ylim(len(colours) - 0.5 + room, -0.5 - room)
    from_zero(left, "x")
    style(right, "Time of predicting one image", "people in the image", "ms")
    for name, colour in colours.items():
        right.plot(*zip(*predict_ms[name].items(), strict=True), marker="o", label=name, color=colour)
    right.set_ylim(0, 1.1 * max(max(times.values()) for times in predict_ms.values()))
    legend(right)


def ablation_figure(here: Mapping[str, Sequence[float]], paper: Mapping[str, float]) -> Figure:
    """The rows of an ablation as they were measured, beside the paper's.

    Args:
        here: Row -> AP of every seed.
        paper: Row -> AP in the paper.
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
