"""Whether SMPR's second stage stays alive: ``keep_best`` image or assigned, with GroupNorm in the alignment or without.

    python tests/bench/bench_alignment.py [--steps 300] [--seeds 3] [--batch 8]

Trains SMPR with the released head at small scale (EfficientNet-Lite0, 64 channels, towers of 2, rendered people of 128
px), four settings and every seed. Prints the share of aligned regression features of P3 above zero over the steps (0
means that the second stage and the pose score get no gradient any more), the AP of the refined and of the initial poses
on held-out scenes, and of both the lowest and highest seed. About 4 minutes on one core for each training of 300 steps.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from small_trainings import BACKBONE, Scenes, optimise, scenes, score
from torch import Tensor

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.parts.regression.pose_head import PoseHeadConfig
from posefleet.models.smpr.config import AssignConfig, Config
from posefleet.models.smpr.model import Model
from posefleet.platform.visualization.tables import table

SETTINGS = tuple(itertools.product(("assigned", "image"), ("gn", "none")))
"""``keep_best`` and ``align_norm``."""
SHOWN = (1, 5, 15, 30, 60, 100, 200, 300, 500, 1000)
"""Steps after which the share is shown."""


class Trained(NamedTuple):
    """What one training gave."""

    alive: Mapping[int, float]
    """Step -> share of aligned features above zero."""
    refined: float
    """AP of the refined poses, 0..1."""
    initial: float
    """AP of the initial poses, 0..1."""
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each run (default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting (default: 3)")
    parser.add_argument("--batch", type=int, default=8, help="images of a step (default: 8)")
    parser.add_argument("--images", type=int, default=400, help="rendered scenes to train on (default: 400)")
    parser.add_argument("--held-out", type=int, default=100, help="rendered scenes to score on (default: 100)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen, held_out = scenes(args.images, 0), scenes(args.held_out, 1_000_000)
    found: dict[tuple[str, str], list[Trained]] = {}
    for seed in range(args.seeds):
        for keep_best, align_norm in SETTINGS:
            result = train(keep_best, align_norm, seed, seen, held_out, args.steps, args.batch)
            found.setdefault((keep_best, align_norm), []).append(result)
            print(f"seed {seed}, {keep_best}, {align_norm}: {result}", flush=True)
    print("\n" + summary(found))


def train(
    keep_best: str, align_norm: str, seed: int, seen: Scenes, held_out: Scenes, steps: int, batch: int
) -> Trained:
    """Train one setting with AdamW and a cosine schedule, then score both poses of its network."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    config = Config(
        backbone=BACKBONE,
        neck="fpn",
        head=PoseHeadConfig(channels=64, tower_depth=2, heatmap_channels=64, align_norm=align_norm),
        assign=AssignConfig(keep_best=keep_best),
    )
    model = Model(config, COCO17).train()
    alive: dict[int, float] = {}

    def look(step: int, losses: Mapping[str, Tensor]) -> None:
        if step in SHOWN or step == steps:
            alive[step] = float(model.diagnostics["alive"])

    optimise(model, seen, steps=steps, batch=batch, seed=seed, warmup=0.05, look=look)
    refined = score(model, held_out)
    model.config = replace(config, score=replace(config.score, pose="initial"))
    return Trained(alive, refined, score(model, held_out), time.perf_counter() - start)


def summary(found: Mapping[tuple[str, str], Sequence[Trained]]) -> str:
    """A table with one line for each setting: means over the seeds, and lowest and highest."""
    steps = sorted(next(iter(found.values()))[0].alive)
    head = ["keep_best", "align_norm", *(f"alive at {step}" for step in steps), "AP refined", "AP initial"]
    lines = []
    for (keep_best, align_norm), runs in found.items():
        line = [keep_best, align_norm]
        columns = [[run.alive[step] for run in runs] for step in steps]
        columns += [[run.refined for run in runs], [run.initial for run in runs]]
        line += [f"{statistics.mean(v):.3f} ({min(v):.3f}..{max(v):.3f})" for v in columns]
        lines.append(line)
    return table(head, lines)


if __name__ == "__main__":
    main()
