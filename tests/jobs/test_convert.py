"""The command that converts YOLO's text files to COCO's format, and back."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from posefleet.data.coco.source import find_source, image_path
from posefleet.data.coco.split import read_coco
from posefleet.data.images import encode_jpeg
from posefleet.data.schemas.shipped import COCO17, read_schema
from posefleet.jobs.cli import main

NAMES = ["snout", "left_ear", "right_ear"]


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    """Two training images, one of which EXIF turns, and one without a label."""
    root = tmp_path / "dogs"
    for folder in ("images/train", "images/val", "labels/train"):
        (root / folder).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(root / "images/train/turned.jpg", exif=exif)
    for name in ("train/plain", "val/empty"):
        (root / f"images/{name}.jpg").write_bytes(encode_jpeg(np.zeros((40, 80, 3), np.uint8)))
    (root / "labels/train/turned.txt").write_text("0 0.5 0.5 0.5 0.5 0.25 0.75 2 0.5 0.5 1 0 0 0\n")
    (root / "labels/train/plain.txt").write_text("0 0.5 0.5 0.5 0.5 0.25 0.75 2 0.5 0.5 1 0 0 0\n" * 2)
    content = {"train": "images/train", "val": "images/val", "names": {0: "dog"}, "kpt_shape": [3, 3]}
    (root / "data.yaml").write_text(yaml.safe_dump({**content, "flip_idx": [0, 2, 1], "kpt_names": {0: NAMES}}))
    return root


def people(annotation_file: str, schema: Any) -> dict[str, list[tuple[Any, Any]]]:
    """File name -> (box, keypoints) of each person; no crowds."""
    return {
        Path(record["file_name"]).name: [
            (person["bbox"], person["keypoints"]) for person in record["people"] if not person["iscrowd"]
        ]
        for record in read_coco(annotation_file, schema).records()
    }


def test_yolo_becomes_coco_in_the_pixels_of_the_turned_image(dogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(dogs)]) == 0
    printed = capsys.readouterr()
    assert "person_keypoints_train.json: 2 images, 3 people, 0 with nobody" in printed.out
    assert "person_keypoints_val.json: 1 images, 0 people, 1 with nobody" in printed.out
    assert f"root {dogs}, 3 keypoints of 3 values, classes dog" in printed.err
    source = find_source(str(dogs), "train")
    schema = read_schema(str(dogs / "schema.yaml"))
    assert schema.keypoints == tuple(NAMES) and schema.flip_pairs == (("left_ear", "right_ear"),)
    found = people(source.annotation_file, schema)
    assert found["turned.jpg"] == [([10, 20, 20, 40], [10, 60, 2, 20, 40, 1, 0, 0, 0])]
    assert found["plain.jpg"] == [([20, 10, 40, 20], [20, 30, 2, 40, 20, 1, 0, 0, 0])] * 2
    for record in read_coco(source.annotation_file, schema).records():
        assert Path(image_path(source, record["file_name"]).removeprefix("file://")).is_file()
    assert main(["doctor", str(dogs), "--split", "train"]) == 0


def test_coco_becomes_yolo_and_comes_back_to_a_thousandth_of_a_pixel(
    people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(people_coco), "--out", str(tmp_path / "yolo")]) == 0
    printed = capsys.readouterr().out
    assert "17 keypoints, class person" in printed and "val (from val2017): 7 images" in printed
    data = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert data["kpt_shape"] == [17, 3] and data["flip_idx"] == COCO17.flip_index
    assert data["names"] == {0: "person"} and data["kpt_names"] == {0: list(COCO17.keypoints)}
    assert all(path.is_symlink() for path in (tmp_path / "yolo/images/val").iterdir())
    assert main(["convert", str(tmp_path / "yolo" / "data.yaml"), "--out", str(tmp_path / "back")]) == 0
    assert f"read it with --images {tmp_path}/yolo" in capsys.readouterr().out
    assert read_schema(str(tmp_path / "back/schema.yaml")) == COCO17
    for split in ("train", "val"):
        before = people(find_source(str(people_coco), f"{split}2017").annotation_file, COCO17)
        after = people(str(tmp_path / f"back/annotations/person_keypoints_{split}.json"), COCO17)
        assert before.keys() == after.keys()
        for name, expected in before.items():
            for (box, points), (box2, points2) in zip(expected, after[name], strict=True):
                labelled = np.reshape(points or [0] * 51, (-1, 3))
                labelled = labelled * (labelled[:, 2:] > 0)
                assert np.abs(np.subtract(box, box2)).max() < 5e-4
                assert np.abs(labelled - np.reshape(points2 or [0] * 51, (-1, 3))).max() < 5e-4


def test_images_may_be_copied_and_a_second_run_changes_nothing(people_coco: Path, tmp_path: Path) -> None:
    arguments = ["convert", str(people_coco), "--split", "val2017", "--out", str(tmp_path), "--copy"]
    assert main(arguments) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not any(path.is_symlink() for path in before) and len(before) == 15
    assert main([word for word in arguments if word != "--copy"]) == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_wrong_lines_are_named_and_nothing_is_written_unless_allowed(
    dogs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (dogs / "labels/train/plain.txt").open("a") as file:
        file.write("0 0.5 nan 0.5 0.5 0.25 0.75 2 0.5 0.5 1 0 0 0\n3" + " 0.5" * 13 + "\n")
    (dogs / "labels/train/gone.txt").write_text("")
    (dogs / "images/train/broken.jpg").write_text("no image")
    (dogs / "images/train/notes.txt").write_text("not a label either")
    assert main(["convert", str(dogs)]) == 1
    error = capsys.readouterr().err
    assert f"{dogs}/labels/train/plain.txt:3: nan is not a finite number" in error
    assert f"{dogs}/labels/train/plain.txt:4: class 3, expected 0 to 0" in error
    assert f"{dogs}/labels/train/gone.txt: no image {dogs}/images/train/gone.*" in error
    assert f"{dogs}/images/train/broken.jpg: broken.jpg: 8 bytes that are not an image" in error
    assert "1 lines that are not finite" in error and "--allow-errors" in error
    assert not (dogs / "annotations").exists() and not (dogs / "schema.yaml").exists()
    assert main(["convert", str(dogs), "--allow-errors"]) == 0
    printed = capsys.readouterr()
    assert "person_keypoints_train.json: 2 images, 3 people" in printed.out
    assert "left out: " in printed.err and "1 classes out of range" in printed.err


def test_many_problems_are_in_a_file(dogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dogs / "labels/train/plain.txt").write_text("0 1 2\n" * 50)
    assert main(["convert", str(dogs)]) == 1
    error = capsys.readouterr().err
    assert error.count("3 columns") == 20 and f"all of them are in {dogs}/convert_problems.txt" in error
    assert (dogs / "convert_problems.txt").read_text().count("\n") == 50


def test_pairs_of_numbered_keypoints_come_from_flip_idx_and_classes_become_categories(dogs: Path) -> None:
    data = yaml.safe_load((dogs / "data.yaml").read_text())
    del data["kpt_names"]
    (dogs / "data.yaml").write_text(yaml.safe_dump({**data, "names": ["dog", "cat"]}))
    (dogs / "labels/train/turned.txt").write_text("1 0.5 0.5 0.5 0.5 0.25 0.75 2 0.5 0.5 1 0 0 0\n")
    assert main(["convert", str(dogs)]) == 0
    content = json.loads((dogs / "annotations/person_keypoints_train.json").read_text())
    assert [(c["id"], c["name"], c["flip_pairs"]) for c in content["categories"]] == [
        (1, "dog", [["keypoint_1", "keypoint_2"]]),
        (2, "cat", [["keypoint_1", "keypoint_2"]]),
    ]
    assert sorted(a["category_id"] for a in content["annotations"]) == [1, 1, 2]
    assert read_schema(str(dogs / "schema.yaml")).flip_index == [0, 2, 1]


def test_what_yolo_cannot_hold_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def person(**values: Any) -> dict[str, Any]:
        plain = {"image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 200, "iscrowd": 0}
        return {**plain, "keypoints": [12, 12, 2, -3, 5, 2, 0, 0, 0], "num_keypoints": 2, **values}

    good = [3, 12, 2, 4, 13, 2, 0, 0, 0]
    people = [person(), person(iscrowd=1)]
    people += [person(bbox=[-30, 5, width, 10], keypoints=good) for width in (40, 20)]
    people += [
        person(keypoints=[12, 12, 2, 13, 13, 2, 0, 0, 0]) for _ in range(100)
    ]  # a file with many of those is refused
    content = {
        "images": [{"id": 1, "file_name": "sub\\a.jpg", "width": 80, "height": 40}],
        "annotations": [{**value, "id": number} for number, value in enumerate(people, 1)],
        "categories": [{"id": 1, "name": "dog", "keypoints": NAMES}],
    }
    (tmp_path / "set/sub").mkdir(parents=True)
    (tmp_path / "set/sub/a.jpg").write_bytes(encode_jpeg(np.zeros((40, 80, 3), np.uint8)))
    (tmp_path / "set/result.json").write_text(json.dumps(content))
    assert main(["convert", str(tmp_path / "set"), "--out", str(tmp_path / "yolo")]) == 0
    printed = capsys.readouterr()
    assert "1 crowds left out" in printed.out and "1 boxes cut at the border" in printed.out
    assert "1 people whose box is outside the image left out" in printed.out and "102 objects" in printed.out
    assert "1 keypoints outside the image made unlabelled" in printed.out and "backslashes read as /" in printed.err
    first, cut, *_ = (tmp_path / "yolo/labels/train/sub/a.txt").read_text().splitlines()
    assert first == "0 0.25 0.5 0.25 0.5 0.15 0.3 2 0 0 0 0 0 0"
    assert cut.startswith("0 0.0625 0.25 0.125 0.25 ")


def test_images_of_coco_that_cannot_be_used_are_named(
    people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(people_coco, tmp_path / "coco")
    first, second, third, *_ = sorted((tmp_path / "coco/val2017").iterdir())
    first.unlink()
    second.write_bytes(second.read_bytes()[:500])
    third.write_bytes(encode_jpeg(np.zeros((3, 5, 3), np.uint8)))
    arguments = ["convert", str(tmp_path / "coco"), "--split", "val2017", "--out", str(tmp_path / "out")]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert f"{first.name}: no such file in " in error and f"{second.name}: damaged" in error
    assert "1 images with missing_image, 1 images with corrupt_image, 1 images with size_mismatch" in error
    assert f"{third.name}: 5 x 3, the json says" in error and not (tmp_path / "out/data.yaml").exists()
    assert main([*arguments, "--allow-errors"]) == 0
    assert "4 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{coco}"], "--out is missing"),
        (["{coco}", "--out", "s3://bucket/x"], "--out is missing: a folder on this machine"),
        (["{dogs}", "--split", "train"], "--split, --images, --schema, --category and --copy go with COCO's format"),
        (["{dogs}/nowhere", "--out", "x"], "no such file or folder"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, dogs: Path, people_coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", *(word.format(dogs=dogs, coco=people_coco) for word in arguments)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_what_yolo_does_not_say_is_said(dogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load((dogs / "data.yaml").read_text())
    (dogs / "data.yaml").write_text(yaml.safe_dump({**content, "kpt_names": None, "flip_idx": [0, 1, 2]}))
    assert main(["convert", str(dogs)]) == 0
    printed = capsys.readouterr().out
    assert "keypoints have numbers for names: data.yaml has no kpt_names" in printed
    assert "no keypoint has a mirror partner" in printed and "--data.augment.flip 0" in printed
    (dogs / "data.yaml").write_text(yaml.safe_dump(content))
    assert main(["convert", str(dogs)]) == 0
    assert "keypoint" not in capsys.readouterr().out.replace("person_keypoints", "")


def test_labels_without_a_data_file_are_named(dogs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Label Studio writes classes.txt, notes.json, images/ and labels/."""
    (dogs / "data.yaml").unlink()
    (dogs / "notes.json").write_text('{"categories": [], "info": {}}')
    assert main(["convert", str(dogs)]) == 2
    assert f"{dogs}: labels of YOLO's format, but no data.yaml" in capsys.readouterr().err
