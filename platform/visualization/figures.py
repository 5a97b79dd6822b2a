"""Figures of runs and evaluations: loss curves, AP over time, precision and recall, errors by keypoint."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from posefleet.data.evaluation.error_analysis import ERROR_KINDS
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.platform.visualization.plots import GREY, SERIES, legend, name_rows, new_figure, short

History = Sequence[tuple[float, Mapping[str, float]]]
"""(step or epoch, value by name), ascending."""


LEFT, RIGHT, MIDDLE = "#f08a24", "#2f86e0", "#3fae6a"


KIND_COLOURS = dict(zip(ERROR_KINDS, ("#3fae6a", "#f5c542", "#b14fc5", "#2f86e0", "#d64550"), strict=True))


SMOOTHING = 0.03
"""Window of a smoothed loss, as a share of the curve."""


LOG_RATIO = 30.0
"""Losses that span more than this factor are shown on a logarithmic scale."""


def loss_curves(history: History) -> Figure:
    """Every named loss over steps: the values faint, their running mean bold."""
    figure, axes = new_figure("Training loss", "step", "loss")
    names = list(dict.fromkeys(name for _, values in history for name in values))
    shown = []
    for index, name in enumerate(names):
        steps, values = _series(history, name)
        colour = SERIES[index % len(SERIES)]
        window = max(1, round(SMOOTHING * len(values)))
        if window > 1:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
        mean = _running_mean(values, window)
        axes.plot(steps, mean, color=colour, linewidth=1.8, label=f"{name}  {mean[-1]:.3g}" if len(mean) else name)
        shown.append(values)
    positive = np.concatenate(shown)[np.concatenate(shown) > 0] if shown else np.zeros(0)
    if positive.size and positive.max() > LOG_RATIO * positive.min():
        axes.set_yscale("log")
    legend(axes)
    return figure


def ap_curve(history: History) -> Figure:
    """AP (and what else is given, such as AP50) over epochs; the best AP is marked."""
    figure, axes = new_figure("Average precision", "epoch", "AP")
    names = list(dict.fromkeys(name for _, values in history for name in values))
    for index, name in enumerate(names):
        epochs, values = _series(history, name)
        main = index == 0
        axes.plot(
            epochs, values, color=SERIES[index % len(SERIES)], label=name, marker="o", markersize=3,
            linewidth=2.0 if main else 1.2, alpha=1.0 if main else 0.75,
        )  # fmt: skip
        if main and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            axes.plot(epochs[best], values[best], marker="o", markersize=9, color=SERIES[0], markeredgecolor="white")
            # Other curves lie above AP, so there is room under it.
            axes.annotate(
                f"{values[best]:.3f}", (epochs[best], values[best]), (0, -17), textcoords="offset points",
                ha="center", color=SERIES[0], weight="bold",
            )  # fmt: skip
    axes.margins(y=0.15)
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    legend(axes)
    return figure


def precision_recall(evaluation: Evaluation) -> Figure:
    """Precision over recall at every OKS threshold, each with its AP."""
    figure, axes = new_figure("Precision and recall", "recall", "precision")
    for index, (threshold, precision) in enumerate(zip(evaluation.thresholds, evaluation.precision, strict=True)):
        colour = colormaps["viridis"](0.92 * (1 - index / max(len(evaluation.thresholds) - 1, 1)))
        label = f"{threshold:.2f}   {short(float(precision.mean()))}"
        axes.plot(evaluation.recall_points, precision, color=colour, linewidth=1.6, label=label)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.legend(title="OKS     AP", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def keypoint_ap_bars(evaluation: Evaluation) -> Figure:
    """AP of every keypoint alone, coloured by side of the body; the mean similarity of matched people as a dot."""
    figure, axes = new_figure("AP of every keypoint alone", "AP", "", height=0.9 + 0.26 * len(evaluation.keypoints))
    places = np.arange(len(evaluation.keypoints))
    axes.barh(places, np.nan_to_num(evaluation.keypoint_ap), color=[_side(name) for name in evaluation.keypoints])
    axes.plot(evaluation.keypoint_oks, places, linestyle="", marker="o", markersize=4, color=GREY, label="mean OKS")
    for place, value in zip(places, evaluation.keypoint_ap.tolist(), strict=True):
        inside = value > 0.12
        axes.annotate(
            short(value), (value if inside else max(np.nan_to_num(value), 0.0), place), (-4 if inside else 4, 0),
            textcoords="offset points", va="center", ha="right" if inside else "left", fontsize=7.5,
            color="white" if inside else GREY,
        )  # fmt: skip
    name_rows(axes, evaluation.keypoints)
    axes.set_xlim(0, 1)
    legend(axes, outside=True)
    return figure


def error_split_bars(evaluation: Evaluation) -> Figure:
    """What kind of error each keypoint makes, as shares of its labelled occurrences on matched people."""
    rows = ["all", *evaluation.keypoints]
    counts = np.vstack([evaluation.errors.keypoints.sum(0), evaluation.errors.keypoints])
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    errors = evaluation.errors
    figure, axes = new_figure("Keypoint errors on matched people", "", "", height=1.3 + 0.26 * len(rows))
    axes.set_xlabel(
        f"{errors.missed_people} of {errors.people} people missed · {errors.background_poses} poses on background, "
        f"{errors.high_background_poses} of them above the median score · {errors.duplicate_poses} duplicates",
        fontsize=8,
    )
    start = np.zeros(len(rows))
    for index, kind in enumerate(ERROR_KINDS):
        axes.barh(np.arange(len(rows)), shares[:, index], left=start, color=KIND_COLOURS[kind], label=kind)
        for place in range(len(rows)):
            if shares[place, index] > 0.06:
                axes.text(
                    start[place] + shares[place, index] / 2, place, f"{shares[place, index]:.0%}",
                    ha="center", va="center", fontsize=7, color="white" if kind != "jitter" else "#3b3b3b",
                )  # fmt: skip
        start += shares[:, index]
    name_rows(axes, rows)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, ncols=len(ERROR_KINDS), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=24, weight="bold", fontsize=11)
    return figure


def _series(history: History, name: str) -> tuple[np.ndarray, np.ndarray]:
    pairs = [(step, values[name]) for step, values in history if name in values]
    steps, values = zip(*pairs, strict=True)
    return np.array(steps), np.array(values, np.float64)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` values at each place, of fewer at the start."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    mean: np.ndarray = (total[ends] - total[starts]) / (ends - starts)
    return mean


def _side(keypoint: str) -> str:
    return LEFT if keypoint.startswith("left") else RIGHT if keypoint.startswith("right") else MIDDLE
