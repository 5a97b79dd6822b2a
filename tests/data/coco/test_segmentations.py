"""Tests the encoding of segmentations: COCO's kinds, and what people and attackers make of them."""

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from posefleet.data.coco.records import decode_record, encode_record, make_record, outline_of
from posefleet.data.coco.segmentations import encode_segmentation
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.masks import run_lengths
from posefleet.data.schemas.shipped import COCO17

SIZE = (64, 48)
TRIANGLE = [10.5, 5.0, 50.0, 8.0, 30.0, 40.25]
SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]


def area(counts: str | None, size: tuple[int, int] = SIZE) -> int:
    return 0 if counts is None else int(run_lengths([counts], size)[0][1::2].sum())


def test_polygons_are_rasterised_by_cocos_own_code() -> None:
    merged = coco_mask.merge(coco_mask.frPyObjects([TRIANGLE, SQUARE], SIZE[1], SIZE[0]))
    counts = encode_segmentation([TRIANGLE, SQUARE], SIZE)
    assert counts == merged["counts"].decode()
    assert area(counts) == coco_mask.area(merged) > 600


def test_run_lengths_of_either_kind_come_out_compressed() -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[5:40, 7:60] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    flat = mask.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *ends.tolist(), flat.size]).tolist()
    assert encode_segmentation({"size": [48, 64], "counts": counts}, SIZE) == compressed
    assert encode_segmentation({"size": [48, 64], "counts": compressed}, SIZE) == compressed


def test_no_segmentation_and_an_empty_one_are_none() -> None:
    for nothing in (None, [], {"size": [48, 64], "counts": [48 * 64]}, [[1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]):
        assert encode_segmentation(nothing, SIZE) is None


def test_polygons_may_reach_out_of_the_image_and_lines_are_left_out() -> None:
    assert area(encode_segmentation([[-20, -20, 90, -20, 90, 70, -20, 70]], SIZE)) == 48 * 64
    assert encode_segmentation([SQUARE, [5, 5, 40, 40]], SIZE) == encode_segmentation([SQUARE], SIZE)


HOSTILE: list[tuple[Any, str]] = [
    ("mask.png", "is a str"),
    (7, "is a int"),
    ([7], "not a list of x, y"),
    ([["1", "2", "3", "4", "5", "6"]], "not a list of x, y"),
    ([[1, 2, 3, 4, 5]], "not a list of x, y"),
    ([[5, 5, 40, 40]], "no polygon of three or more points"),
    ([[[1, 2], [3, 4], [5, 6]]], "not a list of x, y"),
    ([[1, 1, float("nan"), 9, 9, 9]], "far outside"),
    ([[1, 1, float("inf"), 9, 9, 9]], "far outside"),
    ([[0, 0, 1e9, 0, 1e9, 1e9]], "far outside"),
    ([[0, 0, 60, 40] * 20_000], "has an outline of"),
    ({"counts": [3072]}, "has size None"),
    ({"size": [64, 48], "counts": [3072]}, r"has size \[64, 48\], the image has \[48, 64\]"),
    ({"size": [48, 64]}, "neither a string nor whole numbers"),
    ({"size": [48, 64], "counts": [1.5, 3070.5]}, "neither a string nor whole numbers"),
    ({"size": [48, 64], "counts": [-1, 3073]}, "neither a string nor whole numbers"),
    ({"size": [48, 64], "counts": [True, 3071]}, "neither a string nor whole numbers"),
    ({"size": [48, 64], "counts": [10, 20]}, "covers 30 pixels"),
    ({"size": [48, 64], "counts": [2**40]}, "covers 1099511627776 pixels"),
    ({"size": [48, 64], "counts": "garbage!"}, "run lengths"),
    ({"size": [48, 64], "counts": ""}, "run lengths"),
    ({"size": [48, 64], "counts": "o" * 100_000}, "run lengths"),
]


@pytest.mark.parametrize(("segmentation", "why"), HOSTILE, ids=[str(i) for i in range(len(HOSTILE))])
def test_what_cannot_be_drawn_is_refused_in_short_time_and_little_memory(segmentation: Any, why: str) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(DataError, match=why):
        encode_segmentation(segmentation, SIZE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.perf_counter() - start < 2 and peak < 32e6


@pytest.mark.parametrize("size", [(0, 5), (-3, 4), (1 << 40, 1 << 20)])
def test_an_image_of_impossible_size_has_no_mask(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="segmentation of an image of"):
        encode_segmentation([SQUARE], size)


# ---------------------------------------------------------------------------------------------------- records


def nobody(**changes: Any) -> dict[str, Any]:
    person = {"id": 1, "image_id": 1, "bbox": [2, 2, 10, 10], "area": 100.0, "iscrowd": 0, "keypoints": [0] * 51}
    return {**person, "segmentation": [SQUARE], **changes}


def test_records_hold_segmentations_of_crowds_and_unlabelled_people_only() -> None:
    image = {"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}
    people = [
        nobody(id=1),
        nobody(id=2, keypoints=[5, 5, 2] + [0] * 48),
        nobody(id=3, iscrowd=1, keypoints=[5, 5, 2] + [0] * 48, segmentation={"size": [48, 64], "counts": [5, 3067]}),
        nobody(id=4, segmentation=[]),
        nobody(id=5, segmentation="garbage"),
    ]
    record = make_record(image, people)
    counts = encode_segmentation([SQUARE], SIZE)
    assert [person.get("segmentation") for person in record["people"]] == [
        {"size": [48, 64], "counts": counts},
        None,
        {"size": [48, 64], "counts": encode_segmentation(people[2]["segmentation"], SIZE)},
        None,
        None,
    ]
    *_, outlines = decode_record(encode_record(record), COCO17)
    assert outlines == (counts, None, record["people"][2]["segmentation"]["counts"], None, None)
    assert outline_of(people[4], SIZE) == (None, "segmentation is a str, expected polygons or run lengths")
    *_, outlines = decode_record(encode_record(make_record(image, people[3:])), COCO17)
    assert outlines == ()


@pytest.mark.parametrize("segmentation", [7, {}, {"counts": 5}, {"counts": [1, 2]}, None, "x"])
def test_a_damaged_record_is_refused(segmentation: Any) -> None:
    record = make_record({"id": 1, "file_name": "1.jpg", "width": 64, "height": 48}, [nobody()])
    record["people"][0]["segmentation"] = segmentation
    with pytest.raises(DataError, match="record"):
        decode_record(encode_record(record), COCO17)


def test_the_split_counts_what_it_leaves_out(tiny_coco: Any) -> None:
    tiny_coco.add_person(2, keypoints=[0] * 51, segmentation=[SQUARE])
    tiny_coco.add_person(2, keypoints=[0] * 51, segmentation="no mask")
    tiny_coco.add_person(4, iscrowd=1, segmentation={"size": [1, 2], "counts": [2]})
    tiny_coco.add_person(5, segmentation="of a person with keypoints, which nobody reads")
    split = read_coco(str(tiny_coco.save().annotation_file), COCO17)
    assert split.bad_segmentations.tolist() == [0, 1, 0, 1, 0, 0]
    assert ["segmentation" in person for person in split.record(1)["people"]] == [False, True, False]
