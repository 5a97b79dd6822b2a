"""Evaluation of keypoints that are not COCO's: their own sigmas, any number of them, and COCO-WholeBody's parts."""

import math
import pickle

import numpy as np
import pytest
from coco_scenes import AREA, poses_of, pycocotools_statistics, random_scene, truth_of
from small_models import schema_of

from posefleet.data.coco.annotations import COUNT, is_whole_body, join_parts, people_of
from posefleet.data.errors import DataError
from posefleet.data.evaluation.accumulate import match_images
from posefleet.data.evaluation.evaluate import STATISTICS, evaluate, summarize
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.evaluation.parts import PARTS
from posefleet.data.schemas.shipped import load_schema
from posefleet.data.structures import Poses

WHOLE = load_schema("coco_wholebody133")


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
@pytest.mark.parametrize("count", [1, 4, 21, 133])
def test_own_sigmas_give_the_numbers_of_pycocotools(count: int, backend: str) -> None:
    if backend == "faster":
        pytest.importorskip("faster_coco_eval")
    schema = schema_of(count)
    dataset, predictions = random_scene(5, schema)
    result = evaluate(GroundTruth.from_coco(dataset), predictions, schema, backend=backend)
    expected = pycocotools_statistics(dataset, predictions, np.array(schema.sigmas))
    found = [-1 if math.isnan(value) else value for value in result.statistics.values()]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert tuple(result.statistics) == STATISTICS
    assert result.ap > 0.05
    assert result.ap != pycocotools_statistics(dataset, predictions, np.array(schema.sigmas) * 2)[0]
    assert result.keypoint_ap.shape == (count,) and schema.keypoints[-1] in str(result)


def test_people_without_an_area_are_evaluated() -> None:
    """Keypoints on a line in a box of no width, and a single keypoint, whose pose has no area either."""
    line = np.stack([np.full(4, 50.0), np.arange(4) * 30.0], axis=1)
    people = [{"keypoints": np.column_stack([line, [2] * 4]).ravel().tolist(), "bbox": [50.0, 0.0, 0.0, 90.0]}]
    found = evaluate(truth_of(people), {1: poses_of(line)}, schema_of(4))
    assert found.ap == pytest.approx(1) and math.isfinite(found.keypoint_oks.sum())
    moved = evaluate(truth_of(people), {1: poses_of(line + 1)}, schema_of(4))
    assert moved.ap == 0  # a person of no area has no tolerance
    point = [{"keypoints": [10.0, 20.0, 2], "bbox": [0.0, 0.0, 100.0, 100.0]}]
    single = evaluate(truth_of(point), {1: poses_of(np.array([[12.0, 20.0]]))}, schema_of(1))
    assert single.ap == pytest.approx((1 + math.floor((math.exp(-0.5 * (2 / 0.05) ** 2 / 5300) - 0.5) * 20)) / 10)


# ------------------------------------------------------------------------------------------------ whole bodies


def whole_body(corner: float, *, face: bool = True) -> dict[str, object]:
    """An annotation as COCO-WholeBody has it, keypoints 3 px apart; its face may be invalid."""
    points = corner + 3.0 * np.stack([np.arange(COUNT) % 12, np.arange(COUNT) // 12], axis=1)
    labelled = np.column_stack([points, np.full(COUNT, 2.0)])
    ends = np.cumsum([17, 6, 68, 21, 21])[:-1]
    body, foot, face_, left, right = (part.ravel().tolist() for part in np.split(labelled, ends))
    return {
        "keypoints": body,
        "foot_kpts": foot,
        "face_kpts": face_,  # coordinates that must not count where the flag says so
        "lefthand_kpts": left,
        "righthand_kpts": right,
        "foot_valid": True,
        "face_valid": face,
        "lefthand_valid": True,
        "righthand_valid": True,
        "num_keypoints": 17,
        "bbox": [corner, corner, 36.0, 36.0],
        "area": AREA,
        "iscrowd": 0,
    }


def test_five_lists_become_one_of_133_keypoints() -> None:
    annotation = whole_body(10, face=False) | {"foot_kpts": [1.0, 2.0, 0.3] * 6, "id": 7}
    joined = join_parts(annotation)
    keypoints = np.reshape(joined["keypoints"], (-1, 3))
    assert len(keypoints) == 133 and joined["num_keypoints"] == 133 - 68
    assert is_whole_body(annotation) and not is_whole_body(joined)
    assert keypoints[17:23].tolist() == [[1.0, 2.0, 1.0]] * 6  # a confidence of 0.3 is a label
    assert not keypoints[WHOLE.group("face")].any()
    assert keypoints[WHOLE.group("left_hand")].ravel().tolist() == annotation["lefthand_kpts"]
    assert keypoints[WHOLE.group("right_hand")].ravel().tolist() == annotation["righthand_kpts"]
    people = people_of([joined], WHOLE)
    assert (people.visibility[0] > 0).sum() == 65
    with pytest.raises(DataError, match="annotation 7: face_kpts has 6 values, expected 68 times x, y, v"):
        join_parts(annotation | {"face_kpts": [1.0] * 6})


def test_parts_are_scored_as_the_authors_of_wholebody_do() -> None:
    """Two people: one has a foot that is off and a left hand far away, the other an invalid face."""
    people = [join_parts(whole_body(100)), join_parts(whole_body(400, face=False))]
    keypoints = [np.reshape(person["keypoints"], (-1, 3))[:, :2].copy() for person in people]
    hand, foot = WHOLE.group("left_hand"), WHOLE.group("foot")
    keypoints[0][hand] += 500
    keypoints[0][foot, 0] += 10.0  # OKS is the mean of exp(-100 / (2 * 10000 * 4 sigma^2))
    keypoints[1][WHOLE.group("face")] += 900  # where nothing is labelled
    poses = {1: poses_of(*keypoints, scores=[0.9, 0.8])}
    feet = np.exp(-100 / (8 * AREA * np.array([WHOLE.sigmas[k] for k in foot]) ** 2))
    assert 0.8 < feet.mean() < 0.85
    whole = (133 - len(hand) - len(foot) + feet.sum()) / 133
    assert 0.8 < whole < 0.85
    half = 51 * 0.5 / 101  # the first pose is wrong, so precision is a half up to a recall of a half
    expected = {"body": (1, 1), "foot": ((7 + 3 * half) / 10, (7 + 3 * 0.5) / 10), "face": (1, 1)}
    expected |= {"left_hand": (half, 0.5), "right_hand": (1, 1)}
    truth = truth_of(people)
    for backend in ("pycocotools", "faster"):
        found = evaluate(truth, poses, WHOLE, backend=backend)
        for part in PARTS:
            assert (found.statistics[f"AP_{part}"], found.statistics[f"AR_{part}"]) == pytest.approx(expected[part])
        assert found.ap == pytest.approx((7 + 3 * half) / 10)
        assert "AP_left_hand" in str(found) and "AP_left_hand" in found.as_dict()
    stats = pickle.loads(pickle.dumps(match_images(truth, poses, WHOLE, max_poses=20)))
    nobody = match_images(GroundTruth.from_records([(2, (9, 9), [])]), {2: Poses.empty(133)}, WHOLE, max_poses=20)
    assert summarize([stats, nobody], WHOLE).statistics == evaluate(truth, poses, WHOLE).statistics


def test_the_area_of_a_pose_is_that_of_its_body() -> None:
    """COCO leaves an unmatched pose out of the area medium by its size; COCO-WholeBody measures the body for it."""
    person = join_parts(whole_body(100)) | {"area": 40.0**2}
    pose = np.reshape(person["keypoints"], (-1, 3))[:, :2]
    wrong = pose + 300
    wrong[WHOLE.group("body")] = 300 + 60 * np.random.default_rng(0).random((17, 2))  # medium; all keypoints are not
    wrong[WHOLE.group("foot")] += 900
    found = evaluate(truth_of([person]), {1: poses_of(wrong, pose, scores=[0.9, 0.8])}, WHOLE)
    assert found.statistics["APM"] == pytest.approx(0.5)
