"""A model that learns from two halves of the keypoints, against one that sees all labels.

    python tests/bench/bench_union.py --out FOLDER [--images 4000] [--epochs 2] [--side 96] [--twice]

Renders easy people and makes two data sets of half of the images each: one whose annotators labelled only the upper
body, one whose annotators labelled only the lower body (the keypoints of a person, whose box stays). SMPR with the
demo's config, at ``--side`` pixels and six images a step, trains once on all labels of all images and once on the union
of the two, for the same number of steps, in one process of one thread. All are scored on the same held-out images with
all labels. With ``--twice`` another run trains on the union for twice the steps, so every keypoint has as many labels
there as in the run that sees all. Runs that are finished are not trained again.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests" / "support")]

from chosen_keypoints import with_keypoints  # noqa: E402

UPPER = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist",
)  # fmt: skip
LOWER = ("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle")
HALVES = {"upper": UPPER, "lower": LOWER}


def run(*command: object) -> None:
    subprocess.run([sys.executable, "-m", *map(str, command)], check=True, cwd=ROOT)


def children_seconds() -> float:
    """CPU seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_data(out: Path, images: int, held_out: int) -> None:
    """Shards of all labels, of both halves, and of the held-out images."""
    coco, shards = out / "coco", out / "shards"
    for split, count, seed in (("train2017", images, 1), ("val2017", held_out, 2)):
        if not (coco / "annotations" / f"person_keypoints_{split}.json").exists():
            given = ("--out", coco, "--split", split, "--count", count, "--easy", "--seed", seed, "--workers", 1)
            run("posefleet.data.synthetic", *given)
    document = json.loads((coco / "annotations" / "person_keypoints_train2017.json").read_text())
    ids = sorted(image["id"] for image in document["images"])
    for number, (name, keypoints) in enumerate(HALVES.items()):
        chosen = set(ids[number::2])
        (out / f"{name}.json").write_text(json.dumps(with_keypoints(document, keypoints, chosen, "half")))
        shard(out / f"{name}.json", shards / name, "--images", coco / "train2017", "--split", "train")
    shard(coco, shards, "--split", "train2017")
    shard(coco, shards, "--split", "val2017")


def shard(source: Path, out: Path, *more: object) -> None:
    run("posefleet.jobs.shard_coco", "--source", source, "--out", out, *more, "--in-process")


def train(out: Path, name: str, epochs: float, side: int, sources: list[Path]) -> dict[str, float]:
    """Train on some shards, unless it is done, and score on the held-out images."""
    shards, scored = out / "shards", out / f"{name}.metrics.json"
    cpu, wall = children_seconds(), time.perf_counter()
    run(
        *("posefleet.jobs.train_smpr", "--config", "jobs/configs/smpr_demo.yaml", "--schema", "coco17"),
        *("--data.train", *sources, "--data.eval", shards / "val2017", "--train.epochs", epochs),
        *("--train.eval_every", epochs, "--scaling.num_workers", 0, "--data.augment.crop", side),
        *("--data.resize.short_side", side, "--data.resize.long_side", side),
        *("--data.batch_size", 6, "--run.storage", out / "runs", "--run.name", name),
    )
    print(f"{name}: {children_seconds() - cpu:.0f} CPU seconds, {time.perf_counter() - wall:.0f} on the clock")
    evaluated = ("--checkpoint", out / "runs" / name, "--data.eval", shards / "val2017", "--out", out / f"{name}.json")
    run("posefleet.jobs.evaluate", *evaluated)
    return json.loads(scored.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of data and runs")
    parser.add_argument("--images", type=int, default=4000, help="images to train on")
    parser.add_argument("--held-out", type=int, default=200, help="images to score on")
    parser.add_argument("--epochs", type=float, default=2, help="passes over the images")
    parser.add_argument("--side", type=int, default=96, help="pixels of the inputs")
    parser.add_argument("--twice", action="store_true", help="train the halves for twice the steps, too")
    chosen = parser.parse_args()
    out = chosen.out.absolute()
    make_data(out, chosen.images, chosen.held_out)
    shards = out / "shards"
    halves = [shards / name / "train" for name in HALVES]
    found = {
        "all": train(out, "all", chosen.epochs, chosen.side, [shards / "train2017"]),
        "halves": train(out, "halves", chosen.epochs, chosen.side, halves),
    }
    if chosen.twice:
        found["twice"] = train(out, "twice", 2 * chosen.epochs, chosen.side, halves)
    print(f"\n{'':24}" + "".join(f"{name:>10}" for name in found))
    for metric in ("AP", "AP50", "AP75", "AR", *(f"AP_keypoint/{name}" for name in (*UPPER, *LOWER))):
        print(f"{metric:24}" + "".join(f"{metrics[metric]:10.3f}" for metrics in found.values()))


if __name__ == "__main__":
    main()
