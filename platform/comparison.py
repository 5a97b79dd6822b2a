"""Methods side by side: the AP of finished runs on one split, and what each method costs."""

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from posefleet.data.evaluation.bootstrap import Interval
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.loading.loader import training_batches
from posefleet.data.shards.layout import read_manifest
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import to_dict
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.latency import CROWDS, _predictor, costs, predict_ms
from posefleet.platform.loop import training_set
from posefleet.platform.optim import build_optimizer
from posefleet.platform.runtime.paths import resolve_path
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.step import train_step
from posefleet.platform.tracking.runs import flatten
from posefleet.platform.visualization.report import ap_differences, best_first, comparison_table
from posefleet.platform.visualization.tables import table


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a model takes, on the device and in the precision of its run."""

    parameters: int
    gflops: float
    """Of predicting one image of the evaluation size, 10^9 multiplications and additions, convolutions and matrix
    products only."""
    train_images_per_second: float
    """Of one worker."""
    predict_ms: dict[int, float]
    """People in the image -> milliseconds from decoded image to poses, median."""


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


def folder_of(experiment: Experiment) -> str:
    """Where the experiment's run is kept, if it has a name."""
    return f"{experiment.run.storage}/{experiment.run.name}"


def begun(run: str) -> Meta | None:
    """What the best or latest checkpoint of a run says, or None where there is none yet."""
    try:
        return read_meta(find_checkpoint(run))
    except CheckpointError:
        return None


def finished(experiment: Experiment) -> bool:
    """Whether the experiment's run was trained to its end, so that it was evaluated.

    Raises:
        ValueError: There is a run of that name with other settings.
    """
    folder = folder_of(experiment)
    if not (meta := begun(folder)):
        return False
    before, now = _training_settings(meta.experiment), _training_settings(experiment)
    if different := [name for name in now if before[name] != now[name]]:
        raise ValueError(
            f"{folder} was trained with other settings: {', '.join(different)}; choose another folder for this"
        )
    return "AP" in meta.metrics


def _training_settings(experiment: Experiment) -> dict[str, Any]:
    """All that decides about the weights, by dotted name."""
    data = dataclasses.replace(experiment.data, train=resolve_path(experiment.data.train))
    sections = {"model": experiment.model, "data": data, "optim": experiment.optim, "train": experiment.train}
    settings = {
        f"{name}.{f.name}": getattr(section, f.name)
        for name, section in sections.items()
        for f in dataclasses.fields(section)
    }
    settings |= {"seed": experiment.seed, "images a step": experiment.images_per_step}
    return {name: value for name, value in settings.items() if name not in _NOT_OF_TRAINING}


_NOT_OF_TRAINING = {"data.eval", "data.eval_batch_size", "data.loaders", "train.log_every", "train.keep_checkpoints"}


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
        resolve_path(experiment.data.eval),
    )
    if alike and "AP" in meta.metrics:
        return meta.metrics
    model, _ = load_model(checkpoint, experiment=experiment)
    result = evaluate(model.to(worker.device), experiment, worker)
    assert result is not None, "scores are taken in one process"
    return result.as_dict()


def examine(
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
    scored_on = resolve_path(data or experiment.data.eval)
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


def measure(model: nn.Module, experiment: Experiment, worker: LocalWorker, *, repeats: int = 5) -> Cost:
    """Parameters, operations and times of a model."""
    first = costs(model, experiment, worker, people=CROWDS[0], repeats=repeats)
    predictor = _predictor(model, experiment, worker)
    later = {people: predict_ms(predictor, people, repeats=repeats) for people in CROWDS[1:]}
    return Cost(
        parameters=int(first["parameters"]),
        gflops=first["gflops"],
        train_images_per_second=train_speed(copy.deepcopy(model), experiment, worker),
        predict_ms={CROWDS[0]: first["predict_ms"], **later},
    )


def train_speed(model: nn.Module, experiment: Experiment, worker: LocalWorker, *, steps: int = 6) -> float:
    """Images per second of one worker that trains ``model`` (which this changes); the median of some steps."""
    optimizer, size, seconds = build_optimizer(model.train(), experiment.optim), experiment.data.batch_size, []
    with worker_threads(experiment), training_batches(training_set(experiment), batch_size=size) as batches:
        for batch in itertools.islice(batches, steps + 2):  # two warm up
            start = time.perf_counter()
            losses, _ = train_step(
                model,
                [batch.to(worker.device)],
                optimizer,
                clip_norm=experiment.optim.clip_norm,
                bfloat16=experiment.train.precision == "bfloat16",
            )
            sum(losses.values()).item()  # type: ignore[union-attr]  # waits for the device
            seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds[2:])


@contextmanager
def worker_threads(experiment: Experiment) -> Iterator[None]:
    """As many threads as a worker of the experiment has, while the context lasts."""
    before = torch.get_num_threads()
    if experiment.scaling.num_workers:
        torch.set_num_threads(experiment.scaling.threads_per_worker)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_data(experiments: Mapping[str, Experiment]) -> str:
    """Why the experiments must not be compared as they are: they were trained on different data. Empty if not."""
    seen = {name: read_manifest(resolve_path(e.data.train)).fingerprint[:12] for name, e in experiments.items()}
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
    """See :func:`posefleet.platform.visualization.report.ap_differences`."""
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
