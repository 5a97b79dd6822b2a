"""Trains experiments that are to be compared, one after the other, each for the same number of epochs or minutes."""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_meta
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.comparison.cost import train_speed
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.sources import samples
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.launch import train

STOPPED = 130
"""Exit status of a training that a signal stopped; the trainings after it are not started."""


def budgeted(
    experiments: Mapping[str, Experiment],
    *,
    epochs: float | None = None,
    minutes: float | None = None,
    lengths: Mapping[str, float] | None = None,
) -> dict[str, Experiment]:
    """The experiments by name, each with the epochs that the budget allows.

    Args:
        epochs: Epochs of each training. Default: those of the experiment.
        minutes: Instead, minutes of each training.
        lengths: Factor on epochs or minutes by name; 1 if absent.
    """
    result = {}
    for name, experiment in experiments.items():
        length = (lengths or {}).get(name, 1.0)
        if minutes is not None:
            wanted = _epochs_in(minutes * length, name, experiment)
        else:
            wanted = (experiment.train.epochs if epochs is None else epochs) * length
        result[name] = experiment if wanted == experiment.train.epochs else _with_epochs(experiment, wanted)
    return result


def _epochs_in(minutes: float, name: str, experiment: Experiment) -> float:
    """Epochs that fit into ``minutes``, from the measured time of a few steps; a run that exists keeps its epochs."""
    if meta := _latest_meta(folder_of(experiment)):
        return meta.experiment.train.epochs
    worker = LocalWorker()
    speed = train_speed(build_model(experiment).to(worker.device), experiment, worker)
    images = minutes * 60 * speed * max(1, experiment.scaling.num_workers)
    epochs = images / samples(experiment.data.train, labelled_only=True)
    sys.stderr.write(f"{name}: {speed:.1f} images/s per worker, so {minutes:g} minutes are {epochs:.2f} epochs\n")
    return epochs


def _with_epochs(experiment: Experiment, epochs: float) -> Experiment:
    """Scales the milestones with the epochs, so that the learning-rate schedule keeps its shape."""
    optim, factor = experiment.optim, epochs / experiment.train.epochs
    optim = dataclasses.replace(optim, milestones=tuple(milestone * factor for milestone in optim.milestones))
    return dataclasses.replace(experiment, optim=optim, train=dataclasses.replace(experiment.train, epochs=epochs))


def train_all(experiments: Mapping[str, Experiment]) -> bool:
    """Train every experiment whose run is not finished, the others too after one failed; False if any failed."""
    failed, waiting = [], [name for name, experiment in experiments.items() if not finished(experiment)]
    for number, name in enumerate(waiting, start=1):
        sys.stderr.write(f"\n== training {name} ({number} of {len(waiting)})\n")
        if status := train(experiments[name]):
            failed.append(f"{name} (status {status})")
        if status == STOPPED:
            break
    if failed:
        sys.stderr.write(
            f"error: these trainings did not finish: {', '.join(failed)}; run the same command again to go on\n"
        )
    return not failed


def folder_of(experiment: Experiment) -> str:
    """Folder of the experiment's run, which must have a name."""
    return f"{experiment.run.storage}/{experiment.run.name}"


def _latest_meta(run: str) -> Meta | None:
    """Metadata of a run's best or latest checkpoint; None if there is none yet."""
    try:
        return read_meta(find_checkpoint(run))
    except CheckpointError:
        return None


def finished(experiment: Experiment) -> bool:
    """Whether the experiment's run was trained to its end, where it is evaluated.

    Raises:
        ValueError: There is a run of that name with other settings.
    """
    folder = folder_of(experiment)
    if not (meta := _latest_meta(folder)):
        return False
    before, now = _training_settings(meta.experiment), _training_settings(experiment)
    if different := [name for name in now if before[name] != now[name]]:
        raise ValueError(
            f"{folder} was trained with other settings: {', '.join(different)}; choose another folder for this"
        )
    return "AP" in meta.metrics


def _training_settings(experiment: Experiment) -> dict[str, Any]:
    """Dotted name -> value, of every setting that changes the trained weights."""
    sections = {name: getattr(experiment, name) for name in ("model", "data", "optim", "train")}
    settings = {
        f"{name}.{f.name}": getattr(section, f.name)
        for name, section in sections.items()
        for f in dataclasses.fields(section)
    }
    settings |= {"seed": experiment.seed, "images a step": experiment.images_per_step}
    return {name: value for name, value in settings.items() if name not in _NOT_OF_TRAINING}


_NOT_OF_TRAINING = {"data.eval", "data.eval_batch_size", "data.loaders", "train.log_every", "train.keep_checkpoints"}
