"""How InsPose's AP depends on the depth of its KP-Nets, and on what helps deep ones to begin.

    python tests/bench/bench_depth.py [--steps 480] [--seeds 3] [--rows "1 layer" "3 layers"]

Trains InsPose with the head of its demo (EfficientNet-Lite0, 64 channels) on rendered people of 128 px, each row with
every seed. Prints the loss of the keypoint maps over the steps (log of the number of cells of a map is chance), AP on
held-out scenes, and of both the lowest and highest seed. About 3 minutes on one core for each training of 480 steps.
"""

import argparse
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from small_trainings import SIDE, Scenes, optimise, scenes, score

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.inspose.model import Config, Model
from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings
from posefleet.platform.visualization.tables import table

ROOT = Path(__file__).resolve().parents[2]
SHOWN = (30, 60, 120, 240, 480, 960, 1440)
"""Steps after which the loss of the maps is shown."""
MEAN_OF = 10
"""Steps that a shown loss is the mean of."""


class Row(NamedTuple):
    """Settings that are compared."""

    depth: int
    """Layers of the KP-Nets."""
    std: float = 0.01
    """``model.head.controller_std``."""
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises."""
    longer: int = 1
    """Factor on the number of steps."""
    width: int = 8
    """Channels of the hidden layers."""


ROWS = {
    "1 layer": Row(1),
    "3 layers": Row(3),
    "1 layer, std .03": Row(1, std=0.03),
    "3 layers, std .03": Row(3, std=0.03),
    "3 layers, std .1": Row(3, std=0.1),
    "3 layers, std .03, warm-up of half": Row(3, std=0.03, warmup=0.5),
    "3 layers, std .03, three times as long": Row(3, std=0.03, longer=3),
}


class Trained(NamedTuple):
    """What one training gave."""

    losses: Mapping[int, float]
    """Step -> loss of the keypoint maps."""
    ap: float
    """0..1, on held-out scenes."""
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=480, help="training steps of each run (default: 480)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--batch", type=int, default=6, help="images of a step (default: 6)")
    parser.add_argument("--images", type=int, default=2000, help="rendered scenes to train on (default: 2000)")
    parser.add_argument("--held-out", type=int, default=150, help="rendered scenes to score on (default: 150)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    seen, held_out = scenes(args.images, 0), scenes(args.held_out, 1_000_000)
    found: dict[str, list[Trained]] = {}
    for seed in range(args.seeds):
        for name in args.rows:
            result = train(ROWS[name], seed, seen, held_out, args.steps, args.batch)
            found.setdefault(name, []).append(result)
            print(f"seed {seed}, {name}: {result}", flush=True)
    print("\n" + summary(found))


def train(row: Row, seed: int, seen: Scenes, held_out: Scenes, steps: int, batch: int) -> Trained:
    """Train one row and score it."""
    torch.manual_seed(seed)
    start = time.process_time()
    model = Model(config_of(row), COCO17).train()
    losses: list[float] = []
    steps *= row.longer
    optimise(
        model, seen, steps=steps, batch=batch, seed=seed, warmup=row.warmup,
        look=lambda _, terms: losses.append(float(terms["kpf"].detach())),
    )  # fmt: skip
    shown = {step: statistics.mean(losses[max(0, step - MEAN_OF) : step]) for step in SHOWN if step <= steps}
    return Trained(shown, score(model, held_out), time.process_time() - start)


def config_of(row: Row) -> Config:
    """The demo's config with the settings of the row."""
    changes = {
        "model.head.kpnet.depth": row.depth,
        "model.head.kpnet.width": row.width,
        "model.head.controller_std": row.std,
    }
    demo = read_yaml(ROOT / "jobs" / "configs" / "inspose_demo.yaml") | {"schema": "coco17"}
    config = build_experiment(with_settings(demo, changes)).model
    assert isinstance(config, Config)
    return config


def summary(found: Mapping[str, Sequence[Trained]]) -> str:
    """A table with one line for each row: means over the seeds, and lowest and highest."""
    steps = sorted({step for runs in found.values() for run in runs for step in run.losses})
    lines = []
    for name, runs in found.items():
        columns = [[run.losses[step] for run in runs if step in run.losses] for step in steps]
        cells = [f"{statistics.mean(v):.2f} ({min(v):.2f}..{max(v):.2f})" if v else "" for v in columns]
        aps = [run.ap for run in runs]
        lines.append([name, *cells, f"{statistics.mean(aps):.3f} ({min(aps):.3f}..{max(aps):.3f})"])
    head = ["row", *(f"loss at {step}" for step in steps), "AP"]
    return f"{table(head, lines)}\nchance: a loss of {math.log((SIDE // 8) ** 2):.2f}"


if __name__ == "__main__":
    main()
