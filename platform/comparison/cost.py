"""Measures what a method costs: parameters, operations, training speed and prediction time."""

import copy
import itertools
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from posefleet.data.loading.loader import training_batches
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.latency import CROWDS, predict_costs, predict_ms, predictor_of
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import training_set
from posefleet.platform.training.optim import build_optimizer
from posefleet.platform.training.step import train_step


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

    def columns(self) -> dict[str, tuple[float, int]]:
        """Heading of a table's column -> value, and the number of decimals that it is shown with."""
        times = {f"ms, {n} {'people' if n > 1 else 'person'}": (self.predict_ms[n], 0) for n in CROWDS}
        return {
            "parameters, M": (self.parameters / 1e6, 2),
            "GFLOPs": (self.gflops, 2),
            "training images/s": (self.train_images_per_second, 1),
            **times,
        }


def measure(model: nn.Module, experiment: Experiment, worker: LocalWorker, *, repeats: int = 5) -> Cost:
    """Measure a model, which is not changed; times are medians of ``repeats`` predictions."""
    first = predict_costs(model, experiment, worker, people=CROWDS[0], repeats=repeats)
    predictor = predictor_of(model, experiment, worker)
    later = {people: predict_ms(predictor, people, repeats=repeats) for people in CROWDS[1:]}
    return Cost(
        parameters=int(first["parameters"]),
        gflops=first["gflops"],
        train_images_per_second=train_speed(copy.deepcopy(model), experiment, worker),
        predict_ms={CROWDS[0]: first["predict_ms"], **later},
    )


def train_speed(model: nn.Module, experiment: Experiment, worker: LocalWorker, *, steps: int = 6) -> float:
    """Images per second that one worker trains ``model`` on, by the median time of ``steps``; changes the weights."""
    optimizer, size, seconds = build_optimizer(model.train(), experiment.optim), experiment.data.batch_size, []
    with _worker_threads(experiment), training_batches(training_set(experiment), batch_size=size) as batches:
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
def _worker_threads(experiment: Experiment) -> Iterator[None]:
    """Gives torch as many threads as a worker of the experiment has, while the context lasts."""
    before = torch.get_num_threads()
    if experiment.scaling.num_workers:
        torch.set_num_threads(experiment.scaling.threads_per_worker)
    try:
        yield
    finally:
        torch.set_num_threads(before)
