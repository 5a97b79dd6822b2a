"""SMPR on real photographs."""

import json
import shutil
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

CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "smpr_demo.yaml"


def with_large_people(source: Path, out: Path, count: int) -> Path:
    """The ``count`` images whose smallest keypoint person is the largest, in COCO's layout."""
    content = json.loads((source / "annotations" / "person_keypoints_train2017.json").read_text())
    smallest: dict[int, float] = {}
    for person in content["annotations"]:
        if not person["iscrowd"] and person["num_keypoints"] > 0:
            smallest[person["image_id"]] = min(person["area"], smallest.get(person["image_id"], float("inf")))
    size = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    chosen = sorted(smallest, key=lambda image_id: -smallest[image_id] / size[image_id])[:count]
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [person for person in content["annotations"] if person["image_id"] in chosen]
    (out / "annotations").mkdir(parents=True)
    (out / "annotations" / "person_keypoints_train2017.json").write_text(json.dumps(content))
    (out / "train2017").mkdir()
    for image in content["images"]:
        shutil.copy(source / "train2017" / image["file_name"], out / "train2017")
    return out


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_eight_photographs_with_large_people_are_memorised(coco_mini: Path, tmp_path: Path) -> None:
    source = with_large_people(coco_mini, tmp_path / "coco", 8)
    shards = str(tmp_path / "shards")
    shard_coco(find_source(str(source), "train2017"), shards, COCO17, parallel=False)
    values = read_yaml(CONFIG)
    values["data"] |= {"train": shards, "eval": shards, "batch_size": 8, "augment": {"crop": 0, "flip": 0.0}}
    values["data"]["resize"] = {"short_side": 256, "long_side": 256}
    values["train"] |= {"epochs": 100, "eval_every": 100}
    torch.set_num_threads(2)
    metrics = fit(build_experiment(values), LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "checkpoints")))
    assert metrics["AP"] >= 0.5
