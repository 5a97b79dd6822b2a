"""Transfer against scratch: 50 labelled animals, with and without a model of rendered people to start from.

    python tests/bench/bench_transfer.py --folder /tmp/transfer [--people runs/demo] [--seeds 3] [--epochs 40]

Both sides train smpr_animal.yaml on the same images in the same order for the same number of steps, from a backbone
with ImageNet weights ("scratch") or from a model of rendered people ("transfer": `run.init_from` and `run.init_map`);
they take turns. Every seed has 50 other animals and another order. Without --people, the demo's model is trained first.
Prints each AP on held-out animals, and for each seed transfer minus scratch with its 95 % interval from draws of
images.
About 12 CPU minutes for the model of people, and 2 for each training.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from posefleet.data.evaluation.bootstrap import difference
from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.data.synthetic.dataset import write_dataset
from posefleet.data.synthetic.scenes import SCENES, SceneConfig
from posefleet.jobs.shard_coco import main as shard
from posefleet.jobs.train import train_method
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.split import Split
from posefleet.platform.runtime.worker import LocalWorker

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
PAIRS = ",".join(
    ["nose=nose", "left_ear=head"]
    + [
        f"{side}_{theirs}={side}_{own}"
        for side in ("left", "right")
        for theirs, own in (
            ("elbow", "front_knee"),
            ("wrist", "front_paw"),
            ("knee", "hind_knee"),
            ("ankle", "hind_paw"),
        )
    ]
)
"""Keypoint of people = keypoint of animals."""
SIDES = ("scratch", "transfer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="data and runs are written here")
    parser.add_argument("--people", default="", help="checkpoint or run of rendered people (default: train one)")
    parser.add_argument("--labelled", type=int, default=50, help="labelled animals of each seed (default: 50)")
    parser.add_argument("--held-out", type=int, default=200, help="animals to score on (default: 200)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side (default: 3)")
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each run (default: 40)")
    args = parser.parse_args()
    folder: Path = args.folder.absolute()
    people = args.people or train_people(folder)
    animals = replace(SCENES["easy"], figure="animal")
    held_out = shards(folder / "animals", "held_out", args.held_out, animals)
    found: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in range(args.seeds):
        train = shards(folder / "animals", f"labelled{seed}", args.labelled, animals)
        scored = {}
        for side in SIDES:
            start = time.process_time()
            scored[side] = run(folder, side, seed, train, held_out, people, args.epochs)
            found[side].append(scored[side].ap)
            print(f"seed {seed}, {side}: AP {scored[side].ap:.3f}, {time.process_time() - start:.0f} CPU s", flush=True)
        one, other = scored["transfer"].matches, scored["scratch"].matches
        assert one is not None and other is not None
        print(f"seed {seed}: transfer - scratch {difference(one, other)}", flush=True)
    for side, values in found.items():
        print(f"{side}: mean AP {statistics.mean(values):.3f} ({min(values):.3f}..{max(values):.3f})")


def train_people(folder: Path) -> str:
    """The demo's model; returns the folder of its run."""
    people = shards(folder / "people", "train", 4000, SCENES["easy"])
    held_out = shards(folder / "people", "held_out", 150, SCENES["easy"])
    return train(folder, "people", "smpr_demo", people, held_out, [])


def shards(folder: Path, split: str, count: int, scenes: SceneConfig) -> Path:
    """Render a split and shard it; what is there already stays."""
    write_dataset(folder, split, count, scenes)
    arguments = ["--source", folder, "--split", split, "--out", folder / "shards", "--in-process", "true"]
    if shard([str(argument) for argument in arguments]):
        raise SystemExit(f"{split} was not sharded")
    return folder / "shards" / split


def run(folder: Path, side: str, seed: int, shards: Path, held_out: Path, people: str, epochs: int) -> Evaluation:
    """Train one side with one seed and score its last weights."""
    options = ["--seed", str(seed), "--train.epochs", str(epochs), "--train.eval_every", str(epochs)]
    if side == "transfer":
        options += ["--run.init_from", people, "--run.init_map", PAIRS]
    path = find_checkpoint(train(folder, f"{side}{seed}", "smpr_animal", shards, held_out, options))
    experiment = read_meta(path).experiment
    model, _ = load_model(path, experiment=experiment)
    split = Split.named("", "", "", shards=str(held_out))
    found = evaluate(model, experiment, LocalWorker(), open_split=split.view)
    assert found is not None
    return found


def train(folder: Path, name: str, config: str, shards: Path, held_out: Path, options: Sequence[str]) -> str:
    """Train a config of jobs/configs in this process; returns the folder of the run."""
    given = {
        "--config": CONFIGS / f"{config}.yaml",
        "--scaling.num_workers": 0,
        "--data.train": shards,
        "--data.eval": held_out,
        "--run.storage": folder / "runs",
        "--run.name": name,
        "--evaluate.overlays": 0,
    }
    arguments = [str(part) for pair in given.items() for part in pair]
    if train_method("smpr", [*arguments, *options]):
        raise SystemExit(f"{name} did not train")
    return str(folder / "runs" / name)


if __name__ == "__main__":
    main()
