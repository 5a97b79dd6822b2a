"""Tests the schema that the categories of an annotation file describe."""

from typing import Any

import pytest

from posefleet.data.schemas.category import category_name, check_categories, schema_of_categories
from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.data.schemas.shipped import COCO17, choose_schema, compact, load_schema, shipped_names

NAMES = ["nose", "L_Eye", "R_Eye", "tail base"]


def dog(**more: Any) -> dict[str, Any]:
    return {"id": 7, "name": "dog", "keypoints": NAMES, **more}


def test_a_category_gives_names_and_skeleton_and_the_rest_is_inferred() -> None:
    schema = schema_of_categories([dog(skeleton=[[1, 2], [1, 3], [3, 1], [1, 4], [4, 4]])], "val.json")
    assert (schema.name, schema.keypoints, schema.flip_pairs) == ("dog", tuple(NAMES), (("L_Eye", "R_Eye"),))
    assert schema.edges == [(0, 1), (0, 2), (0, 3)] and schema.sigmas == (0.026, 0.025, 0.025, 0.067)
    assert schema.sources["names"] == schema.sources["skeleton"] == "given by category 'dog' of val.json"
    assert schema.sources["flip_pairs"].startswith("inferred") and "default 0.067" in schema.sources["sigmas"]


def test_what_a_category_says_beyond_coco_is_used() -> None:
    schema = schema_of_categories([dog(sigmas=[0.1] * 4, flip_pairs=[["nose", "tail base"]])], "val.json")
    assert schema.sigmas == (0.1,) * 4 and schema.flip_index == [3, 1, 2, 0]


@pytest.mark.parametrize("name", shipped_names())
def test_a_shipped_schema_is_recognised_by_names_and_order(name: str) -> None:
    shipped = load_schema(name)
    category = {"id": 1, "name": "thing", "keypoints": list(shipped.keypoints), "skeleton": [[1, 2]]}
    found = schema_of_categories([category], "val.json")
    assert found == load_schema({"ochuman": "coco17", "apt36k17": "ap10k17"}.get(name, name))
    assert found.sources["names"].startswith("recognised: category 'thing' of val.json")
    if name == "coco17":
        category["keypoints"] = [*shipped.keypoints[1:], shipped.keypoints[0]]
        other = schema_of_categories([category], "val.json")
        assert other.name == "thing" and other.flip_pairs == shipped.flip_pairs and other.edges == [(0, 1)]


@pytest.mark.parametrize(
    ("skeleton", "edges", "source"),
    [
        ([[0, 1], [0, 3]], [(0, 1), (0, 3)], "counts from 0"),
        ([["nose", "tail base"]], [(0, 3)], "given"),
        ([[1, 17]], [], "names keypoint 17 of 4"),
        ([["nose", "neck"]], [], "names neck"),
        ([[1, 2, 3]], [], "expected pairs of numbers"),
        ("none", [], "expected pairs of numbers"),
        ([], [], "none"),
    ],
)  # fmt: skip
def test_a_skeleton_is_read_or_left_out_with_a_reason(skeleton: Any, edges: list[Any], source: str) -> None:
    schema = schema_of_categories([dog(skeleton=skeleton)], "val.json")
    assert schema.edges == edges and source in schema.sources["skeleton"]


def test_categories_with_the_same_keypoints_are_one_schema() -> None:
    schema = schema_of_categories([dog(supercategory="pet"), dog(name="cat", id=8, supercategory="pet")], "val.json")
    assert schema.name == "pet" and "category 'dog' (and 1 more) of val.json" in schema.sources["names"]
    assert schema_of_categories([dog(), dog(name="cat")], "val.json").name == "keypoints_4"
    assert schema_of_categories([dog(name="hand21")], "val.json").name == "hand21_4"


@pytest.mark.parametrize(
    ("categories", "complaint"),
    [
        ([{"id": 1, "name": "dog"}], "list no names of keypoints"),
        ([], "list no names of keypoints"),
        ([dog(keypoints=[1, 2])], "lists [1, 2] as keypoints, expected names"),
        ([dog(keypoints=["point", "point"])], "keypoints point come twice"),
        ([dog(), dog(name="cat", keypoints=["nose"])], "4 against 1 keypoints"),
        ([dog(), dog(name="cat", keypoints=["nose"])], "those with the same keypoints: --category NAME"),
    ],
)
def test_categories_that_say_nothing_usable_are_an_error(categories: list[Any], complaint: str) -> None:
    with pytest.raises(SchemaError) as caught:
        schema_of_categories(categories, "val.json")
    assert complaint in str(caught.value) and "val.json" in str(caught.value)


def test_animals_against_people_are_a_mismatch_though_both_have_17_keypoints() -> None:
    animals = {"id": 1, "name": "antelope", "keypoints": list(load_schema("ap10k17").keypoints)}
    text = check_categories([animals], COCO17, "ap10k-val.json")
    assert text.startswith("schema coco17 and ap10k-val.json differ (17 keypoints)")
    assert "left_shoulder   !=  left_shoulder" not in text and "nose            !=  left_eye" in text
    assert check_categories([{"id": 1, "name": "person"}], COCO17, "val.json") == ""
    assert check_categories([{"keypoints": [n.upper() for n in COCO17.keypoints]}], COCO17, "val.json") == ""


def test_a_setting_means_a_schema(tmp_path: Any) -> None:
    def automatic() -> KeypointSchema:
        return load_schema("hand21")

    (tmp_path / "dog.yaml").write_text("name: dog\nkeypoints: [nose, tail]\n")
    assert choose_schema("coco17", automatic) is COCO17
    assert choose_schema("auto", automatic).name == "hand21"
    assert choose_schema(str(tmp_path / "dog.yaml"), automatic).keypoints == ("nose", "tail")
    assert choose_schema({"name": "cat", "keypoints": ["nose"]}, automatic).name == "cat"
    with pytest.raises(SchemaError, match=r"unknown keypoint schema 'dog'; known: .* or give a YAML file, or auto"):
        choose_schema("dog", automatic)


def test_a_shipped_schema_is_stored_by_name_and_any_other_whole() -> None:
    assert compact(load_schema("hand21")) == "hand21"
    changed = KeypointSchema.from_dict({**COCO17.as_dict(), "sigmas": 0.1})
    assert compact(changed) == changed.as_dict()


@pytest.mark.parametrize(
    ("categories", "name"),
    [
        ([{"name": "dog", "keypoints": ["nose", "tail"]}], "dog"),
        ([{"name": "coco17", "keypoints": ["nose", "tail"]}], "coco17"),
        ([{"name": "person", "keypoints": list(COCO17.keypoints)}], "person"),
        ([{"name": "Mensch", "keypoints": list(COCO17.keypoints)}], "Mensch"),
        (
            [
                {"name": "dog", "supercategory": "animal", "keypoints": ["nose", "tail"]},
                {"name": "cat", "supercategory": "animal", "keypoints": ["nose", "tail"]},
            ],
            "animal",
        ),
        ([{"name": "dog", "keypoints": ["nose"]}, {"name": "cat", "keypoints": ["nose"]}], ""),
    ],
)
def test_a_schema_knows_what_has_its_keypoints(categories: list[dict[str, Any]], name: str) -> None:
    schema = schema_of_categories(categories, "a.json")
    assert category_name(schema) == category_name(KeypointSchema.from_dict(schema.as_dict())) == name


def test_shipped_schemas_say_what_has_their_keypoints() -> None:
    others = {"animalpose20", "ap10k17", "apt36k17", "horse10", "face68", "hand21"}
    assert {name for name in shipped_names() if category_name(load_schema(name)) != "person"} == others
    assert category_name(KeypointSchema.from_dict({"name": "my_chair", "keypoints": ["seat"]})) == "my chair"
