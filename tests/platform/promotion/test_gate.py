"""Tests that every check of the gate passes good candidates and fails bad ones."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_settings import untrained_checkpoint

from posefleet.data.coco.source import find_source
from posefleet.data.evaluation.evaluate import Evaluation, evaluate
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses
from posefleet.platform.checkpoints.format import CheckpointError, read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.inference.split import Split
from posefleet.platform.promotion import checks as gate_checks
from posefleet.platform.promotion.gate import GateReport, run_gate
from posefleet.platform.promotion.shadow import Shadowing
from posefleet.platform.promotion.thresholds import GateThresholds

BOUNDS = GateThresholds(tolerance=0.01, keypoint_floor=0.0, latency_ms=0.0, latency_people=2, served_images=4)


@pytest.fixture
def candidate(small_run: dict[str, Any], tmp_path: Path) -> str:
    return untrained_checkpoint(small_run, tmp_path / "candidate")


@pytest.fixture
def split(people_shards: Path) -> Split:
    return Split(shards=str(people_shards / "val2017"))


def gated(candidate: str, split: Split, folder: Path, champion: str = "", **bounds: float) -> GateReport:
    experiment = read_meta(candidate).experiment
    return run_gate(candidate, experiment, champion, split, dataclasses.replace(BOUNDS, **bounds), folder)


# ---------------------------------------------------------------------------------------------------- as a whole


def test_a_model_passes_beside_its_equal(candidate: str, split: Split, tmp_path: Path) -> None:
    report = gated(candidate, split, tmp_path / "release", champion=candidate)
    assert report.failed == (), str(report)
    assert [check.name for check in report.checks] == ["weights", "split", "AP", "keypoints", "latency", "served"]
    lines = str(report).splitlines()
    assert len(lines) == 6 and all(line.startswith("pass  ") and line.endswith("]") for line in lines)
    assert "+0.000 (+0.000..+0.000)" in lines[2] and "[95% interval above -0.010]" in lines[2]
    left = {path.name for path in (tmp_path / "release" / "evaluation" / "step-0000006").iterdir()}
    assert left >= {"table.txt", "precision_recall.png", "keypoint_ap_bars.png", "error_split_bars.png", "overlays.jpg"}
    meta = read_meta(str(tmp_path / "release" / "checkpoint"))
    assert report.evaluation is not None and meta.metrics["AP"] == report.evaluation.ap


def test_all_checks_run_and_every_bound_can_fail(candidate: str, split: Split, tmp_path: Path) -> None:
    report = gated(
        candidate, split, tmp_path / "release", champion=candidate, tolerance=-0.5, keypoint_floor=0.9, latency_ms=1e-3
    )
    assert report.failed == ("AP", "keypoints", "latency")
    assert [check.passed for check in report.checks] == [True, True, False, False, False, True]


def test_weights_that_are_not_finite_fail(candidate: str, split: Split, tmp_path: Path) -> None:
    meta, (model, _) = read_meta(candidate), load_model(candidate)
    weights = model.state_dict()
    name = next(name for name in weights if name.endswith("weight"))
    weights[name].view(-1)[0] = float("nan")
    broken = CheckpointStore(str(tmp_path / "broken")).save(meta, weights, {})
    report = gated(broken, split, tmp_path / "release")
    assert report.failed[0] == "weights"
    assert f"1 of {len(weights)} tensors are not finite, {name} first" in str(report)
    assert len(report.checks) == 6


def test_a_champion_that_cannot_be_scored_fails_the_comparison_alone(
    candidate: str, split: Split, tmp_path: Path
) -> None:
    report = gated(candidate, split, tmp_path / "release", champion=str(tmp_path / "nowhere"))
    assert report.failed == ("AP",)
    assert "CheckpointError" in str(report) and "nowhere is not a checkpoint" in str(report)


def test_a_damaged_shard_fails(people_shards: Path, tmp_path: Path) -> None:
    shards = tmp_path / "val2017"
    shutil.copytree(people_shards / "val2017", shards)
    tar = sorted(shards.glob("*.tar"))[0]
    data = bytearray(tar.read_bytes())
    data[-1] ^= 1  # in the padding
    tar.write_bytes(data)
    found = gate_checks.clean(Split(shards=str(shards)), COCO17)
    assert not found.passed and f"{tar.name}: holds more than its index names" in found.value
    assert gate_checks.clean(Split(shards=str(people_shards / "val2017")), COCO17).passed


def test_coco_files_are_checked_by_the_doctor(candidate: str, people_coco: Path, tmp_path: Path) -> None:
    report = gated(candidate, Split(source=find_source(str(people_coco), "val2017")), tmp_path / "a")
    assert report.failed == (), str(report)
    shutil.copytree(people_coco, tmp_path / "coco")
    annotations = tmp_path / "coco" / "annotations" / "person_keypoints_val2017.json"
    content = json.loads(annotations.read_text())
    content["images"][0]["width"] += 1
    annotations.write_text(json.dumps(content))
    found = gate_checks.clean(Split(source=find_source(str(tmp_path / "coco"), "val2017")), COCO17)
    assert not found.passed and found.value == "size_mismatch: 1"


def test_another_decoding_is_scored_and_becomes_that_of_the_copy(candidate: str, split: Split, tmp_path: Path) -> None:
    own = read_meta(candidate).experiment
    fewer = dataclasses.replace(
        own, model=dataclasses.replace(own.model, decode=dataclasses.replace(own.model.decode, max_poses=1))
    )
    report = run_gate(candidate, fewer, "", split, BOUNDS, tmp_path)
    assert report.failed == () and report.evaluation is not None
    assert report.evaluation.protocol.poses <= 7  # images
    assert read_meta(str(tmp_path / "checkpoint")).experiment.model.decode.max_poses == 1


def test_without_annotated_images_the_other_checks_run(candidate: str, tmp_path: Path) -> None:
    experiment = read_meta(candidate).experiment
    report = run_gate(candidate, experiment, "", None, dataclasses.replace(BOUNDS, latency_ms=1e-3), tmp_path)
    assert [check.name for check in report.checks] == ["weights", "latency"]
    assert report.failed == ("latency",) and report.evaluation is None


def test_a_candidate_must_be_a_checkpoint(candidate: str, split: Split, tmp_path: Path) -> None:
    experiment = read_meta(candidate).experiment
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        run_gate(str(tmp_path), experiment, "", split, BOUNDS, tmp_path / "release")


# ---------------------------------------------------------------------------------------------------- one by one


def person(left: float) -> dict[str, Any]:
    """100 px high and 50 wide, all keypoints labelled."""
    points = [(left + 50 * (i % 5) / 4, 10 + 100 * (i // 5) / 3) for i in range(17)]
    return {
        "keypoints": [value for x, y in points for value in (x, y, 2)],
        "bbox": [left, 10, 50, 100],
        "area": 2500.0,
        "iscrowd": 0,
        "id": 1,
        "num_keypoints": 17,
    }


def evaluation(right: int, images: int = 40) -> Evaluation:
    """Evaluation of poses that are perfect in the first ``right`` images and 1000 px off in the others."""
    ground_truth = GroundTruth.from_records((i, (300, 200), [person(20)]) for i in range(images))
    keypoints = torch.tensor(person(20)["keypoints"]).view(1, 17, 3)[..., :2]
    found = {
        i: Poses(keypoints + (0 if i < right else 1000), torch.ones(1, 17), torch.tensor([0.9])) for i in range(images)
    }
    return evaluate(ground_truth, found, COCO17)


def test_ap_passes_when_the_whole_interval_lies_above_the_tolerance() -> None:
    better, worse = evaluation(40), evaluation(20)
    assert gate_checks.ap(better, worse, 0.01).passed
    assert not gate_checks.ap(worse, better, 0.01).passed
    assert gate_checks.ap(worse, better, 0.99).passed


def test_ap_that_may_be_lower_by_chance_does_not_pass() -> None:
    """One image of 40 is wrong, so AP is lower by about 0.03; but some draws of images have it three times."""
    found = gate_checks.ap(evaluation(39), evaluation(40), 0.06)
    assert not found.passed and "0." in found.value
    assert gate_checks.ap(evaluation(39), evaluation(40), 0.2).passed


def test_the_first_model_needs_a_finite_ap() -> None:
    assert gate_checks.ap(evaluation(1), None, 0.01).passed
    nobody = dataclasses.replace(evaluation(1), statistics={"AP": float("nan")})
    assert not gate_checks.ap(nobody, None, 0.01).passed


def test_the_lowest_keypoint_is_named() -> None:
    scores = np.full(17, 0.8)
    scores[9], scores[3] = 0.25, np.nan
    lopsided = dataclasses.replace(evaluation(1), keypoint_ap=scores)
    found = gate_checks.keypoints(lopsided, 0.3)
    assert not found.passed and found.value == "lowest AP 0.2500, left_wrist"
    assert gate_checks.keypoints(lopsided, 0.25).passed
    assert not gate_checks.keypoints(dataclasses.replace(lopsided, keypoint_ap=np.full(17, np.nan)), 0.0).passed


def predicted(checkpoint: str, split: Split) -> tuple[Predictor, dict[int, Poses]]:
    """The predictor of a checkpoint, and its poses of all images."""
    model, experiment = load_model(checkpoint)
    predictor = Predictor(model, experiment, device="cpu")
    samples = split.open(COCO17, lambda sample, _: sample).samples(range(7))
    poses = predictor.predict_images([sample.image for sample in samples])
    return predictor, {sample.image_id: found for sample, found in zip(samples, poses, strict=True)}


def test_a_served_pose_that_differs_fails(candidate: str, split: Split) -> None:
    predictor, poses = predicted(candidate, split)
    assert gate_checks.served_as_evaluated(predictor, split, poses, 7).passed
    image = next(image for image, found in poses.items() if len(found))
    moved = {**poses, image: dataclasses.replace(poses[image], keypoints=poses[image].keypoints + 0.5)}
    found = gate_checks.served_as_evaluated(predictor, split, moved, 7)
    assert not found.passed and "keypoints differ by 0.5 px" in found.value
    scored = {**poses, image: dataclasses.replace(poses[image], scores=poses[image].scores + 0.25)}
    assert "scores by 0.25 at most" in gate_checks.served_as_evaluated(predictor, split, scored, 7).value
    fewer = {**poses, image: poses[image][:0]}
    assert f"image {image} has" in gate_checks.served_as_evaluated(predictor, split, fewer, 7).value


def test_other_weights_are_not_served_as_evaluated(
    candidate: str, split: Split, small_run: dict[str, Any], tmp_path: Path
) -> None:
    other, _ = predicted(untrained_checkpoint(small_run, tmp_path / "other", seed=1), split)
    assert not gate_checks.served_as_evaluated(other, split, predicted(candidate, split)[1], 7).passed


# ---------------------------------------------------------------------------------------------------- live images

ONE, TWO = "models:/smpr/1", "models:/smpr/2"
LIVE = GateThresholds()
SEEN = Shadowing(
    images=500, champion=ONE, challenger=TWO, people=2000, mean_oks=0.9, only_champion=100, only_challenger=50,
    champion_ms=10.0, challenger_ms=15.0,
)  # fmt: skip


def failed(seen: Shadowing, champion: str = ONE, challenger: str = TWO, **bounds: float) -> list[str]:
    checks = gate_checks.shadow_checks(seen, champion, challenger, dataclasses.replace(LIVE, **bounds))
    assert [check.name for check in checks] == ["pair", "live", "agreement", "missed", "slower"]
    return [check.name for check in checks if not check.passed]


def test_a_challenger_that_agrees_passes_and_every_bound_can_fail() -> None:
    assert failed(SEEN) == []
    assert failed(SEEN, shadow_images=501) == failed(SEEN, shadow_people=2001) == ["live"]
    assert failed(SEEN, shadow_oks=0.91) == ["agreement"]
    assert failed(SEEN, shadow_missed=0.049) == ["missed"]
    assert failed(SEEN, shadow_slower=1.4) == ["slower"] and failed(SEEN, shadow_slower=0.0) == []


def test_the_compared_versions_must_be_the_ones_to_promote() -> None:
    assert failed(SEEN, champion="models:/smpr/3") == failed(SEEN, challenger="models:/smpr/3") == ["pair"]
    assert failed(SEEN, champion="") == ["pair"], "no champion at all"
    pair, *_ = gate_checks.shadow_checks(SEEN, "models:/smpr/3", TWO, LIVE)
    assert str(pair) == (
        "FAIL  pair        compared models:/smpr/2 with models:/smpr/1  [models:/smpr/2 with models:/smpr/3]"
    )


def test_without_images_or_people_the_checks_fail() -> None:
    assert {"pair", "live", "agreement", "slower"} <= set(failed(Shadowing(images=0)))
    nobody = SEEN.model_copy(update={"people": 0, "mean_oks": None, "only_champion": 0})
    assert failed(nobody, shadow_people=0, shadow_oks=0.0) == ["agreement"]
