"""Evaluation against pycocotools itself, and against scenes whose result is known by hand."""

import json
import math
import pickle
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_scenes import AREA, person, poses_of, pycocotools_statistics, random_scene, standing, truth_of

from posefleet.data.errors import DataError
from posefleet.data.evaluation import ground_truth as ground_truth
from posefleet.data.evaluation import matching
from posefleet.data.evaluation.accumulate import match_images
from posefleet.data.evaluation.error_analysis import ERROR_KINDS
from posefleet.data.evaluation.evaluate import STATISTICS, Evaluation, evaluate, summarize
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.structures import Poses

SIGMAS = np.array(COCO17.sigmas)


def only_keypoint(index: int, dataset: dict[str, Any], predictions: dict[int, Poses]) -> tuple[dict[str, Any], Any]:
    """The data set in which only one keypoint was ever annotated or predicted."""
    annotations = []
    for annotation in dataset["annotations"]:
        point = annotation["keypoints"][3 * index : 3 * index + 3]
        annotations.append({**annotation, "keypoints": point, "num_keypoints": int(point[2] > 0)})
    poses = {i: Poses(p.keypoints[:, [index]], p.keypoint_scores[:, [index]], p.scores) for i, p in predictions.items()}
    return {**dataset, "annotations": annotations}, poses


def share(evaluation: Evaluation, kind: str, keypoint: str) -> int:
    return int(evaluation.errors.keypoints[COCO17.keypoints.index(keypoint), ERROR_KINDS.index(kind)])


def assert_same(one: Any, other: Any) -> None:
    """Two dataclasses, and those in them, hold the same arrays and numbers."""
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(mine):
            assert_same(mine, its)
        else:
            assert np.array_equal(mine, its), field.name


# ------------------------------------------------------------------------------------------------ against COCO


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
@pytest.mark.parametrize("seed", range(4))
def test_statistics_are_bit_equal_to_pycocotools(seed: int, backend: str) -> None:
    if backend == "faster":
        pytest.importorskip("faster_coco_eval")
    dataset, predictions = random_scene(seed)
    result = evaluate(GroundTruth.from_coco(dataset), predictions, COCO17, backend=backend)
    expected = pycocotools_statistics(dataset, predictions)
    assert list(result.statistics.values()) == expected.tolist()
    assert tuple(result.statistics) == STATISTICS
    assert 0.1 < result.ap < 0.9


def test_unsorted_poses_beyond_the_limit_are_cut_as_pycocotools_cuts_them() -> None:
    dataset, predictions = random_scene(3)
    many = {image_id: Poses.cat([poses] * 6) for image_id, poses in predictions.items()}
    assert max(map(len, many.values())) > 40
    result = evaluate(GroundTruth.from_coco(dataset), many, COCO17)
    assert list(result.statistics.values()) == pycocotools_statistics(dataset, many).tolist()
    assert result.protocol.poses == sum(min(len(poses), 20) for poses in many.values())


def test_images_are_matched_in_groups_to_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, predictions = random_scene(2)
    whole = evaluate(GroundTruth.from_coco(dataset), predictions, COCO17)
    monkeypatch.setattr(matching, "IMAGES_AT_A_TIME", 7)  # of 60
    monkeypatch.setattr(ground_truth, "PEOPLE_AT_A_TIME", 3)
    parts = evaluate(GroundTruth.from_coco(dataset), predictions, COCO17)
    assert list(parts.statistics.values()) == pycocotools_statistics(dataset, predictions).tolist()
    assert np.array_equal(parts.precision, whole.precision, equal_nan=True)
    assert_same(parts.matches, whole.matches)


@pytest.mark.parametrize("parts", [2, 7, 70])  # of 60 images
def test_parts_matched_apart_add_up_to_the_whole(parts: int) -> None:
    dataset, predictions = random_scene(4, CROWDPOSE14)
    for image in dataset["images"]:
        image["crowdIndex"] = image["id"] % 10 / 10
    ground_truth = GroundTruth.from_coco(dataset)
    whole = evaluate(ground_truth, predictions, CROWDPOSE14, score_rule="one")
    stats = []
    for rank in range(parts):
        mine = ground_truth.image_ids[rank::parts].tolist()
        poses = {image_id: predictions[image_id] for image_id in mine if image_id in predictions}
        stats.append(
            pickle.loads(pickle.dumps(match_images(ground_truth.select(mine), poses, CROWDPOSE14, max_poses=20)))
        )
    found = summarize(stats[::-1], CROWDPOSE14, score_rule="one")
    assert "AP_hard" in found.statistics
    assert found.statistics == whole.statistics
    assert (found.protocol, found.notes, found.image_oks) == (whole.protocol, whole.notes, whole.image_oks)
    assert np.array_equal(found.keypoint_ap, whole.keypoint_ap)
    np.testing.assert_allclose(found.keypoint_oks, whole.keypoint_oks, rtol=1e-12)
    assert_same(found.errors, whole.errors)
    assert_same(found.matches, whole.matches)


def test_an_image_in_two_parts_is_refused() -> None:
    part = match_images(truth_of([person(standing())]), {1: poses_of(standing())}, COCO17, max_poses=20)
    with pytest.raises(DataError, match="image 1 is in the ground truth twice"):
        summarize([part, part], COCO17)


def test_people_before_the_first_with_keypoints_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ground_truth, "PEOPLE_AT_A_TIME", 1)
    blank = {"bbox": [1, 2, 3, 4], "iscrowd": 1}
    found = truth_of([blank, blank], [person(standing(), area=9.0)], [blank])
    assert found.visibility.sum(1).tolist() == [0, 0, 34, 0]
    assert found.keypoints[2].tolist() == standing().tolist() and not found.keypoints[3].any()
    assert found.areas.tolist() == [0.53 * 12, 0.53 * 12, 9.0, 0.53 * 12]
    assert found.num_keypoints.tolist() == [0, 0, 17, 0]


@pytest.mark.parametrize("seed", range(3))
def test_ap_of_a_keypoint_is_pycocotools_ap_of_the_data_set_reduced_to_it(seed: int) -> None:
    dataset, predictions = random_scene(seed)
    result = evaluate(GroundTruth.from_coco(dataset), predictions, COCO17)
    for index in (0, 5, 9, 16):
        reduced, poses = only_keypoint(index, dataset, predictions)
        expected = pycocotools_statistics(reduced, poses, SIGMAS[[index]])[0]
        assert result.keypoint_ap[index] == pytest.approx(expected, abs=1e-12)


def test_crowdpose_has_its_own_sigmas_area_and_bands() -> None:
    dataset, predictions = random_scene(5, CROWDPOSE14)
    for annotation in dataset["annotations"]:
        del annotation["area"]
    crowd_index = {image["id"]: image["id"] % 10 / 10 + 0.05 * (image["id"] % 20 == 0) for image in dataset["images"]}
    for image in dataset["images"]:
        image["crowdIndex"] = crowd_index[image["id"]]
    result = evaluate(GroundTruth.from_coco(dataset), predictions, CROWDPOSE14)

    for annotation in dataset["annotations"]:
        annotation["area"] = 0.53 * annotation["bbox"][2] * annotation["bbox"][3]
    sigmas = np.array(CROWDPOSE14.sigmas)
    assert result.ap == pycocotools_statistics(dataset, predictions, sigmas)[0]
    easy = {i for i, value in crowd_index.items() if value < 0.2}
    hard = {i for i, value in crowd_index.items() if value >= 0.8}
    for band, ids in (("easy", easy), ("hard", hard), ("medium", set(crowd_index) - easy - hard)):
        part = {
            **dataset,
            "images": [image for image in dataset["images"] if image["id"] in ids],
            "annotations": [a for a in dataset["annotations"] if a["image_id"] in ids],
        }
        poses = {i: p for i, p in predictions.items() if i in ids}
        assert result.statistics[f"AP_{band}"] == pycocotools_statistics(part, poses, sigmas)[0]


def test_real_annotations_give_perfect_scores_for_their_own_keypoints(coco_mini: Path) -> None:
    file = coco_mini / "annotations" / "person_keypoints_val2017.json"
    predictions = {}
    for image_id, people in _people_by_image(json.loads(file.read_text())).items():
        keypoints = [np.array(p["keypoints"], float).reshape(17, 3)[:, :2] for p in people if p["num_keypoints"]]
        if keypoints:
            predictions[image_id] = poses_of(*keypoints)
    result = evaluate(GroundTruth.from_coco(file), predictions, COCO17, score_rule="1 for everybody")
    assert result.ap == pytest.approx(1.0)
    assert result.errors.shares()["good"] == 1.0
    assert (result.protocol.images, result.protocol.people) == (67, 43)
    assert result.protocol.images_without_people > 0
    assert any("all 43 poses have the score 0.9" in note for note in result.notes)


def test_records_of_shards_and_coco_json_give_the_same() -> None:
    dataset, predictions = random_scene(7)
    people = _people_by_image(dataset)
    records = [(image_id, (500, 500), people.get(image_id, [])) for image_id in range(60, 0, -1)]
    ours = evaluate(GroundTruth.from_records(records), predictions, COCO17)
    assert ours.as_dict() == pytest.approx(evaluate(GroundTruth.from_coco(dataset), predictions, COCO17).as_dict())


# ----------------------------------------------------------------------------------------------------- by hand


def test_perfect_predictions_score_one() -> None:
    people = [standing(10, 10), standing(400, 10), standing(10, 500)]
    result = evaluate(truth_of([person(p) for p in people]), {1: poses_of(*people)}, COCO17)
    assert result.ap == pytest.approx(1.0)
    assert result.statistics["AR"] == 1.0
    np.testing.assert_allclose(result.keypoint_ap, 1.0)
    np.testing.assert_allclose(result.keypoint_oks, 1.0)
    assert result.errors.missed_people == result.errors.background_poses == result.errors.duplicate_poses == 0


def test_poses_shifted_to_an_oks_of_072_pass_half_of_the_thresholds() -> None:
    keypoints = standing(10, 10)
    shift = np.sqrt(-2 * AREA * (2 * SIGMAS) ** 2 * math.log(0.72))  # every keypoint at similarity 0.72
    shifted = keypoints + np.stack([shift, np.zeros(17)], 1)
    result = evaluate(truth_of([person(keypoints)]), {1: poses_of(shifted)}, COCO17)
    assert result.statistics["AP50"] == pytest.approx(1.0)
    assert result.statistics["AP75"] == 0.0
    assert result.ap == pytest.approx(0.5)
    np.testing.assert_allclose(result.keypoint_ap, 0.5)
    np.testing.assert_allclose(result.keypoint_oks, 0.72, rtol=1e-5)
    np.testing.assert_allclose(np.nanmean(result.precision[:5]), 1.0)
    np.testing.assert_array_equal(result.precision[5:], 0.0)


def test_the_ap_of_a_corrupted_keypoint_drops_alone() -> None:
    keypoints = standing(10, 10)
    bad = keypoints.copy()
    bad[COCO17.keypoints.index("left_wrist")] += 500
    result = evaluate(truth_of([person(keypoints)]), {1: poses_of(bad)}, COCO17)
    flat = result.as_dict()
    assert flat["AP_keypoint/left_wrist"] == 0.0
    assert [flat[f"AP_keypoint/{name}"] for name in COCO17.keypoints if name != "left_wrist"] == pytest.approx(
        [1.0] * 16
    )


def test_every_kind_of_error_is_distinguished() -> None:
    """One each of jitter, inversion, swap, miss, background pose, duplicate and missed person."""
    tall, other, missed = standing(10, 10), standing(500, 10), standing(10, 600)
    at = COCO17.keypoints.index
    pose = tall.copy()
    wrist_deviation = 2 * SIGMAS[at("right_wrist")] * math.sqrt(AREA)
    pose[at("right_wrist"), 0] += wrist_deviation * math.sqrt(-2 * math.log(0.6))  # similarity 0.6
    pose[at("left_knee")] = tall[at("right_knee")]
    pose[at("left_hip")] = other[at("left_hip")]
    pose[at("nose")] += 200, 700
    far_away = standing(3000, 3000)
    duplicate = other + 3.0
    predictions = {1: poses_of(pose, other, far_away, duplicate, scores=[0.9, 0.8, 0.85, 0.2])}
    result = evaluate(truth_of([person(tall), person(other), person(missed)]), predictions, COCO17)

    assert share(result, "jitter", "right_wrist") == 1
    assert share(result, "inversion", "left_knee") == 1
    assert share(result, "swap", "left_hip") == 1
    assert share(result, "miss", "nose") == 1
    assert result.errors.keypoints.sum(0).tolist() == [30, 1, 1, 1, 1]
    assert result.errors.keypoints.sum(1).tolist() == [2] * 17
    assert (result.errors.people, result.errors.missed_people) == (3, 1)
    assert (result.errors.background_poses, result.errors.high_background_poses) == (1, 1)
    assert result.errors.duplicate_poses == 1
    assert result.as_dict()["errors/jitter"] == pytest.approx(1 / 34)
    assert result.as_dict()["errors/missed_people"] == pytest.approx(1 / 3)


def test_the_oks_of_an_image_is_the_mean_over_its_people_and_0_for_a_missed_one() -> None:
    """Image 1: found, missed, and a crowd that does not count. Image 2: a crowd alone. Image 3: nobody is found."""
    crowd = person(standing(500, 500), crowd=True)
    ground_truth = truth_of([person(standing()), person(standing(500)), crowd], [crowd], [person(standing())])
    result = evaluate(ground_truth, {1: poses_of(standing())}, COCO17)
    assert result.image_oks == pytest.approx({1: 0.5, 3: 0.0})


def test_another_persons_partner_is_a_swap_too() -> None:
    one, other = standing(10, 10), standing(500, 10)
    at = COCO17.keypoints.index
    pose = one.copy()
    pose[at("left_ankle")] = other[at("right_ankle")]
    result = evaluate(truth_of([person(one), person(other)]), {1: poses_of(pose, other)}, COCO17)
    assert share(result, "swap", "left_ankle") == 1


def test_keypoints_that_are_not_labelled_make_no_error() -> None:
    keypoints = standing(10, 10)
    visibility = np.full(17, 2)
    visibility[:5] = 0
    pose = keypoints.copy()
    pose[:5] += 500
    result = evaluate(truth_of([person(keypoints, visibility=visibility)]), {1: poses_of(pose)}, COCO17)
    assert result.ap == pytest.approx(1.0)
    assert result.errors.keypoints.sum(0).tolist() == [12, 0, 0, 0, 0]
    assert np.isnan(result.keypoint_ap[:5]).all()
    np.testing.assert_allclose(result.keypoint_ap[5:], 1.0)


def test_echoed_people_without_keypoints_cost_precision_as_in_coco() -> None:
    """Keypoints of unlabelled people are all (0, 0): echoing them back is a false pose far from everybody's box."""
    labelled = [standing(300 + 300 * column, 300 + 320 * row) for row in range(2) for column in range(3)]
    unlabelled = [person(standing(300, 950), visibility=0), person(standing(600, 950), visibility=0)]
    ground_truth = truth_of([*map(person, labelled), *unlabelled])
    alone = evaluate(ground_truth, {1: poses_of(*labelled)}, COCO17)
    echoed = evaluate(ground_truth, {1: poses_of(np.zeros((17, 2)), np.zeros((17, 2)), *labelled)}, COCO17)
    on_them = evaluate(ground_truth, {1: poses_of(standing(310, 950), *labelled)}, COCO17)
    assert (alone.ap, on_them.ap) == (pytest.approx(1.0), pytest.approx(1.0))
    assert echoed.ap == pytest.approx(6 / 8)
    assert (echoed.protocol.people, echoed.protocol.ignored_people) == (6, 2)
    assert echoed.errors.high_background_poses == 2
    assert on_them.errors.poses == 6


def test_a_crowd_absorbs_many_poses_and_an_unlabelled_person_one() -> None:
    region = standing(300, 300)
    poses = [region + shift for shift in (0.0, 5.0, 9.0)]
    crowd = evaluate(truth_of([person(region, visibility=0, crowd=True)]), {1: poses_of(*poses)}, COCO17)
    unlabelled = evaluate(truth_of([person(region, visibility=0)]), {1: poses_of(*poses)}, COCO17)
    assert crowd.errors.poses == 0
    assert (unlabelled.errors.poses, unlabelled.errors.background_poses) == (2, 2)


# --------------------------------------------------------------------------------------------------- edge cases


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
def test_no_poses_at_all_score_zero(backend: str) -> None:
    if backend == "faster":
        pytest.importorskip("faster_coco_eval")
    ground_truth = truth_of([person(standing())], [])
    for predictions in ({}, {1: Poses.empty(17), 2: Poses.empty(17)}):
        result = evaluate(ground_truth, predictions, COCO17, backend=backend)
        assert (result.ap, result.statistics["AR"]) == (0.0, 0.0)
        assert math.isnan(result.statistics["APM"])
        np.testing.assert_array_equal(result.keypoint_ap, 0.0)
        assert np.isnan(result.keypoint_oks).all()
        assert result.errors.missed_people == 1
        assert math.isnan(result.as_dict()["errors/jitter"])


@pytest.mark.parametrize("backend", ["pycocotools", "faster"])
@pytest.mark.parametrize("kind", ["no images", "empty image", "unlabelled", "no keypoints key", "all crowd"])
def test_nobody_to_find_is_nan_with_a_note(kind: str, backend: str) -> None:
    if backend == "faster":
        pytest.importorskip("faster_coco_eval")
    unlabelled = person(standing(), visibility=0)
    people = {
        "empty image": [],
        "unlabelled": [unlabelled],
        "no keypoints key": [{"bbox": [0, 0, 10, 10]}],
        "all crowd": [{**unlabelled, "iscrowd": 1}],
    }
    ground_truth = truth_of(people[kind]) if kind in people else truth_of()
    for predictions in ({1: poses_of(standing(), standing(3000, 3000), scores=[0.9, 0.1])}, {}):
        result = evaluate(ground_truth, predictions, COCO17, backend=backend)
        assert all(math.isnan(value) for value in result.statistics.values())
        assert np.isnan(result.precision).all()
        assert result.errors.missed_people == result.errors.people == 0
        assert "nobody has a labelled keypoint" in result.notes[0]
        assert "COCO prints -1" in str(result)


def test_only_the_best_poses_of_an_image_count() -> None:
    people = [standing(200 * (i % 5), 200 * (i // 5)) for i in range(25)]
    predictions = {1: poses_of(*people, scores=[1 - i / 100 for i in range(25)])}
    ground_truth = truth_of([person(p) for p in people])
    capped, free = (evaluate(ground_truth, predictions, COCO17, max_detections=n) for n in (20, 25))
    assert capped.statistics["AR"] == pytest.approx(20 / 25)
    assert free.ap == pytest.approx(1.0)
    assert capped.protocol.poses == 20
    assert any("1 images have more than 20 people (up to 25)" in note for note in capped.notes)
    assert not free.notes


def test_images_without_people_cost_precision_and_can_be_left_out_on_purpose() -> None:
    ground_truth = truth_of([person(standing())], [])
    predictions = {1: poses_of(standing(), scores=[0.5]), 2: poses_of(standing(), scores=[0.9])}
    everything = evaluate(ground_truth, predictions, COCO17)
    chosen = evaluate(ground_truth, predictions, COCO17, image_ids=[1])
    assert (everything.ap, chosen.ap) == (pytest.approx(0.5), pytest.approx(1.0))
    assert (everything.protocol.images, everything.protocol.images_without_people) == (2, 1)
    assert everything.errors.high_background_poses == 1
    assert chosen.notes == ("1 predicted images, such as 2, are not evaluated: their poses are left out",)


def test_notes_name_what_makes_a_number_misleading() -> None:
    ground_truth = truth_of([person(standing())], [person(standing())])
    result = evaluate(ground_truth, {1: poses_of(standing(2000, 2000), standing(2000, 0))}, COCO17)
    assert result.notes == (
        "1 evaluated images have no prediction: their people count as missed",
        "all 2 poses have the score 0.9: without a ranking AP is arbitrary",
        "100% of the keypoints lie outside their images; poses must be in pixels of the original images",
    )


def test_the_table_says_how_the_number_was_made() -> None:
    ground_truth = truth_of([person(standing())], [])
    text = str(evaluate(ground_truth, {1: poses_of(standing()), 2: Poses.empty(17)}, COCO17, score_rule="box score"))
    assert "pycocotools 2" in text
    assert "2 images, at most 20 poses each; score: box score" in text
    assert "2: 1 without people, also evaluated" in text
    assert len([line for line in text.splitlines() if line.startswith(COCO17.keypoints)]) == 17


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    dataset, predictions = random_scene(1)
    evaluate(GroundTruth.from_coco(dataset), predictions, COCO17)
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_named() -> None:
    ground_truth = truth_of([person(standing())])
    with pytest.raises(DataError, match="image 1: poses have 14 keypoints, coco17 has 17"):
        evaluate(ground_truth, {1: poses_of(standing()[:14])}, COCO17)
    with pytest.raises(DataError, match="the ground truth has 17 keypoints, crowdpose14 has 14"):
        evaluate(ground_truth, {}, CROWDPOSE14)
    with pytest.raises(DataError, match="image 1: a predicted keypoint or score is not finite"):
        evaluate(ground_truth, {1: poses_of(np.full((17, 2), np.nan))}, COCO17)
    with pytest.raises(DataError, match=r"1 images are not in the ground truth, such as \[7\]"):
        evaluate(ground_truth, {}, COCO17, image_ids=[1, 7])
    with pytest.raises(DataError, match="image 3 is in the ground truth twice"):
        GroundTruth.from_records([(3, (10, 10), []), (3, (10, 10), [])])
    with pytest.raises(DataError, match="42 or 51 numbers in 'keypoints'"):
        truth_of([person(standing()), person(standing()[:14])])
    with pytest.raises(ValueError, match="unknown evaluation backend 'fast'; use pycocotools or faster"):
        evaluate(ground_truth, {}, COCO17, backend="fast")


def test_a_backend_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ValueError, match="needs faster-coco-eval: pip install faster-coco-eval"):
        evaluate(truth_of([person(standing())]), {}, COCO17, backend="faster")


def _people_by_image(dataset: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    people: dict[int, list[dict[str, Any]]] = {}
    for annotation in dataset["annotations"]:
        people.setdefault(annotation["image_id"], []).append(annotation)
    return people
