"""Tests keypoint schemas: their checks, and their form as plain values."""

import itertools
from typing import Any

import pytest
import yaml

from posefleet.data.schemas.names import mirror_pairs
from posefleet.data.schemas.schema import PARTS, KeypointSchema, SchemaError
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14, FOLDER, load_schema, read_schema, shipped_names
from posefleet.data.schemas.sigmas import DEFAULT_SIGMA

DOG: dict[str, Any] = {"name": "dog", "keypoints": ["nose", "L_Eye", "R_Eye", "tail"]}


def dog(**more: Any) -> KeypointSchema:
    return KeypointSchema.from_dict({**DOG, **more})


def test_coco_is_as_published() -> None:
    published = "16,14 14,12 17,15 15,13 12,13 6,12 7,13 6,7 6,8 7,9 8,10 9,11 2,3 1,2 1,3 2,4 3,5 4,6 5,7"
    assert COCO17.edges == [tuple(int(i) - 1 for i in edge.split(",")) for edge in published.split()]
    assert COCO17.flip_index == [0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15]
    sigmas = (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07, 0.87, 0.87, 0.89, 0.89)
    assert COCO17.sigmas == tuple(round(sigma / 10, 3) for sigma in sigmas)
    assert CROWDPOSE14.flip_index == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 12, 13]
    assert CROWDPOSE14.keypoints[-2:] == ("head", "neck") and CROWDPOSE14.sigmas[-2:] == (0.079, 0.079)


def test_what_a_dictionary_leaves_out_is_inferred_and_said() -> None:
    found = dog()
    assert found.flip_pairs == (("L_Eye", "R_Eye"),) and found.flip_index == [0, 2, 1, 3]
    assert found.sides == ["", "left", "right", ""]
    assert found.sigmas == (0.026, 0.025, 0.025, DEFAULT_SIGMA)
    assert found.skeleton == () and found.groups == {}
    assert found.sources["names"] == "given" and found.sources["skeleton"] == "none"
    assert found.sources["flip_pairs"].startswith("inferred") and "default 0.067 for tail" in found.sources["sigmas"]


def test_what_is_given_wins() -> None:
    found = dog(flip_pairs=[], sigmas={"tail": 0.2}, skeleton=[["nose", "tail"]], groups={"face": ["nose", "L_Eye"]})
    assert found.flip_index == [0, 1, 2, 3] and found.edges == [(0, 3)] and found.group("face") == [0, 1]
    assert found.sigmas == (0.026, 0.025, 0.025, 0.2) and found.group("feet") == []
    assert found.sources["flip_pairs"] == "given" and found.sources["sigmas"].startswith("given; the rest inferred")
    assert dog(sigmas=0.05).sigmas == (0.05,) * 4


def test_a_schema_survives_its_plain_values() -> None:
    for schema in (COCO17, dog(skeleton=[["nose", "tail"]], groups={"face": ["nose"]}), dog(flip_pairs=[])):
        again = KeypointSchema.from_dict(yaml.safe_load(yaml.safe_dump(schema.as_dict())))
        assert again == schema and again.sources == schema.sources and hash(again) == hash(schema)


def test_one_keypoint_is_enough() -> None:
    ball = KeypointSchema.from_dict({"name": "ball", "keypoints": ["centre"]})
    assert (len(ball), ball.flip_index, ball.edges, ball.sides) == (1, [0], [], [""])


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ("coco17", "a keypoint schema is str, expected name, keypoints"),
        ({"name": "dog"}, "a keypoint schema needs 'keypoints'; it has name"),
        ({**DOG, "zzzzzz": []}, "unknown key 'zzzzzz' of a keypoint schema. It has: name"),
        ({**DOG, "skelton": []}, "unknown key 'skelton' of a keypoint schema; did you mean 'skeleton'?"),
        ({**DOG, "keypoints": []}, "no keypoints"),
        ({**DOG, "keypoints": "nose"}, "keypoints is 'nose', expected a list of names"),
        ({**DOG, "keypoints": ["nose", ""]}, "keypoint '' is not a name"),
        ({**DOG, "keypoints": ["nose", "a\nb"]}, "is not a name"),
        ({**DOG, "keypoints": ["nose", "n" * 101]}, "more than 100 letters"),
        ({**DOG, "keypoints": ["nose", "eye", "nose"]}, "keypoints nose come twice"),
        ({**DOG, "name": 3}, "has the name 3, expected a text"),
        ({**DOG, "sigmas": [0.1]}, "1 sigmas for 4 keypoints"),
        ({**DOG, "sigmas": [0.1, 0.1, 0.1, 0]}, "sigma 0.0 of tail must be a number above 0"),
        ({**DOG, "sigmas": float("nan")}, "sigma nan of nose"),
        ({**DOG, "sigmas": {"tial": 0.1}}, "sigmas names tial"),
        ({**DOG, "sigmas": "small"}, "sigmas is 'small', expected a number"),
        ({**DOG, "skeleton": [["nose", "ear"]]}, "skeleton names ear, which are not keypoints"),
        ({**DOG, "skeleton": [[1, 2]]}, "expected a list of pairs of names"),
        ({**DOG, "skeleton": [["nose", "nose"]]}, "skeleton joins nose with itself"),
        ({**DOG, "skeleton": [["nose", "tail"], ["tail", "nose"]]}, "has nose - tail twice"),
        ({**DOG, "flip_pairs": [["nose", "tail"], ["L_Eye", "tail"]]}, "tail are in two flip_pairs"),
        ({**DOG, "groups": ["face"]}, "groups is"),
        ({**DOG, "groups": {"face": ["ear"]}}, "groups.face names ear"),
    ],
)  # fmt: skip
def test_an_impossible_schema_is_an_error_that_names_the_value(values: Any, complaint: str) -> None:
    with pytest.raises(SchemaError) as caught:
        KeypointSchema.from_dict(values, where="dog.yaml")
    assert complaint in str(caught.value) and str(caught.value).startswith("dog.yaml: ")


def test_an_unknown_schema_names_the_known_ones() -> None:
    with pytest.raises(SchemaError, match=r"known: .*coco17, .*crowdpose14"):
        load_schema("coco18")


COUNTS = {
    "aic14": 14, "animalpose20": 20, "ap10k17": 17, "apt36k17": 17, "coco17": 17, "coco_wholebody133": 133,
    "crowdpose14": 14, "face68": 68, "halpe26": 26, "hand21": 21, "horse10": 22, "mpii16": 16, "ochuman": 17,
}  # fmt: skip


def test_the_shipped_schemas() -> None:
    assert {name: len(load_schema(name)) for name in shipped_names()} == COUNTS


@pytest.mark.parametrize("name", COUNTS)
def test_a_shipped_schema_is_whole(name: str) -> None:
    schema = load_schema(name)
    assert schema.name == name and set(schema.sources) == set(PARTS)
    values = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert set(values) == {*schema.as_dict()} and all(values["sources"].values())
    inferred = {frozenset(pair) for pair in mirror_pairs(schema.keypoints)}
    assert inferred <= {frozenset(pair) for pair in schema.flip_pairs}
    for a, b in schema.flip_pairs:  # COCO-WholeBody's toes differ from foot to foot, as its authors publish them
        sigmas = {schema.sigmas[schema.keypoints.index(x)] for x in (a, b)}
        assert len(sigmas) == 1 or name in ("aic14", "face68", "coco_wholebody133")


def test_schemas_of_whole_bodies_share_names_with_their_parts() -> None:
    whole = load_schema("coco_wholebody133")
    assert whole.keypoints[:17] == COCO17.keypoints and whole.sigmas[:17] == COCO17.sigmas
    assert whole.keypoints[23:91] == load_schema("face68").keypoints
    assert [len(whole.group(part)) for part in ("body", "foot", "face", "left_hand", "right_hand")] == [
        17,
        6,
        68,
        21,
        21,
    ]
    assert load_schema("halpe26").keypoints[:17] == COCO17.keypoints
    assert load_schema("ap10k17").keypoints == load_schema("apt36k17").keypoints


def test_a_schema_in_a_file(tmp_path: Any) -> None:
    file = tmp_path / "dog.yaml"
    file.write_text(yaml.safe_dump(DOG))
    assert read_schema(str(file)) == dog() and read_schema(str(file)).sources["names"] == "given by dog.yaml"
    for content, complaint in (("name: [", "not valid YAML"), ("- 1", "a keypoint schema is list")):
        file.write_text(content)
        with pytest.raises(SchemaError, match=complaint):
            read_schema(str(file))
    with pytest.raises(SchemaError, match="no such file"):
        read_schema(str(tmp_path / "cat.yaml"))


def test_a_small_file_that_expands_without_end_is_an_error(tmp_path: Any) -> None:
    file = tmp_path / "bomb.yaml"
    lines = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghij")]
    file.write_text("\n".join(["name: bomb", "a: &a [x, x]", *lines, "keypoints: *j"]))
    with pytest.raises(SchemaError):
        read_schema(str(file))


@pytest.mark.parametrize(
    ("names", "source"),
    [
        (["left_eye", "right_eye"], "inferred from left and right in the names"),
        (["eye", "tail"], "none: there is no pair of left and right in the names"),
        (
            ["left_eye"],
            "none: there is no pair of left and right in the names; without a partner, or with several: left_eye",
        ),
        (
            ["left_eye", "right_eye", *(f"left_{number}" for number in range(8))],
            "inferred from left and right in the names; without a partner, or with several: left_0, left_1, left_2, "
            "left_3, left_4, left_5 and 2 more",
        ),
    ],
)
def test_the_source_of_mirror_pairs_names_sides_without_a_partner(names: list[str], source: str) -> None:
    found = KeypointSchema.from_dict({"name": "x", "keypoints": names})
    assert found.sources["flip_pairs"] == source
