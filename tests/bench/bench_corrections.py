"""What each correction of LOGO-CAP brings, on photographs that it learns by heart.

    python tests/bench/bench_corrections.py --coco FOLDER [--images 8] [--epochs 200] [--rows "all corrections" ...]

FOLDER has COCO's layout. The data, to train on and to score on, are images of train2017 in which a box of a crowd or of
a person without keypoints holds a labelled keypoint: those whose smallest labelled person is largest. Every row takes
back one correction of the demo's recipe, at 256 px and without crops and flips, and is trained once with the same seed.
Prints AP and the CPU seconds of each.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from posefleet.data.coco.annotations import people_of
from posefleet.data.coco.source import Source, find_source
from posefleet.data.coco.split import read_coco
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.build import shard_coco
from posefleet.data.structures import Poses
from posefleet.models.logocap import model as logocap
from posefleet.models.logocap import targets
from posefleet.models.parts.ops.assign import PaddedPeople
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit
from posefleet.platform.visualization.tables import table

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def boxes_masked() -> Iterator[None]:
    """Skip the loss inside the whole box of every crowd and unlabelled person, labelled neighbours included."""

    def ignored_cells(points: Tensor, people: PaddedPeople, drawn: Tensor) -> Tensor:
        boxes = people.annotated_boxes.where(~people.valid[..., None], 0.0)
        x1, y1, x2, y2 = boxes[:, None].unbind(-1)
        x, y = points[:, :1], points[:, 1:]
        return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(-1)

    with mock.patch.object(targets, "ignored_cells", ignored_cells):
        yield


@contextmanager
def maps_in_bfloat16() -> Iterator[None]:
    """Poses are decoded from maps of half the precision, in which many values are equal."""
    decode = logocap.Model.decode

    def rounded(model: logocap.Model, maps: logocap.Maps, size: tuple[int, int]) -> list[Poses]:
        return decode(model, {name: [part.bfloat16().float() for part in parts] for name, parts in maps.items()}, size)

    with mock.patch.object(logocap.Model, "decode", rounded):
        yield


Undoing = tuple[Mapping[str, Any], Callable[[], AbstractContextManager[None]]]
"""Settings, and what is replaced while training and scoring."""

ROWS: dict[str, Undoing] = {
    "all corrections": ({}, nullcontext),
    "boxes masked instead of outlines": ({}, boxes_masked),
    "half_pixel_fix false": ({"model.half_pixel_fix": False}, nullcontext),
    "separate_mixing true": ({"model.head.separate_mixing": True}, nullcontext),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", required=True, help="folder in COCO's layout")
    parser.add_argument("--images", type=int, default=8, help="number of images (default: 8)")
    parser.add_argument("--epochs", type=float, default=200, help="epochs of each training (default: 200)")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        shards = f"{folder}/shards"
        source = find_source(args.coco, "train2017")
        chosen = affected(source, args.images)
        print(f"{len(chosen)} images: {', '.join(sorted(chosen))}", flush=True)
        shard_coco(source, shards, COCO17, parallel=False, take=chosen.__contains__)
        for name in args.rows:
            settings, undone = ROWS[name]
            start = time.process_time()
            with undone():
                path, scores = train(shards, f"{folder}/{len(lines)}", args.epochs, settings)
            seconds = time.process_time() - start
            lines.append(line_of(name, scores, seconds))
            print(lines[-1], flush=True)
            if name == "all corrections":
                with maps_in_bfloat16():
                    lines.append(line_of("the same network, maps in bfloat16", score(path), 0.0))
                print(lines[-1], flush=True)
    print(table(["LOGO-CAP", "AP", "AP50", "AP75", "CPU s"], lines))


def affected(source: Source, count: int) -> set[str]:
    """File names of the ``count`` images with the largest people of whom a box that masks hide holds a keypoint."""
    largest: dict[str, float] = {}
    for record in read_coco(source.annotation_file, COCO17).records():
        people = people_of(record["people"], COCO17)
        known, hidden = people[people.labelled], people.boxes[~people.labelled]
        points = known.keypoints[known.visibility > 0]
        inside = (points[:, None] > hidden[:, :2]) & (points[:, None] < hidden[:, 2:])
        if inside.all(-1).any():
            largest[record["file_name"]] = float(known.areas.min()) / (record["width"] * record["height"])
    return set(sorted(largest, key=lambda name: -largest[name])[:count])


def train(shards: str, folder: str, epochs: float, settings: Mapping[str, Any]) -> tuple[str, Mapping[str, float]]:
    """The last checkpoint of a training, and its scores on its own images."""
    values = read_yaml(ROOT / "jobs" / "configs" / "logocap_demo.yaml") | {"schema": "coco17"}
    values["data"] |= {"train": shards, "eval": shards}
    changes = {
        "data.resize.short_side": 256, "data.resize.long_side": 256, "data.augment.crop": 0, "data.augment.flip": 0.0,
        "data.batch_size": 4, "train.epochs": epochs, "train.eval_every": epochs, **settings,
    }  # fmt: skip
    store = CheckpointStore(f"{folder}/checkpoints")
    scores = fit(build_experiment(with_settings(values, changes)), LocalWorker(device="cpu"), store)
    path = store.latest()
    assert path is not None
    return path, scores


def score(path: str) -> Mapping[str, float]:
    """The scores of a checkpoint on its own images."""
    model, experiment = load_model(path)
    result = evaluate(model, experiment, LocalWorker(device="cpu"))
    assert result is not None
    return result.as_dict()


def line_of(name: str, scores: Mapping[str, float], seconds: float) -> list[str]:
    """A line of the table."""
    return [name, *(f"{scores[key]:.3f}" for key in ("AP", "AP50", "AP75")), f"{seconds:.0f}" if seconds else ""]


if __name__ == "__main__":
    main()
