"""Seeds every fault that the doctor checks for, and finds it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_images
import numpy as np
import pytest
from PIL import Image

from posefleet.data.coco import reader
from posefleet.data.coco.source import Source
from posefleet.data.doctor import examine as doctor
from posefleet.data.doctor.__main__ import main
from posefleet.data.doctor.examine import examine
from posefleet.data.findings import CHECKS
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14, load_schema

LEFT_SHOULDER = 3 * COCO17.keypoints.index("left_shoulder")


def codes(source: Source) -> dict[str, int]:
    """What the doctor finds: counts by code."""
    return {finding.code: finding.count for finding in examine(source, COCO17, workers=2).findings}


def swap_sides(coco: Any, names: tuple[str, ...] = COCO17.keypoints) -> None:
    keypoints = np.array(coco.people[0]["keypoints"]).reshape(17, 3)
    rows = [COCO17.keypoints.index(name) for name in names]
    keypoints[rows] = keypoints[COCO17.flip_index][rows]
    coco.people[0]["keypoints"] = keypoints.ravel().tolist()


def set_keypoint(coco: Any, *values: float, people: int = 1) -> None:
    for person in coco.people[:people]:
        person["keypoints"][LEFT_SHOULDER : LEFT_SHOULDER + 3] = values


def image_file(coco: Any) -> Path:
    return coco.folder / coco.images[0]["file_name"]


def turn(coco: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(image_file(coco)) as image:
        image.save(image_file(coco), "JPEG", exif=exif)


def turn_with_json(coco: Any) -> None:
    turn(coco)
    coco.images[0].update(width=48, height=64)


def crowd(coco: Any) -> None:
    coco.add_person(1, iscrowd=1, keypoints=[0] * 51, num_keypoints=0)


def unlabelled(coco: Any, **changes: Any) -> None:
    coco.add_person(1, keypoints=[0] * 51, num_keypoints=0, **changes)


def second_category(coco: Any, name: str, *, keypoints: bool) -> None:
    """A category 2, to which the first annotation belongs."""
    category = {"id": 2, "name": name, "keypoints": list(COCO17.keypoints) if keypoints else []}
    coco.content["categories"].append(category)
    coco.people[0]["category_id"] = 2


def normalise(coco: Any, people: int) -> None:
    """Coordinates from 0 to 1 instead of pixels."""
    for person in coco.people[:people]:
        scale = [64, 48, 1]
        person["keypoints"] = [value / scale[i % 3] for i, value in enumerate(person["keypoints"])]
        person["bbox"] = [value / scale[i % 2] for i, value in enumerate(person["bbox"])]
        person["area"] /= 64 * 48


SQUARE = [17, 4, 40, 4, 40, 40, 17, 40]

FAULTS: list[tuple[str, int | None, Callable[[Any], object]]] = [
    ("missing_image", 1, lambda c: image_file(c).unlink()),
    ("missing_image", 6, lambda c: [file.unlink() for file in c.folder.iterdir()]),
    ("corrupt_image", 1, lambda c: image_file(c).write_bytes(image_file(c).read_bytes()[:1000])),
    ("corrupt_image", 1, lambda c: image_file(c).write_text("not an image")),
    ("costly_image", 1, lambda c: image_file(c).write_bytes(hostile_images.empty_scans(200))),
    ("corrupt_image", 1, lambda c: image_file(c).write_bytes(b"")),
    ("image_outside_folder", 1, lambda c: c.images[0].update(file_name="../../etc/passwd")),
    ("image_outside_folder", 1, lambda c: c.images[0].update(file_name="/etc/passwd")),
    ("unreadable_image", 1, lambda c: [image_file(c).unlink(), image_file(c).mkdir()]),
    ("unreadable_image", 1, lambda c: c.images[0].update(file_name="a" * 300)),
    ("size_mismatch", 1, lambda c: c.images[0].update(width=65)),
    ("exif_mismatch", 1, turn),
    ("exif_orientation", 1, turn_with_json),
    ("unlisted_image", 1, lambda c: (c.folder / "not-labelled.JPG").write_text("")),
    ("other_file", 2, lambda c: [(c.folder / name).write_text("") for name in ("a.txt", ".b.jpg")]),
    ("no_images", 1, lambda c: c.images.clear()),
    ("no_keypoint_people", 1, lambda c: c.people.clear()),
    ("no_keypoint_people", 1, lambda c: [person.update(iscrowd=1) for person in c.people]),
    ("bad_image_record", 1, lambda c: c.images[0].update(id="7")),
    ("bad_image_record", 1, lambda c: c.images[0].update(width=0)),
    ("bad_image_record", 1, lambda c: c.images[0].update(height="48")),
    ("bad_image_record", 1, lambda c: c.images[0].update(height=48.0)),
    ("bad_image_record", 1, lambda c: c.images[0].update(file_name="a\0b")),
    ("bad_image_record", 1, lambda c: c.images[0].update(file_name="")),
    ("bad_image_record", 1, lambda c: c.images[0].update(crowdIndex="0.3")),
    ("bad_image_record", 1, lambda c: c.images.append(None)),
    ("duplicate_image_id", 1, lambda c: c.images[1].update(id=1)),
    ("duplicate_file_name", 1, lambda c: c.images[1].update(file_name=c.images[0]["file_name"])),
    ("images_without_annotations", 1, lambda c: c.people.pop()),
    ("bad_annotation_record", 1, lambda c: c.people[0].pop("image_id")),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(bbox=[1, 2, 3])),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(bbox=None)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(area=[])),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(keypoints=["x"] * 51)),
    ("bad_annotation_record", 1, lambda c: c.people.append([])),
    ("duplicate_annotation_id", 1, lambda c: c.people[1].update(id=100)),
    ("unknown_image", 1, lambda c: c.people[0].update(image_id=77)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(image_id=[])),
    ("unknown_category", 1, lambda c: c.people[0].update(category_id=5)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(category_id={})),
    ("bad_annotation_record", 6, lambda c: [person.update(category_id="1") for person in c.people]),
    ("unknown_category", 1, lambda c: [c.content["categories"].append({"id": 2}), c.people[0].pop("category_id")]),
    ("bad_category_record", 1, lambda c: c.content["categories"].append({"id": "2", "name": "ball"})),
    ("bad_category_record", 1, lambda c: c.content["categories"].append({"id": 2, "name": 7})),
    ("bad_category_record", 1, lambda c: c.content["categories"].append({"id": 1, "name": "ball"})),
    ("people_not_read", 1, lambda c: second_category(c, "person", keypoints=False)),
    ("other_category", 1, lambda c: second_category(c, "ball", keypoints=False)),
    ("unclear_category", 1, lambda c: second_category(c, "goalkeeper", keypoints=True)),
    ("whole_body_parts", 1, lambda c: c.people[0].update(face_kpts=[0] * 204)),
    ("other_category", 2, lambda c: [second_category(c, "ball", keypoints=False), c.people[1].update(category_id=2)]),
    ("not_finite", 1, lambda c: c.people[0]["bbox"].__setitem__(2, math.nan)),
    ("not_finite", 1, lambda c: c.people[0].update(area=math.inf)),
    ("not_finite", 1, lambda c: set_keypoint(c, math.nan, 1.0, 2)),
    ("not_finite", 1, lambda c: set_keypoint(c, math.nan, math.nan, 0)),
    ("not_finite", 1, lambda c: set_keypoint(c, math.inf, 1.0, 0)),
    ("not_finite", 1, lambda c: set_keypoint(c, 38, 12, math.nan)),
    ("not_finite", 1, lambda c: set_keypoint(c, 10**400, 12, 2)),
    ("not_finite", 1, lambda c: c.people[0].update(area=10**400)),
    ("not_finite", 1, lambda c: c.people[0]["bbox"].__setitem__(0, -1e300)),
    ("bad_box", 1, lambda c: c.people[0].update(bbox=[5, 5, 0, 10])),
    ("bad_box", 1, lambda c: c.people[0].update(bbox=[5, 5, -3, 10])),
    ("bad_area", 1, lambda c: c.people[0].update(area=0)),
    ("bad_box_unlabelled", 1, lambda c: [unlabelled(c), c.people[-1].update(area=0)]),
    ("bad_area", 6, lambda c: [person.update(area=0.0) for person in c.people]),
    ("box_outside", 1, lambda c: c.people[0].update(bbox=[16, 3, 50, 40])),
    ("box_outside", 1, lambda c: c.people[0].update(bbox=[200, 3, 28, 40])),
    ("many_boxes_outside", 2, lambda c: [person.update(bbox=[16, 3, 50, 40]) for person in c.people[:2]]),
    ("box_without_keypoints", 1, lambda c: c.people[0].update(bbox=[50, 3, 10, 10])),
    ("many_boxes_without_keypoints", 2, lambda c: [p.update(bbox=[50, 3, 10, 10]) for p in c.people[:2]]),
    ("many_boxes_without_keypoints", 6, lambda c: [p.update(bbox=[0.2, 0.1, 0.5, 0.8]) for p in c.people]),
    ("implausible_area", 1, lambda c: c.people[0].update(area=64 * 48 + 1)),
    ("implausible_area", 1, lambda c: c.people[0].update(area=0.3)),
    ("many_implausible_areas", 2, lambda c: [person.update(area=0.3) for person in c.people[:2]]),
    ("normalised_coordinates", 6, lambda c: normalise(c, 6)),
    ("normalised_coordinates", 2, lambda c: normalise(c, 2)),
    ("keypoints_in_one_pixel", 1, lambda c: normalise(c, 1)),
    ("normalised_coordinates", 1, lambda c: [normalise(c, 1), c.people.__delitem__(slice(1, None))]),
    ("no_area", 1, lambda c: c.people[0].pop("area")),
    ("crowd", 1, crowd),
    ("no_segmentation", 1, crowd),
    ("no_segmentation", 1, unlabelled),
    ("no_segmentation", None, lambda c: c.people[0].pop("area")),  # of people with keypoints nobody needs one
    ("no_segmentation", None, lambda c: unlabelled(c, segmentation=[SQUARE])),
    ("bad_segmentation", None, lambda c: unlabelled(c, segmentation=[SQUARE])),
    ("bad_segmentation", 1, lambda c: unlabelled(c, segmentation=[SQUARE[:-1]])),
    ("bad_segmentation", 1, lambda c: unlabelled(c, segmentation=[[0, 0, 1e12, 0, 1e12, 1e12]])),
    ("bad_segmentation", 1, lambda c: unlabelled(c, segmentation=["a", {}, None])),
    ("bad_segmentation", 1, lambda c: unlabelled(c, segmentation={"size": [48, 64], "counts": "~~~"})),
    ("bad_segmentation", 1, lambda c: unlabelled(c, segmentation={"size": [64, 48], "counts": [3072]})),
    ("bad_segmentation", None, lambda c: c.people[0].update(segmentation=[["not read"]])),
    ("bad_segmentation", 1, lambda c: c.people[0].update(segmentation="no polygons")),
    ("unlabelled", 1, unlabelled),
    ("wrong_keypoint_count", 1, lambda c: c.people[0].update(keypoints=[1, 1, 2] * 14)),
    ("other_keypoints", 1, lambda c: c.content["categories"][0]["keypoints"].reverse()),
    ("bad_visibility", 1, lambda c: set_keypoint(c, 38, 12, 3)),
    ("keypoint_outside", 1, lambda c: set_keypoint(c, 38, 49.5, 2)),
    ("many_keypoints_outside", 3, lambda c: set_keypoint(c, -1.5, 12, 1, people=3)),
    ("wrong_num_keypoints", 1, lambda c: c.people[0].update(num_keypoints=16)),
    ("wrong_num_keypoints", None, lambda c: c.people[0].update(num_keypoints=None)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(num_keypoints="17")),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(num_keypoints=-1)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(iscrowd="0")),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(iscrowd=2)),
    ("bad_annotation_record", None, lambda c: c.people[0].update(iscrowd=False)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(area="700")),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(area=True)),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(bbox="16 3 28 40")),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(bbox=[16, 3, 28, False])),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(keypoints={"nose": [30, 6, 2]})),
    ("bad_annotation_record", 1, lambda c: c.people[0].update(id="100")),
    ("duplicate_person", 1, lambda c: c.add_person(1, shift=(1, 1))),
    ("left_right_swapped", 1, swap_sides),
    ("left_right_swapped", 1, lambda c: swap_sides(c, COCO17.keypoints[5:])),
    ("constant_keypoint", 1, lambda c: set_keypoint(c, 38, 14, 2, people=6)),
    ("never_labelled", 1, lambda c: set_keypoint(c, 0, 0, 0, people=6)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "count", "fault"), FAULTS, ids=[f"{i}-{f[0]}" for i, f in enumerate(FAULTS)])
def test_a_seeded_fault_is_found(code: str, count: int | None, fault: Callable[[Any], object], tiny_coco: Any) -> None:
    fault(tiny_coco)
    assert codes(tiny_coco.save().source).get(code) == count


def test_people_are_checked_in_groups_of_any_size(tiny_coco: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    set_keypoint(tiny_coco, 80, 12, 2, people=6)  # outside, and always there
    tiny_coco.add_person(6, shift=(6, 0))
    tiny_coco.people[5]["keypoints"] = tiny_coco.people[6]["keypoints"]
    whole = examine(tiny_coco.save().source, COCO17)
    for at_a_time in (1, 2):
        monkeypatch.setattr(reader, "PEOPLE_AT_A_TIME", at_a_time)
        monkeypatch.setattr(doctor, "IMAGES_AT_A_TIME", at_a_time)
        assert examine(tiny_coco.source, COCO17) == whole
    codes = {finding.code for finding in whole.findings}
    assert codes == {"many_keypoints_outside", "constant_keypoint", "duplicate_person"}


def test_every_fault_in_the_catalogue_is_seeded() -> None:
    assert {code for code, _, _ in FAULTS} | {"unreadable_annotations", "no_schema"} == set(CHECKS)


def test_a_healthy_data_set_has_no_findings(tiny_coco: Any) -> None:
    report = examine(tiny_coco.source, COCO17)
    assert report.findings == ()
    assert report.statistics.people_by_keypoints == (0,) * 17 + (6,)
    assert report.statistics.labelled_by_keypoint["nose"] == 6


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"images": 3, "annotations": []}', "\xff"])
def test_an_annotation_file_that_cannot_be_read_is_a_finding(text: str, tiny_coco: Any) -> None:
    tiny_coco.annotation_file.write_bytes(text.encode("latin-1"))
    assert codes(tiny_coco.source) == {"unreadable_annotations": 1}


@pytest.mark.parametrize("x", [-1.0, 0.0, 64.0, 65.0])
def test_a_keypoint_on_the_border_is_no_finding(x: float, tiny_coco: Any) -> None:
    set_keypoint(tiny_coco, x, 12, 2)
    assert codes(tiny_coco.save().source) == {}


def test_one_stray_keypoint_among_many_is_a_warning(tiny_coco: Any) -> None:
    tiny_coco.people[:] = tiny_coco.people[:6]
    set_keypoint(tiny_coco, 80, 12, 2)
    assert codes(tiny_coco.save().source) == {"keypoint_outside": 1}  # 1 of 102


def test_a_person_seen_from_behind_is_not_swapped(tiny_coco: Any) -> None:
    swap_sides(tiny_coco, COCO17.keypoints[5:])
    for k in range(5):
        tiny_coco.people[0]["keypoints"][3 * k : 3 * k + 3] = [0, 0, 0]
    tiny_coco.people[0]["num_keypoints"] = 12
    assert codes(tiny_coco.save().source) == {}


def test_crowdpose_is_examined_with_its_own_keypoints(tiny_coco: Any) -> None:
    tiny_coco.content["categories"][0]["keypoints"] = list(CROWDPOSE14.keypoints)
    for person in tiny_coco.people:
        person["keypoints"] = person["keypoints"][9:]
        person["num_keypoints"] = 14
        del person["area"]
    report = examine(tiny_coco.save().source, CROWDPOSE14)
    assert [(finding.code, finding.count) for finding in report.findings] == [("no_area", 6)]


def test_examples_name_the_culprits(tiny_coco: Any) -> None:
    image_file(tiny_coco).unlink()
    tiny_coco.people[2]["area"] = -1
    text = examine(tiny_coco.save().source, COCO17).as_text()
    assert "000000000001.jpg" in text
    assert "annotation 102 of image 3: area -1" in text
    assert "2 kinds of error, 0 kinds of warning" in text


def test_an_example_that_tells_of_several_cases_is_not_followed_by_more(tiny_coco: Any) -> None:
    second_category(tiny_coco, "ball", keypoints=False)
    tiny_coco.people[1]["category_id"] = 2
    text = examine(tiny_coco.save().source, COCO17).as_text()
    assert "ball (id 2): 2" in text and "more" not in text


def test_the_exit_status_reports_errors(tiny_coco: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root, report = str(tiny_coco.root), tmp_path / "report.json"
    assert main([root]) == 0
    tiny_coco.people[0]["num_keypoints"] = 3
    tiny_coco.save()
    assert main([root, "--split", "train2017", "--json", str(report)]) == 0  # a warning
    (finding,) = json.loads(report.read_text())["reports"][0]["findings"]
    assert (finding["code"], finding["severity"], finding["count"]) == ("wrong_num_keypoints", "warning", 1)
    image_file(tiny_coco).unlink()
    assert main([root]) == 1
    assert "missing_image" in capsys.readouterr().out


def test_the_command_says_when_there_is_nothing_to_examine(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path)]) == 2
    assert "no annotation file" in capsys.readouterr().err
    assert main([str(tmp_path / "none")]) == 2
    assert main([str(tmp_path), "--schema", "mpii"]) == 2
    assert "unknown keypoint schema" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_real_annotations_and_images_have_no_errors_and_no_warnings(split: str, coco_mini: Path) -> None:
    folder = coco_mini / split
    source = Source(str(coco_mini / "annotations" / f"person_keypoints_{split}.json"), str(folder), split)
    report = examine(source, COCO17)
    assert {finding.check.severity for finding in report.findings} == {"info"}


def test_animals_with_17_keypoints_are_no_people(tiny_coco: Any, capsys: pytest.CaptureFixture) -> None:
    tiny_coco.content["categories"] = [
        {"id": 1, "name": "cat", "keypoints": list(load_schema("ap10k17").keypoints), "skeleton": [[1, 2]]}
    ]
    source = tiny_coco.save().source
    report = examine(source, COCO17, check_images=False)
    (finding,) = [finding for finding in report.errors if finding.code == "other_keypoints"]
    assert "    0  nose            !=  left_eye" in finding.examples[0]
    assert "              0  nose" in report.as_text()
    assert examine(source, None, check_images=False).schema == "ap10k17"
    assert main([str(tiny_coco.root), "--schema", "coco17"]) == 1
    assert main([str(tiny_coco.root)]) == 0


def test_a_file_that_does_not_say_which_keypoints_it_has(tiny_coco: Any, tmp_path: Path) -> None:
    del tiny_coco.content["categories"][0]["keypoints"]
    source = tiny_coco.save().source
    assert [finding.code for finding in examine(source, None).errors] == ["no_schema"]
    assert examine(source, COCO17).errors == ()
    assert main([str(tiny_coco.root), "--schema", "coco17"]) == 0
    Path(source.annotation_file).write_text("{")
    assert [finding.code for finding in examine(source, None).errors] == ["unreadable_annotations"]
