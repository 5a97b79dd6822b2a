"""A keypoint set that posefleet does not know: from its annotation file to a served model that draws its skeleton."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.coco.source import find_source
from posefleet.data.errors import DataError
from posefleet.data.images import encode_jpeg
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import load_schema
from posefleet.jobs.evaluate import main as evaluate
from posefleet.jobs.shard_coco import main as shard
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.prediction.batch import predict_images
from posefleet.platform.prediction.inputs import list_images
from posefleet.serve.deployments import versions
from posefleet.serve.deployments.settings import ServedModel
from posefleet.serve.http.routes import describe_model
from posefleet.serve.http.schema import ModelInfo

DOG = ["snout", "LEar", "REar", "tail"]
SKELETON = [["snout", "LEar"], ["snout", "REar"], ["snout", "tail"]]
SIGMAS = [0.05, 0.06, 0.06, 0.1]


@pytest.fixture(scope="module")
def dogs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of noise with a dog each, in COCO's layout."""
    root = tmp_path_factory.mktemp("dogs")
    (root / "val").mkdir()
    (root / "annotations").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in (1, 2):
        (root / "val" / f"{number}.jpg").write_bytes(encode_jpeg(rng.integers(0, 256, (64, 64, 3), np.uint8)))
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 64, "height": 64})
        points = [v for x, y in rng.uniform(10, 50, (4, 2)).round(1).tolist() for v in (x, y, 2)]
        box = {"bbox": [8.0, 8.0, 44.0, 44.0], "area": 1500.0, "iscrowd": 0}
        annotations.append({"id": number, "image_id": number, "category_id": 1, "keypoints": points, **box})
    category = {"id": 1, "name": "dog", "keypoints": DOG, "skeleton": [[1, 2], [1, 3], [1, 4]], "sigmas": SIGMAS}
    content = {"images": images, "annotations": annotations, "categories": [category]}
    (root / "annotations" / "person_keypoints_val.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def shards(dogs: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("shards")
    arguments = ["--source", dogs, "--split", "val", "--out", out, "--in-process", "--skip-doctor"]
    assert shard([str(argument) for argument in arguments]) == 0
    return str(out / "val")


@pytest.fixture(scope="module")
def checkpoint(shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose settings say ``schema: auto``."""
    folder = tmp_path_factory.mktemp("model")
    settings: dict[str, Any] = {**small_settings(folder, folder), "schema": "auto"}
    settings["data"] |= {"train": shards, "eval": shards}
    return untrained_checkpoint(settings, folder, sure=True)


def dog(schema: KeypointSchema) -> bool:
    """Whether it is the schema of the annotation file, whole."""
    same = (schema.name, list(schema.keypoints), list(schema.sigmas)) == ("dog", DOG, SIGMAS)
    return same and [list(edge) for edge in schema.skeleton] == SKELETON and schema.flip_pairs == (("LEar", "REar"),)


def test_a_checkpoint_holds_what_the_annotation_file_said(checkpoint: str) -> None:
    assert dog(read_meta(checkpoint).experiment.keypoints)
    assert "category 'dog' of person_keypoints_val.json" in read_meta(checkpoint).experiment.keypoints.sources["sigmas"]
    predictor = Predictor.from_checkpoint(checkpoint)
    prediction = predictor(np.zeros((64, 64, 3), np.uint8))
    assert dog(prediction.schema) and prediction.plot().shape[2] == 3
    poses = prediction.as_dict()["poses"]
    assert poses and [keypoint["name"] for keypoint in poses[0]["keypoints"]] == DOG


def test_a_served_version_tells_the_page_its_skeleton(checkpoint: str) -> None:
    version = versions._resolve_source(checkpoint, "")
    described = describe_model(
        ServedModel(name="dogs", source=checkpoint), versions.ServingStatus(checkpoint, version, 1), trusted=True
    )
    keypoint_set = ModelInfo(**described, default=True).keypoint_set
    assert keypoint_set is not None and dog(KeypointSchema.from_dict(keypoint_set.model_dump()))


def test_predictions_hold_the_schema(dogs: Path, checkpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_images(list_images(str(dogs), split="val"), str(out), checkpoint, parallel=False)
    assert dog(KeypointSchema.from_dict(json.loads((out / "summary.json").read_text())["schema"]))
    metadata = pq.read_schema(out / "poses.parquet").metadata
    assert dog(KeypointSchema.from_dict(json.loads(metadata[b"posefleet.schema"])))


def test_a_model_meets_only_data_of_its_keypoints(
    dogs: Path, checkpoint: str, people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    arguments = ["--checkpoint", checkpoint, "--source", dogs, "--split", "val", "--out", out]
    assert evaluate([str(argument) for argument in arguments]) == 0
    assert dog(KeypointSchema.from_dict(json.loads((tmp_path / "results.metrics.json").read_text())["schema"]))
    with pytest.raises(SystemExit):
        evaluate(["--checkpoint", checkpoint, "--source", str(people_coco), "--split", "val2017"])
    assert "schema dog and person_keypoints_val2017.json differ (4 against 17 keypoints)" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"schema dog of the model and the annotations of the input differ"):
        predict_images(list_images(str(people_coco), split="val2017"), str(tmp_path / "p"), checkpoint, parallel=False)


def test_what_is_left_out_stands_beside_the_scores(
    dogs: Path, checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((dogs / "annotations" / "person_keypoints_val.json").read_text())
    content["images"].append({"id": 3, "file_name": "gone.jpg", "width": 64, "height": 64})
    content["annotations"].append({**content["annotations"][0], "id": 3, "image_id": 3})
    content["annotations"].append({**content["annotations"][1], "id": 4, "iscrowd": "0"})
    (tmp_path / "val").symlink_to(dogs / "val")
    (tmp_path / "val.json").write_text(json.dumps(content))
    arguments = ["--checkpoint", checkpoint, "--source", str(tmp_path / "val.json"), "--split", "val"]
    for allowed, refusal in (
        ([], 'annotation 4 of image 2: iscrowd "0", expected 0 or 1'),
        (["--allow-errors"], "1 of 3 images are not in"),
    ):
        with pytest.raises(SystemExit):
            evaluate([*arguments, *allowed])
        assert refusal in capsys.readouterr().err
    out = str(tmp_path / "results.json")
    assert evaluate([*arguments, "--allow-errors", "--allow-missing", "--category", "dog", "--out", out]) == 0
    notes = json.loads((tmp_path / "results.metrics.json").read_text())["notes"]
    printed = capsys.readouterr().out
    for note in (
        "categories: dog (id 1), named with --category",
        "1 annotation left out, bad_annotation_record: 4",
        "gone.jpg: their people count as missed",
    ):
        assert note in printed and any(note in line for line in notes)
    assert "people   3: " in printed and "images   3: " in printed  # as COCO counts


def test_animals_of_17_keypoints_are_not_sharded_as_people(
    dogs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((dogs / "annotations" / "person_keypoints_val.json").read_text())
    animal = load_schema("ap10k17")
    content["categories"] = [{"id": 1, "name": "fox", "keypoints": list(animal.keypoints)}]
    for annotation in content["annotations"]:
        annotation["keypoints"] = (annotation["keypoints"] * 5)[: 3 * 17]
    (tmp_path / "val").symlink_to(dogs / "val")
    (tmp_path / "val.json").write_text(json.dumps(content))
    place = ["--source", str(tmp_path / "val.json"), "--split", "val", "--out", str(tmp_path / "out"), "--in-process"]
    assert shard([*place, "--schema", "coco17"]) == 1
    err = capsys.readouterr().err
    assert "nose            !=  left_eye" in err and "other_keypoints" in err
    assert shard([*place, "--skip-doctor"]) == 0
    assert "recognised: category 'fox' of val.json" in capsys.readouterr().out


def test_a_yaml_file_is_not_needed_after_sharding(dogs: Path, tmp_path: Path) -> None:
    file = tmp_path / "dog.yaml"
    file.write_text(yaml.safe_dump({"name": "dog", "keypoints": DOG, "skeleton": SKELETON, "sigmas": SIGMAS}))
    source = find_source(str(dogs), "val")
    place = ["--source", source.annotation_file, "--split", "val", "--out", str(tmp_path), "--in-process"]
    assert shard([*place, "--images", str(dogs / "val"), "--skip-doctor", "--schema", str(file)]) == 0
    file.unlink()
    settings = {**small_settings(tmp_path, tmp_path), "schema": "auto"}
    settings["data"] |= {"train": str(tmp_path / "val"), "eval": ""}
    assert dog(read_meta(untrained_checkpoint(settings, tmp_path / "model")).experiment.keypoints)
