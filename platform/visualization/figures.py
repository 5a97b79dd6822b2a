"""Figures of runs and evaluations: loss curves, AP over time, precision and recall, errors by keypoint."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from posefleet.data.evaluation.error_analysis import ERROR_KINDS
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.platform.visualization.plots import GREY, SERIES, from_zero, legend, name_rows, new_figure, short

History = Sequence[tuple[float, Mapping[str, float]]]
"""(step or epoch, value by name), ascending."""

LEFT, RIGHT, MIDDLE = "#f08a24", "#2f86e0", "#3fae6a"
"""Colours of keypoints by side of the body."""

KIND_COLOURS = dict(zip(ERROR_KINDS, ("#3fae6a", "#f5c542", "#b14fc5", "#2f86e0", "#d64550"), strict=True))

SMOOTHING = 0.03
"""Window of a smoothed loss, as a share of the curve."""

LOG_RATIO = 30.0
"""Losses that span more than this factor are shown on a logarithmic scale."""


def loss_curves(history: History) -> Figure:
    """Every named loss over steps: the values faint, their running mean bold, its last value in the legend."""
    figure, axes = new_figure("Training loss", "step", "loss")
    positive = np.zeros(0)
    for name, colour, steps, values in _curves(history):
        window = max(1, round(SMOOTHING * len(values)))
        if window > 1:
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
        mean = _running_mean(values, window)
        axes.plot(steps, mean, color=colour, linewidth=1.8, label=f"{name}  {mean[-1]:.3g}")
        positive = np.concatenate([positive, values[values > 0]])
    if positive.size and positive.max() > LOG_RATIO * positive.min():
        axes.set_yscale("log")
    legend(axes)
    return figure


def ap_curve(history: History) -> Figure:
    """AP over epochs with its best value marked, and the other statistics of ``history``, such as AP50, thinner."""
    figure, axes = new_figure("Average precision", "epoch", "AP")
    for index, (name, colour, epochs, values) in enumerate(_curves(history)):
        width, alpha = (1.2, 0.75) if index else (2.0, 1.0)
        axes.plot(epochs, values, color=colour, label=name, marker="o", markersize=3, linewidth=width, alpha=alpha)
        if index == 0 and np.isfinite(values).any():
            best = int(np.nanargmax(values))
            axes.plot(epochs[best], values[best], marker="o", markersize=9, color=colour, markeredgecolor="white")
            # Other curves lie above AP, so there is room under it, unless it is next to the axis.
            highest = max(value for _, point in history for value in point.values() if np.isfinite(value))
            shift = -17 if values[best] > 0.2 * max(highest, 0.1) else 8
            axes.annotate(
                f"{values[best]:.3f}", (epochs[best], values[best]), (0, shift), textcoords="offset points",
                ha="center", color=colour, weight="bold",
            )  # fmt: skip
    axes.set_xlim(left=0)
    from_zero(axes, "y", room=0.15)
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
    """AP of every keypoint alone, coloured by side of the body; the mean OKS of matched people as a dot."""
    figure, axes = new_figure("AP of every keypoint alone", "AP", "", height=0.9 + 0.26 * len(evaluation.keypoints))
    sides = {"left": LEFT, "right": RIGHT}
    lengths = np.nan_to_num(evaluation.keypoint_ap)
    places = np.arange(len(lengths))
    axes.barh(places, lengths, color=[sides.get(name.split("_")[0], MIDDLE) for name in evaluation.keypoints])
    axes.plot(evaluation.keypoint_oks, places, linestyle="", marker="o", markersize=4, color=GREY, label="mean OKS")
    for place, value in enumerate(evaluation.keypoint_ap.tolist()):
        end = float(lengths[place])
        shift, align, colour = (-4, "right", "white") if end > 0.12 else (4, "left", GREY)  # inside, or behind the bar
        axes.annotate(
            short(value), (max(end, 0.0), place), (shift, 0), textcoords="offset points", va="center", ha=align,
            fontsize=7.5, color=colour,
        )  # fmt: skip
    name_rows(axes, evaluation.keypoints)
    axes.set_xlim(0, 1)
    legend(axes, above=True)
    return figure


def error_split_bars(evaluation: Evaluation) -> Figure:
    """Kinds of error of each keypoint, as shares of its labelled occurrences on matched people."""
    errors = evaluation.errors
    rows = ["all", *evaluation.keypoints]
    counts = np.vstack([errors.keypoints.sum(0), errors.keypoints])
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure, axes = new_figure("Keypoint errors on matched people", "", "", height=1.3 + 0.26 * len(rows))
    axes.set_xlabel(
        f"{errors.missed_people} of {errors.people} people missed · {errors.background_poses} poses on background, "
        f"{errors.high_background_poses} of them above the median score · {errors.duplicate_poses} duplicates",
        fontsize=8,
    )
    start = np.zeros(len(rows))
    for kind, share in zip(ERROR_KINDS, shares.T, strict=True):
        bars = axes.barh(np.arange(len(rows)), share, left=start, color=KIND_COLOURS[kind], label=kind)
        texts = [f"{value:.0%}" if value > 0.06 else "" for value in share]
        axes.bar_label(bars, texts, label_type="center", fontsize=7, color="white" if kind != "jitter" else "#3b3b3b")
        start += share
    name_rows(axes, rows)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(frameon=False, ncols=len(ERROR_KINDS), loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=24, weight="bold", fontsize=11)
    return figure


def _curves(history: History) -> Iterator[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, colour, (N,) steps and (N,) values of each curve, only where it has values."""
    names = dict.fromkeys(name for _, values in history for name in values)
    for index, name in enumerate(names):
        steps, values = zip(*((step, values[name]) for step, values in history if name in values), strict=True)
        yield name, SERIES[index % len(SERIES)], np.array(steps), np.array(values, np.float64)


def _running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last ``window`` values at each place, of fewer at the start."""
    total = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    mean: np.ndarray = (total[ends] - total[starts]) / (ends - starts)
    return mean
