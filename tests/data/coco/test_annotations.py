"""Tests reading COCO annotations and writing COCO results."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from posefleet.data.coco.annotations import people_of
from posefleet.data.coco.results import write_results
from posefleet.data.coco.source import find_source, find_splits, image_path
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.images import decode_image, verify_image
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.structures import Poses

Jpeg = Callable[..., bytes]


def test_a_split_is_read_by_image(tiny_coco: Any) -> None:
    split = read_coco(str(tiny_coco.annotation_file), COCO17)
    assert split.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert [person["id"] for person in split.record(2)["people"]] == [102]


def test_people_have_corners_areas_and_zeroed_unlabelled_keypoints() -> None:
    keypoints = [0] * 51
    keypoints[0:6] = [10, 20, 2, 30, 40, 1]
    keypoints[6:9] = [7, 7, 0]  # coordinates that v = 0 says nothing about
    people = people_of(
        [
            {"id": 1, "bbox": [1, 2, 3, 4], "area": 5, "iscrowd": 0, "keypoints": keypoints},
            {"id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 1},
        ],
        COCO17,
    )
    assert people.keypoints[0, :3].tolist() == [[10, 20], [30, 40], [0, 0]]
    assert people.visibility[0, :3].tolist() == [2, 1, 0]
    assert people.boxes.tolist() == [[1, 2, 4, 6], [0, 0, 10, 10]]
    assert people.areas.tolist() == [5, 53]  # no area: 0.53 of the box
    assert people.crowd.tolist() == [False, True]
    assert people.labelled.tolist() == [True, False]


def test_nobody_is_an_empty_people() -> None:
    assert len(people_of([], CROWDPOSE14)) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ('{"images": [,]}', r"not json: Expecting value at line 1, column 13"),
        ("[1]", "expected a json object .* found a list"),
        ('{"images": []}', "no list 'annotations'"),
        ('{"images": [{"id": 1}], "annotations": []}', "image 1: no file_name, expected a text"),
        (
            '{"images": [{"id": "a", "file_name": "a", "width": 1, "height": 1}], "annotations": []}',
            'id "a", expected an integer',
        ),
        (
            '{"images": [{"id": 1, "file_name": 7, "width": 1, "height": 1}], "annotations": []}',
            "image 1: file_name 7, expected a text",
        ),
        ('{"images": [], "annotations": [7]}', "annotation 7: expected an object with id, image_id"),
        ('{"images": [], "annotations": []}', "not one person with a labelled keypoint among 0 images"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco(str(file), COCO17)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        read_coco(str(tmp_path / "none.json"), COCO17)


def test_another_number_of_keypoints_names_the_schema_that_fits(tiny_coco: Any) -> None:
    del tiny_coco.content["categories"][0]["keypoints"]
    fitting = (
        r"annotation 100 of image 1 has 17 keypoints, crowdpose14 has 14; schema ap10k17 or .* or ochuman would fit"
    )
    with pytest.raises(DataError, match=fitting):
        read_coco(str(tiny_coco.save().annotation_file), CROWDPOSE14)


def test_another_number_of_keypoints_than_the_category_is_told_without_advice(tiny_coco: Any) -> None:
    tiny_coco.people[0]["keypoints"] = [1, 1, 2] * 14
    with pytest.raises(DataError, match=r"annotation 100 of image 1 has 14 keypoints, coco17 has 17, as its category"):
        read_coco(str(tiny_coco.save().annotation_file), COCO17)
    tiny_coco.people[0]["keypoints"] = [1, 1] * 17
    message = r"annotation 100 of image 1 has 34 numbers for 17 keypoints; expected x, y and visibility of each"
    with pytest.raises(DataError, match=message):
        read_coco(str(tiny_coco.save().annotation_file), COCO17)


def test_things_that_are_not_people_are_left_out(tiny_coco: Any) -> None:
    tiny_coco.content["categories"].append({"id": 18, "name": "dog"})
    tiny_coco.people[0]["category_id"] = 18
    assert read_coco(str(tiny_coco.save().annotation_file), COCO17).record(0)["people"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bbox": [1, 2]}, r"bbox \[1, 2\], expected four numbers"),
        ({"bbox": None}, "no bbox, expected four numbers"),
        ({"area": "x"}, 'area "x", expected a number'),
        ({"area": []}, r"area \[\], expected a number"),
        ({"keypoints": ["x"]}, r'keypoints \["x"\], expected numbers'),
        (
            {"iscrowd": "0", "num_keypoints": 1.5},
            'iscrowd "0", expected 0 or 1; num_keypoints 1.5, expected an integer',
        ),
    ],
)
def test_a_field_of_another_type_is_named(changes: dict[str, Any], message: str, tiny_coco: Any) -> None:
    tiny_coco.people[0].update(changes)
    with pytest.raises(DataError, match=f"annotation 100 of image 1: {message}"):
        read_coco(str(tiny_coco.save().annotation_file), COCO17)


def test_null_means_that_an_optional_field_is_not_there(tiny_coco: Any) -> None:
    tiny_coco.people[0].update(area=None, iscrowd=None, num_keypoints=None, segmentation=None, category_id=None)
    tiny_coco.people[1].update(keypoints=None, num_keypoints=0)
    split = read_coco(str(tiny_coco.save().annotation_file), COCO17)
    (person,) = split.record(0)["people"]
    assert (person["area"], person["iscrowd"], person["num_keypoints"]) == (0.53 * 28 * 40, 0, 17)
    assert split.record(1)["people"][0]["num_keypoints"] == 0


def test_malformed_categories_are_named_and_not_read(tiny_coco: Any) -> None:
    tiny_coco.content["categories"][:0] = [7, {"id": []}, {"name": "person"}]
    file = str(tiny_coco.save().annotation_file)
    with pytest.raises(DataError, match=r"bad_category_record \(3\): category 7: expected an object"):
        read_coco(file, COCO17)
    assert len(read_coco(file, COCO17, allow_errors=True).record(0)["people"]) == 1


def test_a_source_is_found_in_the_layouts_of_coco_crowdpose_and_ochuman(tmp_path: Path) -> None:
    layouts = {
        "coco": ("val2017", "annotations/person_keypoints_val2017.json", "val2017"),
        "coco-images": ("val2017", "annotations/person_keypoints_val2017.json", "images/val2017"),
        "crowdpose": ("test", "json/crowdpose_test.json", "images"),
        "ochuman": ("val", "ochuman_coco_format_val_range_0.00_1.00.json", "images"),
    }
    for name, (split, annotation_file, images) in layouts.items():
        root = tmp_path / name
        (root / annotation_file).parent.mkdir(parents=True)
        (root / annotation_file).write_text("{}")
        (root / images).mkdir(parents=True)
        source = find_source(str(root), split)
        assert source.annotation_file.endswith(f"{name}/{annotation_file}")
        assert source.image_folder.endswith(f"{name}/{images}")
        assert find_splits(str(root)) == [split]


def test_a_source_may_be_the_annotation_file_itself(tiny_coco: Any) -> None:
    source = find_source(str(tiny_coco.annotation_file), tiny_coco.split)
    assert source.image_folder.endswith("coco/train2017")
    assert find_splits(str(tiny_coco.annotation_file)) == ["train2017"]


def test_a_source_that_is_not_there_says_what_is(tiny_coco: Any) -> None:
    with pytest.raises(
        DataError, match=r"no annotation file of split 'val2017'.*annotations/person_keypoints_train2017"
    ):
        find_source(str(tiny_coco.root), "val2017")
    with pytest.raises(DataError, match="no such image folder"):
        find_source(str(tiny_coco.root), "train2017", images="/nowhere")
    with pytest.raises(DataError, match="no such file or folder"):
        find_source("/nowhere/coco", "val2017")
    with pytest.raises(DataError, match=f"for split train2017 of .*{tiny_coco.root} --split train2017"):
        find_source(f"{tiny_coco.root}@train2017", "")


def test_a_file_name_cannot_leave_the_image_folder(tiny_coco: Any) -> None:
    with pytest.raises(DataError, match="is no file of the folder"):
        image_path(tiny_coco.source, "../secret.jpg")


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (64, 48)), ("L", (64, 48)), ("CMYK", (64, 48)), ("RGB", (1, 1))], ids=str
)
def test_an_image_of_any_kind_has_the_size_that_it_decodes_to(
    mode: str, size: tuple[int, int], noise_jpeg: Jpeg
) -> None:
    data = noise_jpeg(0, size, mode)
    assert verify_image(data) == size
    assert decode_image(data).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_an_image_has_the_size_that_a_viewer_shows(orientation: int, size: tuple[int, int], noise_jpeg: Jpeg) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = noise_jpeg(0, exif=exif)
    assert verify_image(data) == size
    assert decode_image(data).shape[1::-1] == size


@pytest.mark.parametrize("cut", [0, 10, 400, 2000])
def test_a_truncated_jpeg_is_refused(cut: int, noise_jpeg: Jpeg) -> None:
    with pytest.raises(DataError, match=r"cat\.jpg"):
        verify_image(noise_jpeg(0)[:cut], what="cat.jpg")


def test_results_are_read_by_pycocotools(tiny_coco: Any, tmp_path: Path) -> None:
    poses = Poses(torch.arange(34.0).reshape(1, 17, 2) + 0.25, torch.full((1, 17), 0.5), torch.tensor([0.75]))
    path = tmp_path / "results.json"
    assert write_results(str(path), {1: poses, 2: Poses.empty(17)}) == 1
    (result,) = json.loads(path.read_text())
    assert result["image_id"] == 1
    assert result["category_id"] == 1
    assert result["score"] == 0.75
    assert result["keypoints"][:6] == [0.25, 1.25, 0.5, 2.25, 3.25, 0.5]
    assert len(COCO(str(tiny_coco.annotation_file)).loadRes(str(path)).getAnnIds()) == 1


def test_exact_results_have_every_digit(tmp_path: Path) -> None:
    poses = Poses(torch.full((1, 17, 2), 1 / 3), torch.full((1, 17), 0.1), torch.tensor([0.7]))
    write_results(str(tmp_path / "results.json"), {1: poses}, exact=True)
    (result,) = json.loads((tmp_path / "results.json").read_text())
    assert torch.equal(torch.tensor(result["keypoints"]).view(17, 3)[:, :2], poses.keypoints[0])
    assert result["keypoints"][0] == float(torch.tensor(1 / 3))


def test_results_refuse_a_pose_that_is_not_finite(tmp_path: Path) -> None:
    poses = Poses(torch.full((1, 17, 2), math.nan), torch.ones(1, 17), torch.ones(1))
    with pytest.raises(ValueError, match="image 7: a predicted pose is not finite"):
        write_results(str(tmp_path / "results.json"), {7: poses})


def test_real_annotations_are_read(coco_mini: Path) -> None:
    source = find_source(str(coco_mini), "val2017")
    split = read_coco(source.annotation_file, COCO17)
    people = [people_of(record["people"], COCO17) for record in split.records()]
    assert len(split) == 67
    assert sum(map(len, people)) == 82
    assert sum(int(p.labelled.sum()) for p in people) == 43
    assert sum(int(p.crowd.sum()) for p in people) == 1
