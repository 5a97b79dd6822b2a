"""Repeats a published ablation: the rows of a ladder, each trained with several seeds, beside the paper's numbers.

A ladder is a YAML file with ``rows``. A row has a ``name``, the ``paper``'s numbers, and the settings, by dotted name,
that it adds to those of the rows before it: under ``set`` if they need a training of their own, under ``decode`` if
they only change how poses are predicted from the weights of the last row that was trained. Where the paper's rows are
trained for different times, a row has ``epochs``, the paper's, which hold for the rows after it, too.
"""

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posefleet.data.evaluation.bootstrap import CONFIDENCE, Interval
from posefleet.platform.comparison.budget import budgeted
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import read_yaml
from posefleet.platform.visualization.tables import table

SHOWN = ("AP", "AP50", "AP75", "APM", "APL", "AR")
"""Statistics that papers report, in the order of the table's columns."""

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Name of a row -> seed -> statistics in [0, 1]."""

Trials = Mapping[tuple[str, int], tuple[Experiment, Experiment]]
"""(row, seed) -> (experiment that is trained, experiment with which its weights are scored)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a ladder."""

    name: str
    training: str
    """Name of its training, which begins the names of its runs; rows that only decode differently share one."""
    trained: Mapping[str, Any]
    """Settings that it is trained with, by dotted name."""
    decoded: Mapping[str, Any]
    """Settings that its poses are predicted with, by dotted name."""
    paper: Mapping[str, float]
    """The paper's statistics, percent."""
    length: float = 1.0
    """0..1, its epochs divided by those of the ladder's longest training, in the paper."""


def read_ladder(path: Path) -> list[Row]:
    """The rows of the ladder in ``path``, first to last.

    Raises:
        ValueError: The file is missing, a row adds no settings, or the first row has no training.
    """
    rows: list[Row] = []
    settings: dict[str, Any] = {}
    written = read_yaml(path)["rows"]
    longest, epochs = max(row.get("epochs", 0) for row in written), 0
    for number, row in enumerate(written, start=1):
        name = row["name"]
        if ("set" in row) == ("decode" in row) or not (rows or "set" in row):
            raise ValueError(f"{path}: row {name!r} needs either set: or, after a row with set:, decode:")
        settings = {**settings, **row.get("set", {}), **row.get("decode", {})}
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        before = rows[-1] if "decode" in row else None
        epochs = row.get("epochs", epochs)
        rows.append(
            Row(
                name=name,
                training=before.training if before else f"{path.stem}-{number}-{slug}",
                trained=before.trained if before else settings,
                decoded=settings,
                paper=row["paper"],
                length=epochs / longest if epochs else 1.0,
            )
        )
    return rows


def choose(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """The rows with a name or number (from 1) in ``wanted``, in the order of the ladder; all if ``wanted`` is empty.

    Raises:
        ValueError: There is no such row.
    """
    known = {name: row for number, row in enumerate(rows, start=1) for name in (str(number), row.name)}
    for name in wanted:
        if name not in known:
            listed = ", ".join(f"{number} {row.name!r}" for number, row in enumerate(rows, start=1))
            raise ValueError(f"no row {name!r}; the ladder has {listed}")
    chosen = [known[name] for name in wanted]
    return [row for row in rows if row in chosen] if wanted else list(rows)


def plan_trials(
    rows: Sequence[Row],
    build: Callable[[Mapping[str, Any]], Experiment],
    *,
    seeds: int,
    epochs: float | None = None,
    minutes: float | None = None,
) -> Trials:
    """Experiments of all rows, seed by seed, so that scores of all rows are there early.

    Args:
        rows: Rows of the ladder.
        build: Builds an experiment with settings by dotted name; its seed is the first one.
        seeds: Number of seeds.
        epochs: Budget of each training, see :func:`~posefleet.platform.comparison.budget.budgeted`.
        minutes: Budget of each training, likewise.
    """

    def of_seed(experiment: Experiment, training: str, seed: int) -> Experiment:
        run = dataclasses.replace(experiment.run, name=f"{training}-seed{seed}")
        return dataclasses.replace(experiment, seed=seed, run=run)

    first = build({}).seed
    trained = {row.training: of_seed(build(row.trained), row.training, first) for row in rows}
    lengths = {row.training: row.length for row in rows}
    trained = budgeted(trained, epochs=epochs, minutes=minutes, lengths=lengths)
    decoded = {row.name: build(row.decoded) for row in rows}
    trials = {}
    for seed in range(first, first + seeds):
        for row in rows:
            whole, other = of_seed(trained[row.training], row.training, seed), decoded[row.name]
            trials[row.name, seed] = whole, dataclasses.replace(whole, model=other.model, evaluate=other.evaluate)
    return trials


def as_markdown(rows: Sequence[Row], scores: Scores) -> str:
    """A table of the rows: mean AP over the seeds, lowest and highest AP, the paper's AP; then the other statistics."""
    others = [key for key in SHOWN if key != "AP" and any(key in row.paper for row in rows)]
    head = ["row", "AP here", "lowest..highest", "AP paper"]
    head += [f"{key} {whose}" for key in others for whose in ("here", "paper")]
    lines = []
    for row in rows:
        here = {key: [100 * seed[key] for seed in scores[row.name].values()] for key in ("AP", *others)}
        mean = {key: f"{statistics.mean(values):.1f}" for key, values in here.items()}
        paper = {key: f"{row.paper[key]:.1f}" if key in row.paper else "" for key in here}
        lines.append([row.name, mean["AP"], f"{min(here['AP']):.1f}..{max(here['AP']):.1f}", paper["AP"]])
        lines[-1] += [numbers[key] for key in others for numbers in (mean, paper)]
    return table(head, lines)


@dataclass(frozen=True, slots=True)
class Ordering:
    """Two neighbouring rows of a ladder, in the order of their AP in the paper."""

    lower: str
    higher: str
    """Name of the row with the higher AP in the paper."""
    paper: float
    """Difference of their AP in the paper, percent."""
    here: Mapping[int, float]
    """Seed -> difference of their AP here, percent; negative if the order is reversed."""

    @property
    def interval(self) -> Interval:
        """Mean difference over the seeds, percent, and Student's range of it; without bounds for a single seed."""
        values, mean = list(self.here.values()), statistics.mean(self.here.values())
        if len(values) < 2:
            return Interval(mean, -math.inf, math.inf)
        from scipy.stats import t as student  # takes seconds

        quantile = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
        reach = quantile * statistics.stdev(values) / math.sqrt(len(values))
        return Interval(mean, mean - reach, mean + reach)

    @property
    def verdict(self) -> Literal["holds", "does not hold", "undecided"]:
        """Whether the order is the paper's, as far as the seeds can say."""
        if not self.interval.certain:
            return "undecided"
        return "holds" if self.interval.value > 0 else "does not hold"

    @property
    def agreeing(self) -> int:
        """Number of seeds with the paper's order."""
        return sum(difference > 0 for difference in self.here.values())


def orderings(rows: Sequence[Row], scores: Scores) -> list[Ordering]:
    """Difference of each two neighbouring rows, in the paper and here."""
    found = []
    for one, other in itertools.pairwise(rows):
        low, high = sorted((one, other), key=lambda row: row.paper["AP"])
        here = {s: 100 * (scores[high.name][s]["AP"] - scores[low.name][s]["AP"]) for s in scores[high.name]}
        found.append(Ordering(low.name, high.name, high.paper["AP"] - low.paper["AP"], here))
    return found


def orderings_as_markdown(found: Sequence[Ordering]) -> str:
    """A table with one line for each two neighbouring rows, and what its verdicts mean."""
    lines = []
    for order in found:
        value, low, high = order.interval.value, order.interval.low, order.interval.high
        here = f"{value:+.1f} ({low:+.1f}..{high:+.1f})" if math.isfinite(low) else f"{value:+.1f}"
        agreeing = f"{order.agreeing} of {len(order.here)}"
        lines.append([f"{order.lower} < {order.higher}", f"{order.paper:.1f}", here, order.verdict, agreeing])
    text = table(["AP in the paper", "by", "by here (95 %)", "the order", "in seeds"], lines)
    return f"{text}\n\nundecided: the range of the difference over the seeds contains 0, or there is one seed"
