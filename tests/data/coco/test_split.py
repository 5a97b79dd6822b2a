"""Tests a split that is packed into a temporary file."""

import json
import math
import pickle
from typing import Any

import pytest

from posefleet.data.coco.reader import left_out_sentences
from posefleet.data.coco.records import encode_record, make_record
from posefleet.data.coco.split import CocoSplit, read_coco
from posefleet.data.errors import DataError
from posefleet.data.schemas.shipped import COCO17


def read(coco: Any) -> CocoSplit:
    return read_coco(str(coco.save().annotation_file), COCO17)


def test_records_equal_those_in_shards(tiny_coco: Any) -> None:
    tiny_coco.add_person(2, shift=(1, 0))
    tiny_coco.people.reverse()
    tiny_coco.images.reverse()
    split = read(tiny_coco)
    people = [person for person in tiny_coco.people if person["image_id"] == 2]
    assert [person["id"] for person in people] == [106, 101]  # as they stand in the file
    assert split.image_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert split.encoded(1) == encode_record(make_record(tiny_coco.images[-2], people))
    assert [record["image_id"] for record in split.records()] == [1, 2, 3, 4, 5, 6]


def test_categories_may_come_after_the_annotations(tiny_coco: Any) -> None:
    tiny_coco.people[0]["category_id"] = 7
    for people, category in ((1, 7), (5, 1)):
        tiny_coco.content["categories"] = [{"id": category, "name": "person"}, {"id": 8 - category, "name": "ball"}]
        split = read(tiny_coco)
        assert list(json.loads(tiny_coco.annotation_file.read_text()))[-1] == "categories"
        assert sum(len(record["people"]) for record in split.records()) == people


def test_records_with_errors_are_refused_or_left_out_and_listed(tiny_coco: Any) -> None:
    """Each error costs its own record; everything else of the file stays."""
    tiny_coco.add_person(5)  # annotation 106
    tiny_coco.people[4]["area"] = math.inf
    tiny_coco.people[0]["iscrowd"] = "0"
    tiny_coco.people[1]["id"] = 103  # also the id of the fourth
    tiny_coco.people[2]["keypoints"][2] = 7
    tiny_coco.images[5]["width"] = "64"
    with pytest.raises(DataError) as refused:
        read(tiny_coco)
    for text in ("104 of image 5: area is inf", 'annotation 100 of image 1: iscrowd "0"', 'image 6: width "64"',
                 "duplicate_annotation_id (1): annotation 103", "nose has visibility 7", "--allow-errors"):  # fmt: skip
        assert text in str(refused.value)
    split = read_coco(str(tiny_coco.annotation_file), COCO17, allow_errors=True)
    assert [(r["image_id"], [p["id"] for p in r["people"]]) for r in split.records()] == [
        (1, []), (2, [103]), (3, []), (4, []), (5, [106])
    ]  # fmt: skip
    assert split.left_out.as_dict() == {
        "images": {"bad_image_record": [6]},
        "annotations": {
            "bad_annotation_record": [100], "bad_image_record": [105], "not_finite": [104], "bad_visibility": [102],
            "duplicate_annotation_id": [103],
        },
    }  # fmt: skip
    assert left_out_sentences(split.left_out.as_dict())[:2] == [
        "1 image left out, bad_image_record: 6",
        "1 annotation left out, bad_annotation_record: 100",
    ]


def test_nobody_left_is_an_error_in_any_case(tiny_coco: Any) -> None:
    for person in tiny_coco.people:
        person["iscrowd"] = "0"
    with pytest.raises(DataError, match=r"iscrowd .*not one person with a labelled keypoint among 6 images"):
        read_coco(str(tiny_coco.save().annotation_file), COCO17, allow_errors=True)
    for person in tiny_coco.people:
        person |= {"iscrowd": 0, "keypoints": [0.5, 0.25, 2] * 17, "bbox": [0.1, 0.1, 0.8, 0.8], "area": 0.6}
    with pytest.raises(DataError, match=r"without the records that have errors nobody .*normalised_coordinates"):
        read_coco(str(tiny_coco.save().annotation_file), COCO17, allow_errors=True)


def test_images_with_equal_ids_are_left_out_with_their_people(tiny_coco: Any) -> None:
    tiny_coco.images[1]["id"] = 1
    tiny_coco.people[1]["image_id"] = 1
    with pytest.raises(DataError, match=r"duplicate_image_id \(1\): image 1 \(000000000002.jpg\) and 000000000001.jpg"):
        read(tiny_coco)
    split = read_coco(str(tiny_coco.annotation_file), COCO17, allow_errors=True)
    assert split.image_ids.tolist() == [3, 4, 5, 6]
    assert split.record(0)["file_name"] == "000000000003.jpg"
    assert [person["id"] for person in split.record(0)["people"]] == [102]
    assert split.left_out.as_dict() == {
        "images": {"duplicate_image_id": [1, 1]},
        "annotations": {"duplicate_image_id": [100, 101]},
    }


def test_a_copy_in_another_process_is_whole(tiny_coco: Any) -> None:
    split = read(tiny_coco)
    data = pickle.dumps(split)
    records = list(split.records())
    del split
    assert list(pickle.loads(data).records()) == records
