"""What a training of each method by its paper's recipe takes: counted, not trained.

    python tests/bench/bench_paper.py [--methods smpr pfs] [--utilisation 0.15]

One step on an image of the recipe's size counts the FLOPs of forward and backward pass (convolutions and matrix
products; a multiplication and an addition are two), writes the checkpoint that follows it, and counts the gradients
that workers exchange. Then, how long one core takes to make an input of a JPEG, in CPU seconds. A minute on two cores.

The last table is computed from these, for GPUs that were not there: NVIDIA's H100 SXM (989 dense bfloat16 TFLOP/s; the
H200 has as many), of which --utilisation is assumed to be reached, one node of eight on the recipe's batch. Each GPU
then sends 2 x 7/8 of the gradients in every step (ring all-reduce).
"""

import argparse
import dataclasses
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import torch
from bench_ingest import stored_samples, write_shards
from methods import paint_scene
from torch.utils.flop_counter import FlopCounterMode

from posefleet.models import available_methods
from posefleet.platform.checkpoints.format import STATE, WEIGHTS
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment, read_yaml
from posefleet.platform.training.ema import AveragedWeights
from posefleet.platform.training.loop import training_set
from posefleet.platform.training.optim import build_optimizer
from posefleet.platform.training.state import TrainingState
from posefleet.platform.visualization.tables import table

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
PEOPLE = 3
ASPECT = 4 / 3

GPUS = 8
"""That share a step's images: a node."""
PEAK = 989e12
"""FLOP/s of an H100 SXM in bfloat16, dense, as NVIDIA states them."""
PHOTOGRAPHS, PHOTOGRAPH_BYTES = 56_599, 163_000
"""COCO's train2017: images with a labelled keypoint, which are those trained on, and bytes of an image in the mean."""
LARGE = 1_000_000_000
"""Images of the other data set that is computed for, seen once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=available_methods(), default=available_methods())
    parser.add_argument("--utilisation", type=float, default=0.15, help="assumed share of the peak (default: 0.15)")
    args = parser.parse_args()
    recipes = {method: recipe(method) for method in args.methods}
    steps = {method: counted(experiment) for method, experiment in recipes.items()}
    print("counted")
    head = ["method", "parameters, M", "training px", "GFLOPs an image"]
    head += ["gradients MB", "weights MB", "state MB"]
    print(table(head, [[method, *step.shown()] for method, step in steps.items()]))
    size, seconds = decoding(recipes)
    print(f"\nmeasured: JPEGs of {size / 1000:.0f} kB, 640 x 480")
    rows = [[method, f"{1000 * each:.1f}", f"{1 / each:.0f}"] for method, each in seconds.items()]
    print(table(["method", "CPU ms an input", "inputs/s of a core"], rows))
    print(f"\ncomputed, at {args.utilisation:.0%} of an H100's peak")
    head = ["method", "images a step", "epochs", "EFLOPs on COCO", "GPU hours on COCO", "images/s of a GPU"]
    head += ["cores a GPU", "MB/s read a GPU", "gradients GB/s a GPU", "GPU days for 10^9"]
    rows = [[m, *computed(e, steps[m], seconds[m], args.utilisation)] for m, e in recipes.items()]
    print(table(head, rows))


class Step(NamedTuple):
    """What a step is made of."""

    parameters: float
    pixels: int
    """Along a side of the square that was trained on."""
    training_flops: float
    """Of an image, forward and backward."""
    gradient_bytes: float
    """Exchanged by every worker in every step."""
    weight_bytes: float
    state_bytes: float

    def shown(self) -> list[str]:
        sizes = [f"{value / 1e6:.0f}" for value in (self.gradient_bytes, self.weight_bytes, self.state_bytes)]
        return [f"{self.parameters / 1e6:.1f}", str(self.pixels), f"{self.training_flops / 1e9:.0f}", *sizes]


def computed(experiment: Experiment, step: Step, decode: float, utilisation: float) -> list[str]:
    """What that comes to on GPUs."""
    images = experiment.optim.lr_batch
    speed = utilisation * PEAK / step.training_flops
    flops = experiment.train.epochs * PHOTOGRAPHS * step.training_flops
    return [
        str(images),
        f"{experiment.train.epochs:g}",
        f"{flops / 1e18:.1f}",
        f"{flops / (utilisation * PEAK) / 3600:.0f}",
        f"{speed:.0f}",
        f"{speed * decode:.1f}",
        f"{speed * PHOTOGRAPH_BYTES / 1e6:.0f}",
        f"{speed * GPUS / images * 2 * (1 - 1 / GPUS) * step.gradient_bytes / 1e9:.1f}",
        f"{LARGE / speed / 86400:.0f}",
    ]


def recipe(method: str) -> Experiment:
    """The shipped config, jobs/configs/METHOD.yaml or inspose_paper.yaml."""
    name = "inspose_paper" if method == "inspose" else method
    return build_experiment(read_yaml(CONFIGS / f"{name}.yaml"))


def side(experiment: Experiment) -> int:
    """Pixels of a square of as many pixels as a training image has, a multiple of 32."""
    data = experiment.data
    pixels = data.augment.crop or data.resize.short_side * ASPECT**0.5
    return round(pixels / 32) * 32


def counted(experiment: Experiment) -> Step:
    """Take one step, and look."""
    model, pixels = build_model(experiment, pretrained=False), side(experiment)
    optimizer = build_optimizer(model.train(), experiment.optim)
    scene = paint_scene(PEOPLE, pixels)
    with FlopCounterMode(display=False) as counter:
        losses: dict[str, Any] = model(scene.image, [scene.people])
        torch.stack(list(losses.values())).sum().backward()
    gradients = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    average = AveragedWeights(model, experiment.train.ema_decay) if experiment.train.ema_decay else None
    with tempfile.TemporaryDirectory() as folder:
        state = TrainingState(model, optimizer, average)
        checkpoint = Path(state.save(CheckpointStore(folder), experiment, {}))
        weights, rest = ((checkpoint / file).stat().st_size for file in (WEIGHTS, STATE))
    return Step(
        parameters=sum(p.numel() for p in model.parameters()),
        pixels=pixels,
        training_flops=counter.get_total_flops(),
        gradient_bytes=4 * gradients,
        weight_bytes=weights,
        state_bytes=rest,
    )


def decoding(recipes: dict[str, Experiment], seconds: float = 3.0) -> tuple[float, dict[str, float]]:
    """Bytes of a JPEG, and CPU seconds from its bytes in a shard to an augmented input, in this process."""
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    samples, found = stored_samples(None), {}
    with tempfile.TemporaryDirectory() as folder:
        write_shards(folder, samples)
        for method, experiment in recipes.items():
            dataset = training_set(
                dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, train=folder))
            )
            dataset.samples([0])
            start, cpu = time.perf_counter(), time.process_time()
            for position in itertools.count(1):
                dataset.samples([position])
                if time.perf_counter() - start > seconds:
                    break
            found[method] = (time.process_time() - cpu) / position
    return sum(len(data) for _, data, _ in samples) / len(samples), found


if __name__ == "__main__":
    main()
