"""Measures a model's size, operations and time from a decoded image to its poses."""

import dataclasses
import statistics
import time

import numpy as np
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from posefleet.data.synthetic.scenes import SceneConfig, render_scene
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.runtime.worker import LocalWorker

CROWDS = (1, 5, 10, 30)
"""Numbers of people in the images on which prediction is timed."""


def predict_costs(
    model: nn.Module, experiment: Experiment, worker: LocalWorker, *, people: int, repeats: int = 5
) -> dict[str, float]:
    """``parameters``, ``gflops`` and ``predict_ms`` for an image with ``people`` people, named as in ``Cost``.

    Returns:
        Number of parameters, 1e9 floating point operations for the image, median milliseconds of ``repeats`` runs.
    """
    predictor = predictor_of(model, experiment, worker)
    with FlopCounterMode(display=False) as counter:
        predictor.predict_images([_scene(people)])
    return {
        "parameters": float(sum(p.numel() for p in model.parameters())),
        "gflops": counter.get_total_flops() / 1e9,
        "predict_ms": predict_ms(predictor, people, repeats=repeats),
    }


def predictor_of(model: nn.Module, experiment: Experiment, worker: LocalWorker) -> Predictor:
    """A predictor without oracles and given detections: the rendered images have no annotations and no ids."""
    settings = dataclasses.replace(experiment.evaluate, oracle_scores=False, oracle_boxes="none", detections="")
    return Predictor(model, dataclasses.replace(experiment, evaluate=settings), device=worker.device)


def predict_ms(predictor: Predictor, people: int, *, repeats: int = 5) -> float:
    """Median milliseconds, over ``repeats`` runs, from a decoded image with ``people`` people to its poses."""
    image, seconds = _scene(people), []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        predictor.predict_images([image])  # poses come back on the CPU, so this waits for the device
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds[1:])


def _scene(people: int) -> np.ndarray:
    """Rendered image, (256, 256, 3) uint8; the same number of people always gives the same image."""
    scale = min(0.9, 2.0 / people**0.5)
    config = SceneConfig(people=(people, people), scale=(0.6 * scale, scale), crowd_rate=0.0, unlabelled_rate=0.0)
    return render_scene(config, people)[0]
