"""Methods side by side: the AP of finished runs on one split, and what each method costs."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posefleet.data.evaluation.bootstrap import Interval
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.shards.layout import read_manifest
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import Meta, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.comparison.cost import Cost, measure
from posefleet.platform.comparison.figures import ap_differences, best_first, comparison_table
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_dict
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.latency import CROWDS
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking.runs import flatten
from posefleet.platform.visualization.tables import table


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One row of a comparison."""

    name: str
    checkpoint: str
    meta: Meta
    """Of the checkpoint."""
    experiment: Experiment
    """As it was scored: the checkpoint's own, perhaps on other data or decoded in another way."""
    data: str
    """Fingerprint of what it was scored on."""
    evaluation: Evaluation
    poses: Mapping[int, Poses]
    """Image id -> poses, in pixels of the original images."""
    cost: Cost


def scores(run: str, experiment: Experiment, worker: LocalWorker) -> dict[str, float]:
    """The metrics of a run's best checkpoint under an experiment that may predict in another way than the run's own.

    They are those in the checkpoint where it was evaluated like that.
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
    assert result is not None, "scores are taken in one process"
    return result.as_dict()


def score_run(
    name: str,
    run: str,
    worker: LocalWorker,
    *,
    data: str = "",
    experiment: Experiment | None = None,
    repeats: int = 5,
) -> Entry:
    """Score and time the best checkpoint of a run.

    Args:
        name: What to call it.
        run: Folder of the run, or a checkpoint.
        worker: Gives the device.
        data: Shards to score on; empty: those the run was evaluated on.
        experiment: Predicts in another way than the run's own; the method and its weights must agree.
        repeats: Timed predictions for each number of people.

    Raises:
        CheckpointError: There is no checkpoint.
        DataError: The shards cannot be used.
        ValueError: The run was evaluated on nothing, and ``data`` is empty.
    """
    checkpoint = find_checkpoint(run)
    meta = read_meta(checkpoint)
    experiment = experiment or meta.experiment
    scored_on = resolve_path(data) if data else experiment.data.eval
    if not scored_on:
        raise ValueError(f"{name} ({run}) was evaluated on nothing; say on what to score it with --eval SHARDS")
    experiment = _replaced(experiment, eval=scored_on)
    model, _ = load_model(checkpoint, experiment=experiment)
    poses: dict[int, Poses] = {}
    result = evaluate(model.to(worker.device), experiment, worker, keep=poses.update)
    assert result is not None, "a comparison runs in one process"
    return Entry(
        name=name,
        checkpoint=checkpoint,
        meta=meta,
        experiment=experiment,
        data=read_manifest(scored_on).fingerprint,
        evaluation=result,
        poses=poses,
        cost=measure(model, experiment, worker, repeats=repeats),
    )


def same_data(experiments: Mapping[str, Experiment]) -> str:
    """Why the experiments must not be compared as they are: they were trained on different data. Empty if not."""
    seen = {name: read_manifest(e.data.train).fingerprint[:12] for name, e in experiments.items()}
    if len(set(seen.values())) == 1:
        return ""
    return "trained on different data: " + ", ".join(f"{name} {mark}" for name, mark in seen.items())


def differing_settings(experiments: Mapping[str, Experiment]) -> dict[str, dict[str, str]]:
    """Dotted name -> run -> value, of settings that are not the same in all runs; where a run keeps its files is none.

    A run whose method has no such setting is not there.
    """
    flat = {run: flatten(to_dict(experiment)) for run, experiment in experiments.items()}
    names = dict.fromkeys(name for settings in flat.values() for name in settings if name not in _WHERE)
    found = {name: {run: settings[name] for run, settings in flat.items() if name in settings} for name in names}
    return {name: values for name, values in found.items() if len(values) < len(flat) or len(set(values.values())) > 1}


_WHERE = {f"run.{name}" for name in ("name", "storage", "tracking", "experiment", "resume", "parent")}


def ranked(entries: Sequence[Entry]) -> list[Entry]:
    """Best AP first."""
    by_name = {entry.name: entry for entry in entries}
    return [by_name[name] for name in best_first({entry.name: entry.evaluation.ap for entry in entries})]


def differences(entries: Sequence[Entry]) -> dict[tuple[str, str], Interval]:
    """See :func:`posefleet.platform.comparison.figures.ap_differences`."""
    return ap_differences({entry.name: entry.evaluation for entry in entries})


def as_markdown(entries: Sequence[Entry], minus: Mapping[tuple[str, str], Interval]) -> str:
    """AP by AP's kinds and by keypoint, and the costs, as tables; ``minus`` is what :func:`differences` found."""
    scores = comparison_table({entry.name: entry.evaluation for entry in entries}, minus)
    order = ranked(entries)
    crowds = [f"ms, {people} people" if people > 1 else "ms, 1 person" for people in CROWDS]
    head = ["run", "parameters, M", "GFLOPs", "training images/s", *crowds]
    rows = [
        [
            entry.name,
            f"{entry.cost.parameters / 1e6:.2f}",
            f"{entry.cost.gflops:.2f}",
            f"{entry.cost.train_images_per_second:.1f}",
            *(f"{entry.cost.predict_ms[people]:.0f}" for people in CROWDS),
        ]
        for entry in order
    ]
    names = order[0].evaluation.keypoints
    keypoints = [
        [name, *(f"{entry.evaluation.keypoint_ap[index]:.3f}" for entry in order)] for index, name in enumerate(names)
    ]
    return "\n\n".join([scores, table(head, rows), table(["keypoint AP", *(entry.name for entry in order)], keypoints)])


def as_dict(entries: Sequence[Entry]) -> dict[str, Any]:
    """Everything a table shows, by name, for programs."""
    return {
        entry.name: {
            "checkpoint": entry.checkpoint,
            "protocol": str(entry.evaluation.protocol),
            **entry.evaluation.as_dict(),
            **dataclasses.asdict(entry.cost),
        }
        for entry in entries
    }


def _replaced(experiment: Experiment, **data: Any) -> Experiment:
    return dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, **data))
