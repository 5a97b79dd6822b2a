"""Published ablations run again: the rows of a ladder, each trained with several seeds, beside the paper's numbers.

A ladder is a YAML file with ``rows``. A row has a ``name``, the ``paper``'s numbers, and the settings that it adds to
those of the rows before it, by dotted names: under ``set`` where they need a training of their own, under ``decode``
where they only change how poses are predicted from the weights of the last row that was trained.
"""

import itertools
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posefleet.platform.config.loading import read_yaml
from posefleet.platform.visualization.tables import table

SHOWN = ("AP", "AP50", "AP75", "APM", "APL", "AR")
"""Statistics that papers report, in the order of columns."""

Scores = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Name of a row -> seed -> statistics in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a ladder."""

    name: str
    training: str
    """What runs of its training are called; rows that only decode differently share one."""
    trained: Mapping[str, Any]
    """Dotted names and values that it is trained with."""
    decoded: Mapping[str, Any]
    """Those that poses are predicted with."""
    paper: Mapping[str, float]
    """Statistics in percent."""


def read_ladder(path: Path) -> list[Row]:
    """The rows of a ladder, first to last.

    Raises:
        ValueError: The file is missing, or a row adds no settings, or its first row has no training.
    """
    rows: list[Row] = []
    settings: dict[str, Any] = {}
    for number, row in enumerate(read_yaml(path)["rows"], start=1):
        name = row["name"]
        if ("set" in row) == ("decode" in row) or not (rows or "set" in row):
            raise ValueError(f"{path}: row {name!r} needs either set: or, after a row with set:, decode:")
        settings = {**settings, **row.get("set", {}), **row.get("decode", {})}
        slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        before = rows[-1] if "decode" in row else None
        rows.append(
            Row(
                name=name,
                training=before.training if before else f"{path.stem}-{number}-{slug}",
                trained=before.trained if before else settings,
                decoded=settings,
                paper=row["paper"],
            )
        )
    return rows


def choose(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """The rows that are wanted by name or by number (from 1), in their own order; all where none is named.

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


def as_markdown(rows: Sequence[Row], scores: Scores) -> str:
    """The ladder with the mean over the seeds, the lowest and the highest AP, and the paper's column."""
    shown = [key for key in SHOWN if any(key in row.paper for row in rows)]
    head = ["row", "AP here", "lowest..highest", "AP paper"]
    head += [f"{key} {whose}" for key in shown if key != "AP" for whose in ("here", "paper")]
    lines = []
    for row in rows:
        ap = _over_seeds(scores[row.name], "AP")
        line = [row.name, f"{statistics.mean(ap):.1f}", f"{min(ap):.1f}..{max(ap):.1f}", _number(row.paper, "AP")]
        for key in shown:
            if key != "AP":
                line += [f"{statistics.mean(_over_seeds(scores[row.name], key)):.1f}", _number(row.paper, key)]
        lines.append(line)
    return table(head, lines)


@dataclass(frozen=True, slots=True)
class Ordering:
    """Two neighbours of a ladder."""

    lower: str
    higher: str
    """The row with the higher AP in the paper."""
    paper: float
    """By how much, percent."""
    here: Mapping[int, float]
    """Seed -> by how much here, percent; negative where the order is the other way round."""

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.mean(self.here.values())

    @property
    def agreeing(self) -> int:
        """Seeds in which the order is the paper's."""
        return sum(difference > 0 for difference in self.here.values())


def orderings(rows: Sequence[Row], scores: Scores) -> list[Ordering]:
    """What the paper says about each two neighbours, and what was found."""
    found = []
    for one, other in itertools.pairwise(rows):
        low, high = sorted((one, other), key=lambda row: row.paper["AP"])
        here = {s: 100 * (scores[high.name][s]["AP"] - scores[low.name][s]["AP"]) for s in scores[high.name]}
        found.append(Ordering(low.name, high.name, high.paper["AP"] - low.paper["AP"], here))
    return found


def orderings_as_markdown(found: Sequence[Ordering]) -> str:
    """One line for each two neighbours."""
    head = ["AP in the paper", "by", "by here", "on average", "in seeds"]
    lines = [
        [
            f"{o.lower} < {o.higher}",
            f"{o.paper:.1f}",
            f"{o.mean:+.1f}",
            "holds" if o.mean > 0 else "does not hold",
            f"{o.agreeing} of {len(o.here)}",
        ]
        for o in found
    ]
    return table(head, lines)


def _over_seeds(seeds: Mapping[int, Mapping[str, float]], key: str) -> list[float]:
    return [100 * values[key] for values in seeds.values()]


def _number(values: Mapping[str, float], key: str) -> str:
    return f"{values[key]:.1f}" if key in values else ""
