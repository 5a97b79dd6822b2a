"""Methods learn real photographs by heart."""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from posefleet.data.coco.source import find_source
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.build import shard_coco
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, read_yaml, with_settings
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit

ANNOTATIONS = "annotations/person_keypoints_train2017.json"
CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"

LOGOCAP = {
    "train.epochs": 400,
    "optim.lr": 4e-3,
    "model.head.separate_mixing": True,
    "model.head.norm": "batch",
    "model.head.offset_channels": 256,
    "model.head.heat_channels": 64,
    "model.loss.offset": 0.05,
    "model.adapt.instances": 8,
    "model.adapt.window": 41,
    "model.decode.centres": 30,
    "model.target.heat_sigma": 1.5,
    "model.target.centre_sigma": 2.0,
}
DETPOSENET = {
    "train.epochs": 400,
    "model.coarse.limb_overhang": 4.0,
    "model.loss.kpt": 1000.0,
    "model.detector.proposals": 60,
    "model.detector.max_boxes": 60,
    "model.prs.crops_per_image": 4,
    "model.prs.scale_jitter": [0.85, 1.2],
}
TRAINING: dict[str, dict[str, Any]] = {
    "smpr": {"model.assign.force_one": True},
    "pfs": {"model.assign.force_one": True},
    "inspose": {},
    "logocap": LOGOCAP,
    "detposenet": DETPOSENET,
}
"""What the demo's config needs besides for 28 photographs at 320 px."""

DECODING: dict[str, dict[str, Any]] = {
    "logocap": {"model.adapt.window_sigmas": 6.0, "model.decode.centre_pool": 3},
    "detposenet": {"model.filter.mode": "nms"},
}
"""What is decoded otherwise than in training; why, says docs/results.md."""


def cut(source: Path, out: Path, image_ids: Collection[int]) -> Path:
    """Some images of a data set, in COCO's layout."""
    content = json.loads((source / ANNOTATIONS).read_text())
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [person for person in content["annotations"] if person["image_id"] in image_ids]
    (out / "annotations").mkdir(parents=True)
    (out / ANNOTATIONS).write_text(json.dumps(content))
    (out / "train2017").mkdir()
    for image in content["images"]:
        shutil.copy(source / "train2017" / image["file_name"], out / "train2017")
    return out


def smallest_people(source: Path) -> dict[int, float]:
    """Image -> the area of its smallest keypoint person, as a share of the image."""
    content = json.loads((source / ANNOTATIONS).read_text())
    size = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    smallest: dict[int, float] = {}
    for person in content["annotations"]:
        if not person["iscrowd"] and person["num_keypoints"] > 0:
            image_id = person["image_id"]
            smallest[image_id] = min(person["area"] / size[image_id], smallest.get(image_id, 1.0))
    return smallest


def memorise(
    method: str, coco: Path, folder: Path, settings: Mapping[str, Any], decoding: Mapping[str, Any] | None = None
) -> float:
    """Train the demo's model on a few images without augmentation; its AP on the same images."""
    shards = str(folder / "shards")
    shard_coco(find_source(str(coco), "train2017"), shards, COCO17, parallel=False)
    values = with_settings(read_yaml(CONFIGS / f"{method}_demo.yaml"), settings)
    values["data"] |= {"train": shards, "eval": shards, "augment": {"crop": 0, "flip": 0.0}}
    values["train"]["eval_every"] = values["train"]["epochs"]
    torch.set_num_threads(2)
    store, worker = CheckpointStore(str(folder / "checkpoints")), LocalWorker(device="cpu")
    trained = fit(build_experiment(values), worker, store)["AP"]
    if not decoding:
        return trained
    path = store.latest()
    assert path is not None
    model, experiment = load_model(path, experiment=build_experiment(with_settings(values, decoding)))
    result = evaluate(model, experiment, worker)
    assert result is not None
    return result.as_dict()["AP"]


def square(side: int) -> dict[str, int]:
    return {"data.resize.short_side": side, "data.resize.long_side": side}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_photographs_with_large_people_are_memorised(coco_mini: Path, tmp_path: Path) -> None:
    smallest = smallest_people(coco_mini)
    large = sorted(smallest, key=lambda image_id: -smallest[image_id])[:8]
    images = cut(coco_mini, tmp_path / "coco", large)
    settings = {**square(256), "data.batch_size": 8, "train.epochs": 100}
    assert memorise("smpr", images, tmp_path, settings) >= 0.5


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("method", TRAINING)
def test_all_photographs_with_people_are_memorised(method: str, coco_mini: Path, tmp_path: Path) -> None:
    """28 images, 86 people, many of them a few pixels high at this size."""
    images = cut(coco_mini, tmp_path / "coco", smallest_people(coco_mini))
    settings = {**square(320), "data.batch_size": 4, "train.epochs": 300, **TRAINING[method]}
    assert memorise(method, images, tmp_path, settings, DECODING.get(method)) >= 0.8
