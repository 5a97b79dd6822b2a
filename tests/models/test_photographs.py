"""SMPR on real photographs."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from posefleet.data.coco import find_source
from posefleet.data.keypoints import COCO17
from posefleet.data.sharding import shard_coco
from posefleet.platform.checkpoint import CheckpointStore
from posefleet.platform.config import build_experiment, read_yaml
from posefleet.platform.loop import fit
from posefleet.platform.worker import LocalWorker

ANNOTATIONS = "annotations/person_keypoints_train2017.json"
CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "smpr_demo.yaml"


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


def memorise(coco: Path, folder: Path, *, side: int, batch_size: int, epochs: int, force_one: bool = False) -> float:
    """Train the demo's model on a few images without augmentation; its AP on the same images."""
    shards = str(folder / "shards")
    shard_coco(find_source(str(coco), "train2017"), shards, COCO17, parallel=False)
    values = read_yaml(CONFIG)
    values["model"]["assign"]["force_one"] = force_one
    values["data"] |= {"train": shards, "eval": shards, "batch_size": batch_size, "augment": {"crop": 0, "flip": 0.0}}
    values["data"]["resize"] = {"short_side": side, "long_side": side}
    values["train"] |= {"epochs": epochs, "eval_every": epochs}
    torch.set_num_threads(2)
    return fit(build_experiment(values), LocalWorker(device="cpu"), CheckpointStore(str(folder / "checkpoints")))["AP"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_photographs_with_large_people_are_memorised(coco_mini: Path, tmp_path: Path) -> None:
    smallest = smallest_people(coco_mini)
    large = sorted(smallest, key=lambda image_id: -smallest[image_id])[:8]
    images = cut(coco_mini, tmp_path / "coco", large)
    assert memorise(images, tmp_path, side=256, batch_size=8, epochs=100) >= 0.5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_all_photographs_with_people_are_memorised(coco_mini: Path, tmp_path: Path) -> None:
    """28 images, 86 people, many of them a few pixels high at this size."""
    images = cut(coco_mini, tmp_path / "coco", smallest_people(coco_mini))
    assert memorise(images, tmp_path, side=320, batch_size=4, epochs=300, force_one=True) >= 0.8
