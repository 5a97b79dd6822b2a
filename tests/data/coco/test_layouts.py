"""Data sets as label tools export them: where the annotations and images are, and how file names are written."""

import json
import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
from layouts import LAYOUTS, YOLO, annotations, write

from posefleet.data.coco.file_names import AS_WRITTEN, NameRule, fit_rule
from posefleet.data.coco.source import Source, find_source, find_splits, image_path
from posefleet.data.doctor.examine import examine
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image


def greys(source: Source) -> list[int]:
    """The grey of each image of a source, in the order of the annotations."""
    fs, file = fsspec.core.url_to_fs(source.annotation_file)
    names = [image["file_name"] for image in json.loads(fs.cat_file(file))["images"]]
    return [int(decode_image(fs.cat_file(image_path(source, name)))[4, 4, 0]) for name in names]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_data_set_is_found_as_it_is_exported(layout: str, tmp_path: Path) -> None:
    files, split, splits = LAYOUTS[layout]
    write(tmp_path, files)
    source = find_source(str(tmp_path), split)
    expected = [10, 20, 30, 40][: len(greys(source))]
    assert np.abs(np.subtract(greys(source), expected)).max() <= 2
    assert find_splits(str(tmp_path)) == splits
    assert f"images in {source.image_folder.removeprefix('file://')}" in str(source)
    by_file = find_source(source.annotation_file, "")
    assert (by_file.image_folder, by_file.split) == (source.image_folder, source.split)


@pytest.mark.parametrize("layout", ["CVAT", "Roboflow", "Label Studio on Windows", "FiftyOne"])
def test_a_remote_store_is_read_as_a_disk(layout: str, tmp_path: Path) -> None:
    files, split, _ = LAYOUTS[layout]
    fs = fsspec.filesystem("memory")
    fs.put(str(write(tmp_path / "set", files)), "/layouts", recursive=True)
    try:
        assert np.abs(np.subtract(greys(find_source("memory://layouts", split)), [10, 20])).max() <= 2
    finally:
        fs.rm("/layouts", recursive=True)


@pytest.mark.parametrize("layout", ["CVAT", "Roboflow", "Label Studio on Windows"])
def test_a_folder_may_have_the_characters_of_patterns(layout: str, tmp_path: Path) -> None:
    files, split, splits = LAYOUTS[layout]
    folder = write(tmp_path / "a[b]* c? s3:x#", files)
    assert np.abs(np.subtract(greys(find_source(str(folder), split)), [10, 20])).max() <= 2
    assert find_splits(str(folder)) == splits


def test_what_was_chosen_is_said(tmp_path: Path) -> None:
    write(tmp_path, LAYOUTS["Label Studio on Windows"][0])
    assert str(find_source(str(tmp_path), "")) == (
        f"annotations {tmp_path}/result.json, images in {tmp_path}; file names: backslashes read as /"
    )
    assert str(NameRule(url=True, upload=True, prefix="data/upload")) == (
        "URL escapes decoded, the digits before uploaded names left out, 'data/upload/' left out"
    )


def test_two_folders_with_the_images_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, {"labels.json": annotations(["a.jpg"]), "data/a.jpg": 10, "images/a.jpg": 20})
    with pytest.raises(DataError, match=r"/images or those in .*/data: both have 1 of the file names.*--images"):
        find_source(str(tmp_path), "")
    assert greys(find_source(str(tmp_path), "", str(tmp_path / "data"))) == [10]
    shutil.rmtree(tmp_path / "data")
    os.symlink(tmp_path / "images", tmp_path / "data")  # the same files
    assert greys(find_source(str(tmp_path), "")) == [20]


def test_the_folder_with_more_of_the_images_is_taken(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg"]
    write(tmp_path, {"train.json": annotations(names), "train/a.jpg": 1, "images/a.jpg": 2, "images/b.jpg": 3})
    assert find_source(str(tmp_path), "").image_folder.endswith("/images")


def test_two_files_of_annotations_are_an_error_that_names_both(tmp_path: Path) -> None:
    write(tmp_path, {"a.json": annotations(["a.jpg"]), "b.json": annotations(["a.jpg"]), "a.jpg": 10})
    with pytest.raises(DataError, match=r"the annotations could be any of .*/a\.json, .*/b\.json; name the file"):
        find_source(str(tmp_path), "")
    write(tmp_path, {"annotations/val.json": annotations(["a.jpg"]), "val.json": annotations(["a.jpg"])})
    with pytest.raises(DataError, match=r"split 'val' could be any of .*annotations/val\.json, .*/val\.json"):
        find_source(str(tmp_path), "val")


def test_several_splits_are_an_error_that_lists_them(tmp_path: Path) -> None:
    write(tmp_path, LAYOUTS["Roboflow"][0])
    with pytest.raises(DataError, match="has the splits train, valid; name one with --split"):
        find_source(str(tmp_path), "")
    with pytest.raises(DataError, match=r"no annotation file of split 'test'.*valid/_annotations\.coco\.json"):
        find_source(str(tmp_path), "test")


def test_no_annotations_and_no_images_say_what_to_give(tmp_path: Path) -> None:
    write(tmp_path, {"notes.json": b'{"a": 1}'})
    with pytest.raises(DataError, match=r"no annotation file; json files there: notes\.json; name one of them"):
        find_source(str(tmp_path), "")
    write(tmp_path, {"labels.json": annotations(["a.jpg"])})
    with pytest.raises(DataError, match=r"no image folder; looked for .*; name it with --images"):
        find_source(str(tmp_path), "")


def test_images_beside_a_file_that_lists_none_are_no_other_fault(tmp_path: Path) -> None:
    content = json.loads(annotations(["a.jpg"]))
    content["images"][0]["id"] = "1"
    write(tmp_path, {"labels.json": json.dumps(content).encode(), "a.jpg": 10})
    source = find_source(str(tmp_path), "")
    assert source.image_folder == f"file://{tmp_path}"
    codes = [finding.code for finding in examine(source, None).findings]
    assert "bad_image_record" in codes


def test_a_folder_of_yolo_says_how_it_is_converted(tmp_path: Path) -> None:
    write(tmp_path, YOLO)
    with pytest.raises(DataError, match=rf"if data.yaml is YOLO's, convert it: posefleet convert {tmp_path}"):
        find_source(str(tmp_path), "")


def test_the_image_folder_of_a_split_leads_to_its_data_set(tmp_path: Path) -> None:
    write(tmp_path, {"annotations/person_keypoints_val2017.json": annotations(["a.jpg"]), "val2017/a.jpg": 10})
    with pytest.raises(DataError, match=rf"{tmp_path} has annotations of these images: .* --split val2017"):
        find_source(str(tmp_path / "val2017"), "")


def test_a_name_that_another_name_also_leads_to_is_not_changed() -> None:
    files = {"1.jpg"}
    assert fit_rule(["train/1.jpg", "val/1.jpg"], files.__contains__).rule == AS_WRITTEN
    assert fit_rule(["train/1.jpg"], files.__contains__).rule == NameRule(prefix="train")


@pytest.mark.parametrize(
    ("rule", "name", "path"),
    [
        (AS_WRITTEN, "./a\\b%20.jpg", "./a\\b%20.jpg"),
        (NameRule(prefix="."), "./a//b.jpg", "a/b.jpg"),
        (NameRule(backslashes=True, prefix="C:/x"), "C:\\x\\y\\a.jpg", "y/a.jpg"),
        (NameRule(url=True), "https://host/a%2Fb%20c.jpg?size=2", "/a/b c.jpg"),
        (NameRule(url=True, prefix="*"), "s3://bucket/a/100%25.jpg", "100%.jpg"),
        (NameRule(url=True), "/data/local-files/?x=1&d=a%2Fb.jpg", "a/b.jpg"),
        (NameRule(upload=True, prefix="*"), "/data/upload/7/0a1b2c3d-my.jpg", "my.jpg"),
        (NameRule(upload=True), "2019-summer.jpg", "summer.jpg"),
        (NameRule(prefix="a/b"), "a/c/b.jpg", "a/c/b.jpg"),
    ],
)
def test_a_rule_turns_a_name_into_a_path(rule: NameRule, name: str, path: str) -> None:
    assert rule(name) == path


def test_names_that_are_found_as_written_stay_as_they_are(tmp_path: Path) -> None:
    odd = ["100%25.jpg", "a\\b.jpg", "0a1b2c3d-x.jpg", "d#1::x[1]*.jpg"]
    write(tmp_path, {"train.json": annotations(odd), **{f"train/{name}": n for n, name in enumerate(odd)}})
    write(tmp_path, {"train/100%.jpg": 99, "train/a/b.jpg": 99, "train/x.jpg": 99})
    source = find_source(str(tmp_path), "")
    assert source.names == AS_WRITTEN and np.abs(np.subtract(greys(source), range(4))).max() <= 2
