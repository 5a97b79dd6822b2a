"""Scores finished runs on one split, measures what each costs, and writes the results as tables."""

import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from posefleet.data.evaluation import bootstrap
from posefleet.data.evaluation.bootstrap import CONFIDENCE, Interval
from posefleet.data.evaluation.evaluate import STATISTICS, Evaluation
from posefleet.data.shards.layout import read_manifest
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import Meta, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.comparison.cost import NOT_MEASURED, Cost, measure
from posefleet.platform.comparison.figures import best_first
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import parameters
from posefleet.platform.config.sources import fingerprint
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.latency import BUSY, ROUNDS
from posefleet.platform.monitoring.interruptions import Losses, read_interruptions
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking.runs import flatten
from posefleet.platform.visualization.plots import short
from posefleet.platform.visualization.tables import table

BOXES_A_PERSON = "boxes refined a person"
"""Name of the cost that only top-down methods have."""

Differences = Mapping[tuple[str, str], Interval]
"""(one run, another run) -> AP of the first minus that of the second, with its range over draws of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A run that was scored and timed: one row of a comparison."""

    name: str
    checkpoint: str
    """Folder of the checkpoint."""
    meta: Meta
    """Metadata of the checkpoint."""
    experiment: Experiment
    """Settings that it was scored with: the checkpoint's own, maybe with other data or another decoding."""
    data: str
    """Fingerprint of the shards that it was scored on."""
    evaluation: Evaluation
    poses: Mapping[int, Poses]
    """Image id -> poses, in pixels of the original images."""
    cost: Cost
    losses: Losses | None = None
    """What interruptions cost the run; None if its folder is not known."""


def losses_table(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """Heading -> what interruptions cost each run, NaN where it is not known; empty where no run was interrupted."""
    found = [entry.losses for entry in entries]
    if not any(losses and losses.count for losses in found):
        return {}
    rows = [(one.count, one.steps_again, one.device_seconds) if one else (math.nan,) * 3 for one in found]
    return dict(
        zip(
            ("interruptions", "steps done again", "device seconds lost"),
            map(list, zip(*rows, strict=True)),
            strict=True,
        )
    )


def _losses(checkpoint: str) -> Losses | None:
    folder, _, name = checkpoint.rpartition("/checkpoints/")
    return Losses.of(read_interruptions(folder)) if folder and "/" not in name else None


def scores(run: str, experiment: Experiment, worker: LocalWorker) -> dict[str, float]:
    """Metrics of a run's best checkpoint under ``experiment``, which may predict in another way than the run did.

    Returns the checkpoint's own metrics where it was evaluated with the same settings; predicts otherwise.
    """
    checkpoint = find_checkpoint(run)
    meta = read_meta(checkpoint)
    own = meta.experiment
    alike = (own.model, own.evaluate, own.data.resize, own.data.eval) == (
        experiment.model,
        experiment.evaluate,
        experiment.data.resize,
        experiment.data.eval,
    )
    if alike and "AP" in meta.metrics:
        return meta.metrics
    model, _ = load_model(checkpoint, experiment=experiment)
    result = evaluate(model.to(worker.device), experiment, worker)
    assert result is not None, "scores are measured in one process"
    return result.as_dict()


def score_runs(runs: Mapping[str, str], worker: LocalWorker, *, data: str = "", repeats: int = ROUNDS) -> list[Entry]:
    """Score the best checkpoint of each run, then time them in turns.

    Args:
        runs: Name of a row -> folder of the run, or a checkpoint.
        worker: Its device is used.
        data: Shards to score on; empty: those that each run was evaluated on.
        repeats: Timed predictions for each number of people.

    Raises:
        CheckpointError: There is no checkpoint.
        DataError: The shards cannot be used.
        ValueError: A run was not evaluated, and ``data`` is empty.
    """
    scored = []
    for name, run in runs.items():
        sys.stderr.write(f"scoring {name}\n")
        scored.append(_score(name, run, worker, data=data))
    return _timed(scored, worker, repeats)


def score_run(
    name: str,
    run: str,
    worker: LocalWorker,
    *,
    data: str = "",
    experiment: Experiment | None = None,
    repeats: int = ROUNDS,
) -> Entry:
    """Score and time the best checkpoint of one run; arguments and errors as for :func:`score_runs`.

    Args:
        experiment: Settings that predict in another way than the run's own; the checkpoint's weights must fit them.
    """
    return _timed([_score(name, run, worker, data=data, experiment=experiment)], worker, repeats)[0]


def _timed(scored: Sequence[tuple[Entry, nn.Module]], worker: LocalWorker, repeats: int) -> list[Entry]:
    models = {entry.name: (model, entry.experiment) for entry, model in scored}
    sys.stderr.write(f"timing {', '.join(models)} in turns\n" if len(models) > 1 else "")
    costs = measure(models, worker, repeats=repeats)
    return [dataclasses.replace(entry, cost=costs[entry.name]) for entry, _ in scored]


def _score(
    name: str, run: str, worker: LocalWorker, *, data: str = "", experiment: Experiment | None = None
) -> tuple[Entry, nn.Module]:
    """A row whose cost is not measured yet, and its model."""
    checkpoint = find_checkpoint(run)
    meta = read_meta(checkpoint)
    experiment = experiment or meta.experiment
    scored_on = resolve_path(data) if data else experiment.data.one_eval
    if not scored_on:
        raise ValueError(f"{name} ({run}) was trained without data.eval; give shards to score it on: --eval SHARDS")
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, eval=scored_on))
    model, _ = load_model(checkpoint, experiment=experiment)
    poses: dict[int, Poses] = {}
    result = evaluate(model.to(worker.device), experiment, worker, keep=poses.update)
    assert result is not None, "a comparison runs in one process"
    entry = Entry(
        name=name,
        checkpoint=checkpoint,
        meta=meta,
        experiment=experiment,
        data=read_manifest(scored_on).fingerprint,
        evaluation=result,
        poses=poses,
        cost=NOT_MEASURED,
        losses=_losses(checkpoint),
    )
    return entry, model


def busy_warning(entries: Sequence[Entry]) -> str:
    """A sentence if other processes used the machine while runs were timed; empty otherwise."""
    busy = max(entry.cost.busy for entry in entries)
    if busy < BUSY:
        return ""
    return (
        f"Other processes used up to {busy:.0%} of this machine's cores while runs were timed: times are too long, and "
        "only their ratios mean something, because runs were timed in turns."
    )


def same_data(experiments: Mapping[str, Experiment]) -> str:
    """A warning that names the training data of every run where they differ; empty where all have the same."""
    seen = {name: fingerprint(e.data.train)[:12] for name, e in experiments.items()}
    if len(set(seen.values())) == 1:
        return ""
    return "trained on different data: " + ", ".join(f"{name} {mark}" for name, mark in seen.items())


def differing_settings(experiments: Mapping[str, Experiment]) -> dict[str, dict[str, str]]:
    """Dotted name -> run -> value, of the settings that are not the same in all runs.

    A run whose method lacks a setting has no value for it. Settings of where a run keeps its files are left out.
    """
    flat = {run: flatten(parameters(experiment)) for run, experiment in experiments.items()}
    names = dict.fromkeys(name for settings in flat.values() for name in settings if name not in _PLACES)
    found = {name: {run: settings[name] for run, settings in flat.items() if name in settings} for name in names}
    return {name: values for name, values in found.items() if len(values) < len(flat) or len(set(values.values())) > 1}


_PLACES = {f"run.{name}" for name in ("name", "storage", "tracking", "experiment", "resume", "parent")}


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Entries by AP, highest first."""
    by_name = {entry.name: entry for entry in entries}
    return [by_name[name] for name in best_first({entry.name: entry.evaluation.ap for entry in entries})]


def differences(entries: Sequence[Entry]) -> dict[tuple[str, str], Interval]:
    """:data:`Differences` of each two entries that were scored on the same images and people."""
    matches = {entry.name: entry.evaluation.matches for entry in entries}
    return bootstrap.differences({name: found for name, found in matches.items() if found is not None})


def as_markdown(entries: Sequence[Entry], minus: Differences) -> str:
    """Markdown tables of the statistics, the costs, and the AP of every keypoint; ``minus``: :func:`differences`."""
    order = ranked(entries)
    costs = [entry.cost.columns() for entry in order]
    rows = [[entry.name, *_cells(entry.cost)] for entry in order]
    keypoints = [
        [name, *(f"{entry.evaluation.keypoint_ap[index]:.3f}" for entry in order)]
        for index, name in enumerate(order[0].evaluation.keypoints)
    ]
    boxes = {entry.name: entry.evaluation.boxes for entry in order if entry.evaluation.boxes}
    box_rows = [
        [name, f"{found.per_person:.2f}", *(short(value) for value in (found.ap, found.ap50, found.ap75))]
        for name, found in boxes.items()
    ]
    lost = losses_table(order)
    lost_rows = [
        [entry.name, *("-" if math.isnan(values[row]) else f"{values[row]:.0f}" for values in lost.values())]
        for row, entry in enumerate(order)
    ]
    return "\n\n".join(
        [
            score_table({entry.name: entry.evaluation for entry in order}, minus),
            table(["run", *costs[0]], rows),
            *([table(["run", BOXES_A_PERSON, "box AP", "box AP50", "box AP75"], box_rows)] if boxes else []),
            *([table(["run", *lost], lost_rows)] if lost else []),
            table(["keypoint AP", *(entry.name for entry in order)], keypoints),
        ]
    )


def _cells(cost: Cost) -> list[str]:
    """The values of a row, with their intervals where they have one."""
    ranges = cost.ranges()
    cells = []
    for name, (value, digits) in cost.columns().items():
        ends = ranges.get(name)
        cells.append(f"{value:.{digits}f}" + (f" ({ends[0]:.{digits}f}..{ends[1]:.{digits}f})" if ends else ""))
    return cells


def score_table(evaluations: Mapping[str, Evaluation], minus: Differences) -> str:
    """Evaluations by name as a Markdown table, highest AP first, the best of every column bold.

    A line below warns where evaluations were not made the same way, since their numbers cannot be compared then.
    """
    best, *others = order = best_first({name: evaluation.ap for name, evaluation in evaluations.items()})
    columns = {key: [evaluation.statistics[key] for evaluation in evaluations.values()] for key in STATISTICS}
    highest = {
        key: max((round(v, 4) for v in values if not math.isnan(v)), default=None) for key, values in columns.items()
    }
    rows = []
    for name in order:
        values = evaluations[name].statistics
        bold = {key: bool(others) and round(values[key], 4) == highest[key] for key in STATISTICS}
        row = [f"**{short(values[key])}**" if bold[key] else short(values[key]) for key in STATISTICS]
        if others:
            found = minus.get((name, best))
            row.append(
                "" if name == best else "-" if found is None else f"{found}{'' if found.certain else ', may be noise'}"
            )
        rows.append([name, *row])
    lines = table(["run", *STATISTICS, *(["AP minus the best"] if others else [])], rows)
    protocols = [str(evaluations[name].protocol) for name in order]
    if len(set(protocols)) == 1:
        brackets = f" In brackets: {CONFIDENCE:.0%} of draws of images with replacement." if others else ""
        return f"{lines}\n\nAll: {protocols[0]}.{brackets}"
    differing = [f"- {name}: {protocol}" for name, protocol in zip(order, protocols, strict=True)]
    return "\n".join([lines, "", "Not made the same way, compare with care:", *differing])


def as_dict(entries: Sequence[Entry]) -> dict[str, Any]:
    """Name -> checkpoint, protocol, metrics and costs, for programs."""
    return {
        entry.name: {
            "checkpoint": entry.checkpoint,
            "protocol": str(entry.evaluation.protocol),
            **entry.evaluation.as_dict(),
            **dataclasses.asdict(entry.cost),
            **({"interruptions": dataclasses.asdict(entry.losses)} if entry.losses else {}),
        }
        for entry in entries
    }
