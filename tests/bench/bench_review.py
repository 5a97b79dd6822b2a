"""How many seeded faults of labels `posefleet review` finds, and how many the doctor's geometric checks find.

    python tests/bench/bench_review.py --out FOLDER [--images 3000] [--parts 2] [--epochs 3]

Renders people, puts faults of every kind into 5 % of them (tests/support/label_faults.py), trains the demo's network on
the other parts for each part, predicts, and ranks. Of a kind with n faults it prints the share of the first n suspects
of that kind that are faults (precision; recall is the share that names another fault each), the share of the n faults
among the first of the whole list (as many as there are faults of all kinds), and the doctor's share. The same command
goes on where it stopped.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from label_faults import Fault, found_by, with_faults  # noqa: E402

from posefleet.data import findings  # noqa: E402
from posefleet.data.coco.source import Source  # noqa: E402
from posefleet.data.doctor.examine import examine  # noqa: E402
from posefleet.data.loading.shard_dataset import ShardDataset  # noqa: E402
from posefleet.data.review.suspects import KINDS, Kind, Suspect, find_suspects  # noqa: E402
from posefleet.data.schemas.shipped import COCO17  # noqa: E402
from posefleet.data.synthetic.dataset import write_dataset  # noqa: E402
from posefleet.data.synthetic.scenes import SCENES  # noqa: E402
from posefleet.data.transforms import EvalTransform, Resize  # noqa: E402
from posefleet.platform.comparison.budget import folder_of, train_all  # noqa: E402
from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings  # noqa: E402
from posefleet.platform.review.folds import fold_experiments, predict_parts, shard_parts  # noqa: E402
from posefleet.platform.visualization.tables import table  # noqa: E402

SHARE = 0.05
"""Share of the people who get a fault of each kind."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the data and the runs")
    parser.add_argument("--images", type=int, default=3000, help="rendered images (default: 3000)")
    parser.add_argument("--parts", type=int, default=2, help="parts, and trainings (default: 2)")
    parser.add_argument("--epochs", type=float, default=3, help="epochs of each training (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and the faults (default: 0)")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    source, faults = seeded(Path(args.out), args.images, args.seed)
    parts = shard_parts(source, COCO17, f"{args.out}/parts", args.parts, parallel=False)
    values = read_yaml(ROOT / "jobs" / "configs" / "smpr_demo.yaml") | {"schema": "coco17"}
    values["data"] |= {"train": parts[0], "eval": parts[0]}
    changes = {"train.epochs": args.epochs, "train.eval_every": 1e9, "data.batch_size": 6, "scaling.num_workers": 0}
    experiments = fold_experiments(build_experiment(with_settings(values, changes)), parts, f"{args.out}/runs")
    assert train_all(experiments)
    poses = predict_parts([folder_of(experiment) for experiment in experiments.values()], parts)
    view = EvalTransform(Resize(), COCO17)
    records = [
        record
        for part in parts
        for record in ShardDataset(part, COCO17, view, labelled_only=False, seed=None).records()
    ]
    suspects = find_suspects(records, poses, COCO17)
    of_image: dict[int, list[Fault]] = {}
    for fault in faults:
        of_image.setdefault(fault.image_id, []).append(fault)
    named = [found_by(s, of_image.get(s.image_id, []), poses[s.image_id], COCO17) for s in suspects]
    print(summary(suspects, named, faults, by_the_doctor(source, faults)))


def seeded(out: Path, images: int, seed: int) -> tuple[Source, list[Fault]]:
    """The data set with faults, and the faults."""
    scenes = dataclasses.replace(SCENES["easy"], people=(1, 3))
    write_dataset(out / "coco", "train2017", images, scenes, seed=seed, workers=os.cpu_count() or 1)
    clean = json.loads((out / "coco" / "annotations" / "person_keypoints_train2017.json").read_text())
    content, faults = with_faults(clean, COCO17, SHARE, seed)
    path = out / "faulty.json"
    path.write_text(json.dumps(content))
    return Source(str(path), str(out / "coco" / "train2017"), "train2017"), faults


def by_the_doctor(source: Source, faults: Sequence[Fault]) -> dict[Kind, int]:
    """Faults of each kind whose annotation the doctor names in a warning or error."""
    with mock.patch.object(findings, "MAX_EXAMPLES", 10**9):
        report = examine(source, COCO17, check_images=False)
    text = "\n".join(e for f in report.findings if f.check.severity != "info" for e in f.examples)
    named = {int(number) for number in re.findall(r"annotation (\d+)", text)}
    return {kind: sum(f.kind == kind and f.annotation_id in named for f in faults) for kind in KINDS}


def summary(
    suspects: Sequence[Suspect], named: Sequence[Fault | None], faults: Sequence[Fault], doctor: dict[Kind, int]
) -> str:
    """A table with a line for each kind, and one for all."""
    rows = []
    first = {id(fault) for fault in named[: len(faults)] if fault}
    for kind in KINDS:
        count = sum(fault.kind == kind for fault in faults)
        own = [fault for s, fault in zip(suspects, named, strict=True) if s.kind == kind][:count]
        right, found = sum(f is not None for f in own), {id(f) for f in own if f and f.kind == kind}
        overall = sum(id(fault) in first for fault in faults if fault.kind == kind)
        rows.append([kind, count, right / count, len(found) / count, overall / count, doctor[kind] / count])
    right = sum(fault is not None for fault in named[: len(faults)])
    total = len(faults)
    rows.append(["all", total, right / total, len(first) / total, len(first) / total, sum(doctor.values()) / total])
    text = [[str(kind), str(count), *(f"{value:.3f}" for value in values)] for kind, count, *values in rows]
    head = ["kind", "faults", "precision of the first n", "recall there", "in the first of all", "by the doctor"]
    return table(head, text)


if __name__ == "__main__":
    main()
