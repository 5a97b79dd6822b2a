"""Trainings that are to be compared: on one budget of epochs or of minutes, one after the other."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from posefleet.data.shards.layout import read_manifest
from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.comparison.cost import train_speed
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.launch import train

STOPPED = 130
"""Status of a training that a signal stopped: the others are not wanted either."""


def budgeted(
    experiments: Mapping[str, Experiment], *, epochs: float | None = None, minutes: float | None = None
) -> dict[str, Experiment]:
    """Every experiment with the epochs that its budget allows; unchanged where there is none."""
    if epochs is None and minutes is None:
        return dict(experiments)
    if epochs is not None:
        return {name: with_epochs(experiment, epochs) for name, experiment in experiments.items()}
    assert minutes is not None
    return {name: with_epochs(e, epochs_of(name, e, minutes)) for name, e in experiments.items()}


def epochs_of(name: str, experiment: Experiment, minutes: float) -> float:
    """That fit in some minutes, by the time of some steps; a run that was begun keeps those that it began with."""
    if meta := latest_meta(folder_of(experiment)):
        return meta.experiment.train.epochs
    worker = LocalWorker()
    speed = train_speed(build_model(experiment).to(worker.device), experiment, worker)
    images = minutes * 60 * speed * max(1, experiment.scaling.num_workers)
    epochs = images / read_manifest(experiment.data.train).labelled
    sys.stderr.write(f"{name}: {speed:.1f} images/s a worker, so {minutes:g} minutes are {epochs:.2f} epochs\n")
    return epochs


def with_epochs(experiment: Experiment, epochs: float) -> Experiment:
    """The learning-rate schedule keeps its shape."""
    optim, factor = experiment.optim, epochs / experiment.train.epochs
    optim = dataclasses.replace(optim, milestones=tuple(milestone * factor for milestone in optim.milestones))
    return dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, epochs=epochs))


def train_all(experiments: Mapping[str, Experiment]) -> bool:
    """Train what is not finished; a run that failed does not keep the others from being trained."""
    failed, waiting = [], [name for name, experiment in experiments.items() if not finished(experiment)]
    for number, name in enumerate(waiting, start=1):
        sys.stderr.write(f"\n== training {name} ({number} of {len(waiting)})\n")
        if status := train(experiments[name]):
            failed.append(f"{name} (status {status})")
        if status == STOPPED:
            break
    if failed:
        sys.stderr.write(f"error: these trainings did not finish: {', '.join(failed)}; the same command goes on\n")
    return not failed


def folder_of(experiment: Experiment) -> str:
    """Where the experiment's run is kept, if it has a name."""
    return f"{experiment.run.storage}/{experiment.run.name}"


def latest_meta(run: str) -> Meta | None:
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
    if not (meta := latest_meta(folder)):
        return False
    before, now = _training_settings(meta.experiment), _training_settings(experiment)
    if different := [name for name in now if before[name] != now[name]]:
        raise ValueError(
            f"{folder} was trained with other settings: {', '.join(different)}; choose another folder for this"
        )
    return "AP" in meta.metrics


def _training_settings(experiment: Experiment) -> dict[str, Any]:
    """All that decides about the weights, by dotted name."""
    sections = {name: getattr(experiment, name) for name in ("model", "data", "optim", "train")}
    settings = {
        f"{name}.{f.name}": getattr(section, f.name)
        for name, section in sections.items()
        for f in dataclasses.fields(section)
    }
    settings |= {"seed": experiment.seed, "images a step": experiment.images_per_step}
    return {name: value for name, value in settings.items() if name not in _NOT_OF_TRAINING}


_NOT_OF_TRAINING = {"data.eval", "data.eval_batch_size", "data.loaders", "train.log_every", "train.keep_checkpoints"}
