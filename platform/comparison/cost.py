"""Measures what a method costs: parameters, operations, training speed and prediction time."""

import copy
import itertools
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from posefleet.data.loading.loader import training_batches
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.latency import CROWDS, ROUNDS, Others, model_size, predict_times, predictor_of
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import training_set
from posefleet.platform.training.optim import build_optimizer, build_scaler
from posefleet.platform.training.step import train_step

TRAINING_ROUNDS = 3
"""Times that each model's training is timed, in turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a model takes, measured on the device and in the precision of its run."""

    parameters: int
    gflops: float
    """Operations of predicting one image of the evaluation size, 10^9 multiplications and additions; convolutions and
    matrix products only."""
    train_images_per_second: float
    """Images that one worker trains on in a second."""
    predict_ms: dict[int, float]
    """People in the image -> median milliseconds from the decoded image to its poses."""
    predict_range: dict[int, tuple[float, float]] = field(default_factory=dict)
    """People in the image -> the 95 % interval of that median, milliseconds."""
    busy: float = 0.0
    """Share of the machine's cores, 0..1, that other processes used while times were measured."""

    def ranges(self) -> dict[str, tuple[float, float]]:
        """Heading of a column -> the interval of its value, for the columns that have one."""
        return {_heading(n): ends for n, ends in self.predict_range.items()}

    def columns(self) -> dict[str, tuple[float, int]]:
        """Heading of a table's column -> value, and the number of decimals that it is shown with."""
        times = {_heading(n): (self.predict_ms[n], 0) for n in CROWDS}
        return {
            "parameters, M": (self.parameters / 1e6, 2),
            "GFLOPs": (self.gflops, 2),
            "training images/s": (self.train_images_per_second, 1),
            **times,
        }


NOT_MEASURED = Cost(parameters=0, gflops=0.0, train_images_per_second=0.0, predict_ms={})
"""The cost of a run that was scored and not yet timed."""


def _heading(people: int) -> str:
    return f"ms, {people} {'people' if people > 1 else 'person'}"


def measure(
    models: Mapping[str, tuple[nn.Module, Experiment]], worker: LocalWorker, *, repeats: int = ROUNDS
) -> dict[str, Cost]:
    """Measure models, which are not changed, in turns; times are medians of ``repeats`` predictions."""
    predictors = {name: predictor_of(model, experiment, worker) for name, (model, experiment) in models.items()}
    sizes = {name: model_size(predictor, CROWDS[0]) for name, predictor in predictors.items()}
    times = {people: predict_times(predictors, people, rounds=repeats) for people in CROWDS}
    speeds: dict[str, list[float]] = {name: [] for name in models}
    with Others() as others:
        for _ in range(TRAINING_ROUNDS):
            for name, (model, experiment) in models.items():
                speeds[name].append(train_speed(copy.deepcopy(model), experiment, worker))
    return {
        name: Cost(
            parameters=sizes[name][0],
            gflops=sizes[name][1],
            train_images_per_second=statistics.median(speeds[name]),
            predict_ms={people: found[name].ms for people, found in times.items()},
            predict_range={people: (found[name].low, found[name].high) for people, found in times.items()},
            busy=max(others.share, *(found[name].busy for found in times.values())),
        )
        for name in models
    }


def train_speed(model: nn.Module, experiment: Experiment, worker: LocalWorker, *, steps: int = 3) -> float:
    """Images per second that one worker trains ``model`` on, by the median time of ``steps``; changes the weights."""
    precision = experiment.train.precision
    optimizer = build_optimizer(model.train(), experiment.optim, precision=precision)
    scaler = build_scaler(precision, worker.device)
    size, seconds = experiment.data.batch_size, []
    with _worker_threads(experiment), training_batches(training_set(experiment), batch_size=size) as batches:
        for batch in itertools.islice(batches, steps + 2):  # two warm up
            start = time.perf_counter()
            losses, _ = train_step(
                model,
                [batch.to(worker.device)],
                optimizer,
                clip_norm=experiment.optim.clip_norm,
                precision=precision,
                scaler=scaler,
            )
            sum(losses.values()).item()  # type: ignore[union-attr]  # waits for the device
            seconds.append(time.perf_counter() - start)
    return size / statistics.median(seconds[2:])


@contextmanager
def _worker_threads(experiment: Experiment) -> Iterator[None]:
    """Gives torch as many threads as a worker of the experiment has, while the context lasts."""
    before = torch.get_num_threads()
    if experiment.scaling.num_workers:
        torch.set_num_threads(experiment.scaling.threads_per_worker)
    try:
        yield
    finally:
        torch.set_num_threads(before)
