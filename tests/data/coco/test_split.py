"""Tests a split that is packed into a temporary file."""

import json
import math
import pickle
from typing import Any

from posefleet.data.coco.records import encode_record, make_record
from posefleet.data.coco.split import CocoSplit, read_coco
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
        tiny_coco.content["categories"] = [{"id": category, "name": "person"}]
        split = read(tiny_coco)
        assert list(json.loads(tiny_coco.annotation_file.read_text()))[-1] == "categories"
        assert sum(len(record["people"]) for record in split.records()) == people


def test_people_whose_numbers_are_not_finite_are_counted(tiny_coco: Any) -> None:
    tiny_coco.add_person(5)
    tiny_coco.people[4]["area"] = math.inf
    split = read(tiny_coco)
    assert split.dropped.tolist() == [0, 0, 0, 0, 1, 0]
    assert [person["id"] for person in split.record(4)["people"]] == [106]


def test_of_images_with_equal_ids_the_last_counts(tiny_coco: Any) -> None:
    tiny_coco.images[1]["id"] = 1
    split = read(tiny_coco)
    assert split.image_ids.tolist() == [1, 3, 4, 5, 6]
    assert split.record(0)["file_name"] == "000000000002.jpg"
    assert [person["id"] for person in split.record(0)["people"]] == [100]


def test_a_copy_in_another_process_is_whole(tiny_coco: Any) -> None:
    split = read(tiny_coco)
    data = pickle.dumps(split)
    records = list(split.records())
    del split
    assert list(pickle.loads(data).records()) == records
