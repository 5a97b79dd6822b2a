"""All readers of annotation files refuse the same files, and leave out the same records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from posefleet.data.coco.annotations import COUNT
from posefleet.data.coco.file_schema import choose_categories, read_file_schema, read_keypoint_names
from posefleet.data.coco.source import Source
from posefleet.data.coco.split import read_coco
from posefleet.data.doctor.examine import examine
from posefleet.data.errors import DataError, UnclearCategory
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.findings import CHECKS
from posefleet.data.loading.coco_dataset import FolderDataset
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, load_schema
from posefleet.data.shards.build import shard_coco
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.platform.prediction.inputs import list_images

VIEW = EvalTransform(Resize(short_side=32, long_side=64), COCO17)
NAMES = list(COCO17.keypoints)

FAULTS: list[tuple[str, Callable[[Any], object]]] = [
    ("bad_annotation_record", lambda c: c.people[0].update(iscrowd="0")),
    ("bad_annotation_record", lambda c: c.people[0].update(category_id="1")),
    ("bad_annotation_record", lambda c: c.people[0].update(area="700")),
    ("bad_annotation_record", lambda c: c.people[0].update(num_keypoints=17.0)),
    ("not_finite", lambda c: c.people[0]["keypoints"].__setitem__(slice(0, 3), [float("nan"), 1, 0])),
    ("not_finite", lambda c: c.people[0].update(area=float("inf"))),
    ("bad_area", lambda c: c.people[0].update(area=0)),
    ("bad_box", lambda c: c.people[0].update(bbox=[16, 3, 0, 40])),
    ("bad_visibility", lambda c: c.people[0]["keypoints"].__setitem__(2, 3)),
    ("wrong_keypoint_count", lambda c: c.people[0].update(keypoints=[1, 1, 2] * 14)),
    ("unknown_image", lambda c: c.people[0].update(image_id=99)),
    ("unknown_category", lambda c: c.people[0].update(category_id=9)),
    ("duplicate_annotation_id", lambda c: c.people[0].update(id=101)),
    ("bad_image_record", lambda c: c.images[0].update(width="64")),
    ("duplicate_image_id", lambda c: [c.images[0].update(id=2), c.people[0].update(image_id=2)]),
]


def readers(source: Source, root: Path, **allowed: bool) -> dict[str, Callable[[], object]]:
    """Everything that reads annotations, by name; all return the ids of the people that they read."""
    file = source.annotation_file

    def sharded() -> list[int]:
        manifest = shard_coco(source, str(root / "shards"), COCO17, parallel=False, **allowed).manifest
        return [manifest.counts["people"], manifest.counts["images"]]

    def evaluated() -> list[int]:
        records = list(FolderDataset(source, COCO17, VIEW, **allowed).records())
        return [sum(len(record["people"]) for record in records), len(records)]

    def scored() -> list[int]:
        truth = GroundTruth.from_coco(file, **allowed)
        return [len(truth.areas), len(truth.image_ids)]

    def packed() -> list[int]:
        records = list(read_coco(file, COCO17, **allowed).records())
        return [sum(len(record["people"]) for record in records), len(records)]

    return {"shard": sharded, "evaluate": evaluated, "score": scored, "read": packed}


@pytest.mark.parametrize(("code", "fault"), FAULTS, ids=[f"{i}-{code}" for i, (code, _) in enumerate(FAULTS)])
def test_what_one_refuses_all_refuse_and_what_one_leaves_out_all_do(
    code: str, fault: Callable[[Any], object], tiny_coco: Any, tmp_path: Path
) -> None:
    fault(tiny_coco)
    source = tiny_coco.save().source
    assert code in [finding.code for finding in examine(source, COCO17, check_images=False).errors]
    for reader in readers(source, tmp_path).values():
        with pytest.raises(DataError, match=rf"{code} \(\d\)"):
            reader()
    found = {name: reader() for name, reader in readers(source, tmp_path, allow_errors=True).items()}
    images = {"bad_image_record": 5, "duplicate_image_id": 4}.get(code, 6)
    people = {"duplicate_image_id": 4}.get(code, 5)
    assert found == {name: [people, images] for name in found}


def test_prediction_refuses_the_same_images(tiny_coco: Any) -> None:
    tiny_coco.images[1]["id"] = 1
    with pytest.raises(DataError, match=r"duplicate_image_id \(1\): image 1 \(000000000002.jpg\)"):
        list_images(str(tiny_coco.save().root), split=tiny_coco.split)
    tiny_coco.images[1].update(id=2, height="48")
    with pytest.raises(DataError, match=r'bad_image_record \(1\): image 2: height "48"'):
        list_images(str(tiny_coco.save().root), split=tiny_coco.split)


def test_every_error_says_what_allow_errors_does_with_it() -> None:
    hard = {code for code, check in CHECKS.items() if check.severity == "error" and not check.allowed}
    assert hard == {
        "unreadable_annotations", "no_images", "no_keypoint_people", "unclear_category", "no_schema", "other_keypoints",
    }  # fmt: skip
    assert not any(check.allowed for check in CHECKS.values() if check.severity != "error")


def test_many_implausible_records_are_refused_and_stay_if_errors_are_allowed(tiny_coco: Any) -> None:
    for person in tiny_coco.people:
        person["bbox"] = [50, 3, 10, 10]
    file = str(tiny_coco.save().annotation_file)
    with pytest.raises(DataError, match=r"many_boxes_without_keypoints \(6\): annotation 100 of image 1: bbox"):
        read_coco(file, COCO17)
    split = read_coco(file, COCO17, allow_errors=True)
    assert sum(len(record["people"]) for record in split.records()) == 6 and not split.left_out


# ---------------------------------------------------------------------------------------------------- categories


def category(number: int, name: str, keypoints: list[str] | None = None) -> dict[str, Any]:
    return {"id": number, "name": name, **({"keypoints": keypoints} if keypoints else {})}


@pytest.mark.parametrize(
    ("categories", "wanted", "ids"),
    [
        ([category(3, "dog", NAMES)], (), {3}),
        ([category(0, "person"), category(1, "pose", NAMES)], (), {1}),  # the one with keypoints, not the one called so
        ([category(0, "person"), category(1, "pose", NAMES)], ("pose", "person"), {0, 1}),
        ([category(1, "person"), category(2, "ball")], (), {1}),
        ([category(7, "cat")], (), {7}),
        ([], (), set()),
        ([category(1, "dog", NAMES), category(2, "cat", NAMES)], ("cat",), {2}),
        ([category(1, "dog", NAMES), category(2, "cat", NAMES), category(3, "ball")], ("all",), {1, 2}),
    ],
)
def test_categories_are_chosen(categories: list[Any], wanted: tuple[str, ...], ids: set[int]) -> None:
    chosen = choose_categories(categories, wanted, "a.json")
    assert chosen.ids == ids
    assert all(f"(id {number})" in chosen.why for number in ids)


@pytest.mark.parametrize(
    ("categories", "wanted", "message"),
    [
        (
            [category(1, "dog", NAMES), category(2, "cat", NAMES)],
            (),
            r"2 categories list keypoints: dog .*cat",
        ),
        ([category(1, "player"), category(2, "ball")], (), r"could be meant: player \(id 1\), ball \(id 2\)"),
        ([category(1, "dog", NAMES)], ("wolf",), r"no category 'wolf'; there are: dog \(id 1\)"),
        ([category(1, "dog")], ("all",), "no category lists keypoints"),
    ],
)
def test_categories_that_are_not_clear_are_named(categories: list[Any], wanted: tuple[str, ...], message: str) -> None:
    with pytest.raises(UnclearCategory, match=message):
        choose_categories(categories, wanted, "a.json")


def test_the_wanted_category_is_read_everywhere(tiny_coco: Any, tmp_path: Path) -> None:
    tiny_coco.content["categories"].append(category(2, "goalkeeper", NAMES))
    for person in tiny_coco.people[:2]:
        person["category_id"] = 2
    source = tiny_coco.save().source
    file = source.annotation_file
    for reader in readers(source, tmp_path).values():
        with pytest.raises(UnclearCategory, match=r"person .*goalkeeper"):
            reader()
    with pytest.raises(UnclearCategory):
        read_file_schema(file)
    for wanted, people in ((("goalkeeper",), 2), (("person",), 4), (("all",), 6)):
        report = examine(source, None, category=wanted, check_images=False)
        manifest = shard_coco(source, str(tmp_path / "out"), COCO17, parallel=False, category=wanted).manifest
        truth = GroundTruth.from_coco(file, category=wanted)
        records = FolderDataset(source, COCO17, VIEW, category=wanted).records()
        found = {report.statistics.people, manifest.counts["people"], len(truth.areas)}
        assert found | {sum(len(record["people"]) for record in records)} == {people}
    assert read_keypoint_names(file) == COCO17.keypoints  # prediction reads no people, so both may be meant


def test_prediction_asks_which_of_different_keypoints_are_meant(tiny_coco: Any) -> None:
    tiny_coco.content["categories"].append(category(2, "dog", ["snout", "tail"]))
    root = str(tiny_coco.save().root)
    with pytest.raises(UnclearCategory, match=r"person \(id 1\), dog \(id 2\)"):
        list_images(root, split=tiny_coco.split)
    assert list_images(root, split=tiny_coco.split, category=["dog"]).keypoints == ("snout", "tail")


# ---------------------------------------------------------------------------------------------------- whole bodies


def test_files_of_coco_wholebody_are_read_as_they_are(tiny_coco: Any, tmp_path: Path) -> None:
    """Their category names the body alone, and a person's keypoints are in five lists."""
    rng = np.random.default_rng(0)
    counts = {"foot_kpts": 6, "face_kpts": 68, "lefthand_kpts": 21, "righthand_kpts": 21}
    for person in tiny_coco.people:
        for part, count in counts.items():
            points = rng.uniform(20, 40, (count, 2)).round(1)
            person[part] = np.column_stack([points, np.full(count, 0.8)]).ravel().tolist()
            person[part.replace("_kpts", "_valid")] = part != "face_kpts"
    source = tiny_coco.save().source
    whole = load_schema("coco_wholebody133")
    report = examine(source, whole, check_images=False)
    assert report.errors == () and report.statistics.people_by_keypoints[COUNT - 68] == 6
    (person,) = read_coco(source.annotation_file, whole).record(0)["people"]
    assert len(person["keypoints"]) == 3 * COUNT and person["num_keypoints"] == COUNT - 68
    assert person["keypoints"][: 3 * 17] == tiny_coco.people[0]["keypoints"]
    manifest = shard_coco(source, str(tmp_path / "out"), whole, parallel=False).manifest
    assert (manifest.schema, manifest.counts["keypoint_people"]) == (whole, 6)
    assert [f.code for f in examine(source, None, check_images=False).findings] == ["whole_body_parts"]
    tiny_coco.people[0]["foot_valid"] = "true"
    assert "foot_valid 'true', expected true or false" in str(
        examine(tiny_coco.save().source, whole, check_images=False).errors[0]
    )


def test_a_body_alone_is_no_whole_body(tiny_coco: Any) -> None:
    with pytest.raises(DataError, match=r"annotation 100 of image 1 has 17 keypoints, coco_wholebody133 has 133"):
        read_coco(str(tiny_coco.annotation_file), load_schema("coco_wholebody133"))


# ---------------------------------------------------------------------------------------------------- one keypoint


def test_a_single_normalised_keypoint_is_known_by_its_box(tiny_coco: Any) -> None:
    schema = KeypointSchema.from_dict({"name": "ball", "keypoints": ["centre"]})
    tiny_coco.content["categories"] = [category(1, "ball", ["centre"])]
    for person in tiny_coco.people:
        person |= {"keypoints": [0.5, 0.5, 2], "bbox": [0, 0, 20, 20], "num_keypoints": 1}
    assert examine(tiny_coco.save().source, schema, check_images=False).errors == ()  # at the upper left of the image
    for person in tiny_coco.people:
        person |= {"bbox": [0.4, 0.4, 0.2, 0.2], "area": 0.04}
    codes = [finding.code for finding in examine(tiny_coco.save().source, schema, check_images=False).errors]
    assert codes == ["normalised_coordinates"]


def test_the_number_of_keypoints_may_be_unknown_until_somebody_has_some(tiny_coco: Any) -> None:
    tiny_coco.people[0].update(keypoints=[], num_keypoints=0)
    del tiny_coco.content["categories"][0]["keypoints"]
    truth = GroundTruth.from_coco(json.loads(tiny_coco.save().annotation_file.read_text()))
    assert truth.keypoints.shape == (6, 17, 2) and truth.num_keypoints.tolist() == [0, 17, 17, 17, 17, 17]
    tiny_coco.people[3]["keypoints"] = [1, 1, 2] * 4
    with pytest.raises(DataError, match=r"annotation 103 of image 4 has 12 numbers of keypoints, others have 51"):
        GroundTruth.from_coco(str(tiny_coco.save().annotation_file))
