"""The union of schemas: by name, with the conflicts named."""

from dataclasses import replace

import pytest

from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14, load_schema
from posefleet.data.schemas.union import check_sources, places_in, renamed, union_of

HAND = KeypointSchema.from_dict(
    {"name": "worker", "keypoints": ["L_Wrist", "RWrist", "helmet"], "sigmas": {"helmet": 0.05}}, where="its file"
)
"""An own set whose wrists are spelled otherwise, with sigmas that are inferred."""


def test_coco_crowdpose_and_an_own_set_have_twenty_keypoints() -> None:
    union = union_of({"coco": COCO17, "crowd": CROWDPOSE14, "own": HAND})
    assert union.name == "coco17+crowdpose14+worker"
    assert union.keypoints == (*COCO17.keypoints, "head", "neck", "helmet")
    assert union.sigmas == (*COCO17.sigmas, 0.079, 0.079, 0.05)
    assert set(union.flip_pairs) == set(COCO17.flip_pairs)
    assert ("head", "neck") in union.skeleton and ("nose", "left_eye") in union.skeleton
    assert len(union.skeleton) == len({frozenset(edge) for edge in union.skeleton})
    assert union.groups["head"] == ("nose", "left_eye", "right_eye", "left_ear", "right_ear", "head", "neck")
    assert union.sources["names"] == "union of coco, crowd, own" == union.sources["sigmas"]
    helmet = KeypointSchema.from_dict({"name": "worker", "keypoints": ["nose", "helmet"]})
    guessed = union_of({"coco": COCO17, "own": helmet}).sources["sigmas"]
    assert guessed == "union of coco, own; inferred or default for helmet"
    assert KeypointSchema.from_dict(union.as_dict()) == union
    assert [place for place in places_in(union, HAND) if place is not None] == [0, 1, 2]
    assert places_in(union, HAND)[9:11] == (0, 1)


def test_the_union_of_one_schema_with_parts_of_it_is_that_schema() -> None:
    assert union_of({"a": COCO17, "b": load_schema("ochuman"), "c": COCO17.subset(range(5))}) == COCO17


def test_a_given_sigma_wins_over_one_that_was_inferred() -> None:
    measured = replace(HAND, sigmas=(0.1, 0.1, 0.05), sources={"sigmas": "given by hand.yaml"})
    assert union_of({"own": HAND, "measured": measured}).sigmas == (0.1, 0.1, 0.05)
    with pytest.raises(SchemaError, match=r"sigma of left_wrist: coco has 0\.062, measured has 0\.1; give the whole"):
        union_of({"coco": COCO17, "measured": measured})


def test_sources_that_contradict_each_other_are_errors_that_name_both() -> None:
    crossed = replace(COCO17, name="crossed", flip_pairs=(("left_eye", "right_ear"),))
    with pytest.raises(SchemaError, match=r"mirror of left_eye: coco pairs left_eye and right_eye, b pairs left_eye"):
        union_of({"coco": COCO17, "b": crossed})
    face = load_schema("face68")
    with pytest.raises(SchemaError, match=r"source face shares no keypoint with the others: it has face-0, .*rename"):
        union_of({"coco": COCO17, "crowd": CROWDPOSE14, "face": face})


def test_sides_that_no_source_has_together_are_a_pair_all_the_same() -> None:
    left = KeypointSchema.from_dict({"name": "left", "keypoints": ["nose", "left_paw"]})
    right = KeypointSchema.from_dict({"name": "right", "keypoints": ["nose", "right_paw"]})
    assert union_of({"a": left, "b": right}).flip_pairs == (("left_paw", "right_paw"),)
    apart = KeypointSchema.from_dict({"name": "apart", "keypoints": ["left_paw", "right_paw"], "flip_pairs": []})
    assert union_of({"a": left, "b": apart}).flip_pairs == ()  # its author says that they are not


def test_a_given_schema_must_be_learned_from_the_sources() -> None:
    check_sources(COCO17, {"upper": COCO17.subset(range(11)), "lower": COCO17.subset(range(11, 17))})
    with pytest.raises(SchemaError, match=r"no source labels left_hip, .* of schema coco17: the sources are upper"):
        check_sources(COCO17, {"upper": COCO17.subset(range(11))})
    with pytest.raises(SchemaError, match="source face has none of the keypoints of schema coco17"):
        check_sources(COCO17, {"coco": COCO17, "face": load_schema("face68")})


def test_keypoints_of_other_names_are_renamed() -> None:
    aic = load_schema("aic14")
    found = renamed(aic, {"head_top": "head"}, "aic")
    assert "head" in found.keypoints and "head_top" not in found.keypoints and len(found.skeleton) == len(aic.skeleton)
    assert found.sigmas == aic.sigmas
    with pytest.raises(SchemaError, match="aic: rename has tail, which schema aic14 does not have"):
        renamed(aic, {"tail": "nose"}, "aic")
    with pytest.raises(SchemaError, match="neck come twice"):
        renamed(aic, {"head_top": "neck"}, "aic")


def test_a_subset_keeps_what_it_has_both_ends_of() -> None:
    legs = COCO17.subset(range(11, 17))
    assert legs.keypoints[0] == "left_hip" and len(legs.skeleton) == 5 and len(legs.flip_pairs) == 3
    assert legs.groups == {"body": legs.keypoints}
