"""Measures a model's size, operations and time from a decoded image to its poses.

Times of several models are taken in turns (A B A B), so that a machine that becomes slower meanwhile is not mistaken
for a slower model. Every time is a median with an interval, and says how much of the machine other processes used.
"""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import psutil
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.runtime.worker import LocalWorker

CROWDS = (1, 5, 10, 30)
"""Numbers of people in the images on which prediction is timed."""
ROUNDS = 9
"""Times that a model is timed; with 9 the interval of the median leaves out the lowest and the highest."""
BUSY = 0.1
"""Share of the machine's cores from which other processes make a time one that should not be trusted."""
CONFIDENCE = 0.95
"""Probability with which an interval holds the true median."""


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """The time of a model, from several runs."""

    ms: float
    """Median, milliseconds."""
    low: float
    """Lower end of the median's 95 % interval, milliseconds, an order statistic of the runs; of fewer than 6, the
    shortest run."""
    high: float
    """Upper end, milliseconds."""
    busy: float
    """Share of the machine's cores, 0..1, that other processes used meanwhile."""

    @classmethod
    def of(cls, seconds: Sequence[float], busy: float) -> "Timing":
        """From the seconds of each run."""
        ordered = sorted(1e3 * value for value in seconds)
        skip = _left_out(len(ordered))
        return cls(statistics.median(ordered), ordered[skip], ordered[-1 - skip], busy)

    @property
    def warning(self) -> str:
        """A sentence if the machine was busy; empty otherwise."""
        if self.busy < BUSY:
            return ""
        return f"other processes used {self.busy:.0%} of this machine's cores meanwhile, so times are too long"

    def __str__(self) -> str:
        return f"{self.ms:.1f} ms ({self.low:.1f}..{self.high:.1f})"


def _left_out(count: int) -> int:
    """Values at each end of ``count`` sorted ones that the interval of the median leaves out; 0 of few."""
    below = [math.comb(count, i) * 0.5**count for i in range(count)]  # probability that i values are below the median
    return max((n for n in range(count // 2) if 2 * sum(below[: n + 1]) <= 1 - CONFIDENCE), default=0)


class Others:
    """Measures what other processes use of this machine; a context manager."""

    share = 0.0
    """Their share of the machine's cores, 0..1, between the start and the end."""

    def __enter__(self) -> "Others":
        self._before = _used()
        return self

    def __exit__(self, *_: object) -> None:
        wall, machine, own = (now - then for now, then in zip(_used(), self._before, strict=True))
        self.share = min(1.0, max(0.0, machine - own) / max(1e-9, wall * (os.cpu_count() or 1)))


def _used() -> tuple[float, float, float]:
    """Seconds of the clock, of all cores of the machine that were not idle, and of this process and its children."""
    cores, children = psutil.cpu_times(), os.times()
    idle = cores.idle + getattr(cores, "iowait", 0.0)
    guests = getattr(cores, "guest", 0.0) + getattr(cores, "guest_nice", 0.0)  # also in user and nice
    return time.perf_counter(), sum(cores) - idle - guests, sum(children[:4])


def time_in_turns(
    runs: Mapping[str, Callable[[], object]], *, rounds: int = ROUNDS, warm_up: int = 1
) -> dict[str, Timing]:
    """Time each of ``runs`` ``rounds`` times, one after the other, after ``warm_up`` calls that do not count."""
    for _ in range(warm_up):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with Others() as others:
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - start)
    return {name: Timing.of(values, others.share) for name, values in seconds.items()}


def predict_costs(
    model: nn.Module, experiment: Experiment, worker: LocalWorker, *, people: int, repeats: int = 5
) -> dict[str, float]:
    """``parameters``, ``gflops`` and ``predict_ms`` for an image with ``people`` people, named as in ``Cost``.

    Returns:
        Number of parameters, 1e9 floating point operations for the image, median milliseconds of ``repeats`` runs.
    """
    predictor = predictor_of(model, experiment, worker)
    parameters, gflops = model_size(predictor, people)
    times = predict_times({"": predictor}, people, rounds=repeats)
    return {"parameters": float(parameters), "gflops": gflops, "predict_ms": times[""].ms}


def model_size(predictor: Predictor, people: int) -> tuple[int, float]:
    """Number of parameters, and 1e9 floating point operations of predicting an image with ``people`` people."""
    with FlopCounterMode(display=False) as counter:
        predictor.predict_images([_scene(people)])
    return sum(p.numel() for p in predictor.model.parameters()), counter.get_total_flops() / 1e9


def predictor_of(model: nn.Module, experiment: Experiment, worker: LocalWorker) -> Predictor:
    """A predictor without oracles and given detections: the rendered images have no annotations and no ids."""
    settings = dataclasses.replace(experiment.evaluate, oracle_scores=False, oracle_boxes="none", detections="")
    return Predictor(model, dataclasses.replace(experiment, evaluate=settings), device=worker.device)


def predict_times(predictors: Mapping[str, Predictor], people: int, *, rounds: int = ROUNDS) -> dict[str, Timing]:
    """Times, in turns, from a decoded image with ``people`` people to its poses."""
    image = _scene(people)
    # Poses come back on the CPU, so a call waits for the device.
    return time_in_turns(
        {name: partial(one.predict_images, [image]) for name, one in predictors.items()}, rounds=rounds
    )


def _scene(people: int) -> np.ndarray:
    """Rendered image, (256, 256, 3) uint8; the same number of people always gives the same image."""
    scale = min(0.9, 2.0 / people**0.5)
    config = SceneConfig(people=(people, people), scale=(0.6 * scale, scale), crowd_rate=0.0, unlabelled_rate=0.0)
    return render_scene(config, people)[0]
