"""Draws the figures of a search: history, curves, importance, parallel coordinates, Pareto front."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posefleet.platform.tuning.study import Trial
from posefleet.platform.visualization.plots import (
    FAINT,
    GREY,
    INK,
    SERIES,
    from_zero,
    legend,
    name_rows,
    new_figure,
    short,
    style,
)


def history(trials: Sequence[Trial], default: float | None) -> Figure:
    """AP of every trial by number, the best AP so far, and the AP of the default trial as a line."""
    figure, axes = new_figure("Trials", "trial", "AP")
    ended = [trial for trial in trials if trial.stopped is None]
    for label, shown, colour in (
        ("stopped early", [trial for trial in trials if trial.stopped is not None], FAINT),
        ("reached the end", ended, SERIES[0]),
    ):
        if shown:
            aps = [trial.scores["AP"] for trial in shown]
            axes.plot([trial.number for trial in shown], aps, "o", color=colour, markersize=5, label=label)
    if ended:
        numbers = [*(trial.number for trial in ended), max(trial.number for trial in trials)]
        best = np.maximum.accumulate([trial.scores["AP"] for trial in ended])
        axes.step(numbers, [*best, best[-1]], where="post", color=SERIES[0], label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _default_line(axes, default)
    from_zero(axes, "y")
    legend(axes)
    return figure


def curves(trials: Sequence[Trial], default: float | None) -> Figure:
    """AP of every trial by epoch."""
    figure, axes = new_figure("Trials while they were trained", "epoch", "AP")
    best = max((trial for trial in trials if trial.stopped is None), key=lambda t: t.scores.get("AP", 0), default=None)
    for trial in sorted(trials, key=lambda trial: (trial is best, trial.stopped is None)):
        colour = SERIES[1] if trial is best else FAINT if trial.stopped is not None else SERIES[0]
        axes.plot(*zip(*trial.curve.items(), strict=True), marker="o", markersize=3, color=colour, linewidth=1.4)
    for label, colour in (("best", SERIES[1]), ("trained to the end", SERIES[0]), ("stopped early", FAINT)):
        axes.plot([], [], marker="o", markersize=3, color=colour, label=label)
    _default_line(axes, default)
    axes.set_xlim(left=0)
    from_zero(axes, "y")
    legend(axes)
    return figure


def importance_bars(shares: Mapping[str, float], about: str) -> Figure:
    """Share of every setting in the variance of ``about``."""
    figure, axes = new_figure("What mattered", f"share in how {about} varies", "", height=1.2 + 0.3 * len(shares))
    bars = axes.barh(range(len(shares)), list(shares.values()), color=SERIES[0])
    axes.bar_label(bars, [f"{share:.0%}" for share in shares.values()], padding=3, fontsize=8, color=GREY)
    name_rows(axes, list(shares))
    axes.set_yticks(range(len(shares)), list(shares))  # with underscores, to copy into a config
    axes.margins(x=0.1)
    return figure


def parallel(
    settings: Sequence[Mapping[str, float | str]], ap: Sequence[float], about: str, logarithmic: Collection[str] = ()
) -> Figure:
    """Every trial as a line through its settings, coloured by its AP; the best ones on top.

    Args:
        settings: Settings of every trial, the same names in the same order.
        ap: AP of every trial.
        about: What ``ap`` is, such as "AP after 2 epochs"; shown in the title.
        logarithmic: Names of the settings with a logarithmic axis.
    """
    names = list(settings[0])
    figure = Figure(figsize=(max(7.2, 1.5 * len(names)), 4.2), layout="constrained")
    axes = figure.add_subplot()
    style(axes, f"Settings of all trials, by {about}", "", "")
    colour, norm = colormaps["viridis_r"], Normalize(min(ap), max(ap))
    columns = [_along_axis([trial[name] for trial in settings], name in logarithmic) for name in names]
    positions = np.stack([column[0] for column in columns], axis=1)  # (trials, names)
    for row in np.argsort(ap):
        axes.plot(range(len(names)), positions[row], color=colour(norm(ap[row])), linewidth=1.6, alpha=0.85)
    for index, (_, low, high) in enumerate(columns):
        axes.annotate(low, (index, -0.06), ha="center", va="top", fontsize=7, color=GREY)
        axes.annotate(high, (index, 1.04), ha="center", va="bottom", fontsize=7, color=GREY)
        axes.axvline(index, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(names)), [name.replace("model.", "") for name in names], rotation=20, ha="right")
    axes.set_yticks([])
    axes.set_ylim(-0.16, 1.14)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    figure.colorbar(ScalarMappable(norm, colour), ax=axes, shrink=0.8).ax.tick_params(labelsize=8, colors=GREY)
    return figure


def pareto(trials: Sequence[Trial], front: Sequence[Trial], cost: str, default: Trial | None) -> Figure:
    """AP against a cost; the trials of the Pareto front are joined by a line."""
    figure, axes = new_figure("AP against its cost", cost.replace("_", " "), "AP")
    axes.plot(*_points(trials, cost), "o", color=FAINT, label="other trials")
    best = sorted(front, key=lambda trial: trial.scores[cost])
    axes.plot(*_points(best, cost), "o-", color=SERIES[0], label="Pareto front")
    for trial in best:
        axes.annotate(
            str(trial.number), (trial.scores[cost], trial.scores["AP"]), (4, 4), textcoords="offset points",
            fontsize=8, color=INK,
        )  # fmt: skip
    if default:
        axes.plot(*_points([default], cost), "D", color=SERIES[1], label="default")
    legend(axes)
    return figure


def _points(trials: Sequence[Trial], cost: str) -> tuple[list[float], list[float]]:
    return [trial.scores[cost] for trial in trials], [trial.scores["AP"] for trial in trials]


def _along_axis(values: Sequence[float | str], logarithmic: bool) -> tuple[np.ndarray, str, str]:
    """Positions 0..1 of values along an axis, texts in alphabetical order, and the labels of its ends."""
    if any(isinstance(value, str) for value in values):
        known = sorted({str(value) for value in values})
        numbers = np.array([known.index(str(value)) for value in values], np.float64)
        low, high = known[0], known[-1]
    else:
        numbers = np.array(values, np.float64)
        low, high = f"{numbers.min():.3g}", f"{numbers.max():.3g}"
        numbers = np.log(numbers) if logarithmic else numbers
    span = np.ptp(numbers)
    return (numbers - numbers.min()) / span if span else np.full(len(numbers), 0.5), low, high


def _default_line(axes: Axes, default: float | None) -> None:
    if default is not None:
        axes.axhline(default, color=GREY, linewidth=1.0, linestyle="--", label=f"default {short(default)}")
