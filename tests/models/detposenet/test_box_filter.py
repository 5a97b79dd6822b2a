"""Coarse-pose filtering on two standing people, with numbers from hand."""

from typing import Any

import pytest
import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.models.detposenet.box_filter import FilterConfig, Filtered, correct_boxes, filter_boxes
from posefleet.models.detposenet.pose_nms import pose_oks
from posefleet.models.parts.ops.nms import box_iou

SIGMAS = torch.tensor(COCO17.sigmas)
TEMPLATE = torch.tensor(
    [
        (50, 10), (54, 6), (46, 6), (60, 8), (40, 8), (70, 40), (30, 40), (78, 70), (22, 70), (80, 100), (20, 100),
        (62, 100), (38, 100), (64, 140), (36, 140), (66, 180), (34, 180),
    ],
    dtype=torch.float32,
)  # fmt: skip
B1, B2, B4 = (10.0, 0.0, 90.0, 190.0, 0.9), (12.0, 2.0, 92.0, 188.0, 0.8), (300.0, 0.0, 380.0, 190.0, 0.6)
B5, B6 = (10.0, 0.0, 130.0, 190.0, 0.9), (20.0, 0.0, 100.0, 190.0, 0.8)
OWN = (14.0, 0.0, 86.0, 197.4)
"""The box made from the keypoints of TEMPLATE."""
PAPER = {"box": "first", "uncovered": "drop", "merge_fragments": False, "scale_recovered": False}
"""Algorithm 1 as it is published; without it a test is about the default."""


def moved(dx: float) -> torch.Tensor:
    return TEMPLATE + torch.tensor([dx, 0.0])


def run(
    boxes: list[tuple[float, ...]], poses: list[torch.Tensor], scores: torch.Tensor | None = None, **settings: object
) -> Filtered:
    table = torch.tensor(boxes).view(-1, 5)
    keypoints = torch.stack(poses) if poses else torch.zeros(0, 17, 2)
    scores = torch.ones(keypoints.shape[:2]) if scores is None else scores
    return filter_boxes(table[:, :4], table[:, 4], keypoints, scores, SIGMAS, (400, 400), FilterConfig(**settings))


def box(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values[:4])


def partial() -> tuple[torch.Tensor, torch.Tensor]:
    """A pose of two keypoints inside B4, and its scores beside those of a whole pose."""
    pose = torch.zeros(17, 2)
    pose[5], pose[6] = torch.tensor([330.0, 50.0]), torch.tensor([350.0, 50.0])
    scores = torch.ones(2, 17)
    scores[1] = (torch.arange(17) == 5) | (torch.arange(17) == 6)
    return pose, scores


@pytest.mark.parametrize(("dx", "expected"), [(2, 0.9774), (5, 0.8758), (10, 0.6558), (20, 0.3418), (40, 0.0511)])
def test_oks_of_a_pose_and_itself_moved(dx: float, expected: float) -> None:
    similarity = pose_oks(torch.stack([TEMPLATE, moved(dx)]), torch.ones(2, 17, dtype=torch.bool), SIGMAS)
    assert similarity[0, 1].item() == pytest.approx(expected, abs=1e-4)
    torch.testing.assert_close(similarity, similarity.T)
    assert similarity[0, 0] == 1


def test_poses_without_a_common_keypoint_are_not_similar() -> None:
    identified = torch.stack([torch.arange(17) < 8, torch.arange(17) >= 8])
    assert pose_oks(torch.stack([TEMPLATE, TEMPLATE]), identified, SIGMAS)[0, 1] == 0


def test_a_redundant_box_is_removed() -> None:
    assert box_iou(box(B1), box(B2)).item() == pytest.approx(0.9317, abs=1e-4)
    found = run([B1, B2], [TEMPLATE], **PAPER)
    assert found.poses == [0] and found.sources == ["normal"]
    torch.testing.assert_close(found.boxes, box(B1)[None])
    torch.testing.assert_close(found.scores, torch.tensor([0.9]))


def test_a_box_with_too_few_keypoints_is_a_false_detection() -> None:
    pose, scores = partial()
    assert run([B1, B4], [TEMPLATE, pose], scores, **PAPER).poses == [0]
    assert run([B1, B4], [TEMPLATE, pose], scores, delta_kpt=1, **PAPER).poses == [0, 1]


def test_a_person_whose_box_is_taken_gets_a_box_from_keypoints() -> None:
    found = run([B5], [TEMPLATE, moved(40)], **PAPER)
    assert found.poses == [0, 1] and found.sources == ["normal", "recovered"]
    torch.testing.assert_close(found.boxes, torch.tensor([B5[:4], (54.0, 0.0, 126.0, 197.4)]))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.9]))
    fits = box_iou(box(B5), torch.tensor([(14.0, 0.0, 86.0, 197.4), (54.0, 0.0, 126.0, 197.4)]))
    torch.testing.assert_close(fits, torch.full((2,), 0.5863), atol=1e-4, rtol=0)  # a tie: the lower index is first


def test_people_close_together_are_kept_where_nms_of_boxes_merges_them() -> None:
    assert box_iou(box(B1), box(B6)).item() == pytest.approx(0.7778, abs=1e-4)
    poses = [TEMPLATE, moved(10)]
    found = run([B1, B6], poses, **PAPER)
    assert found.poses == [0, 1]
    torch.testing.assert_close(found.boxes, torch.stack([box(B1), box(B6)]))
    assert len(run([B1, B6], poses, mode="nms").boxes) == 1
    assert run([B1, B6], poses, t_oks=0.6).poses == [0]


def test_a_pose_without_a_box_is_recovered_if_asked() -> None:
    found = run([], [TEMPLATE])
    assert found.sources == ["unmatched"]
    torch.testing.assert_close(found.boxes, torch.tensor([[14.0, 0.0, 86.0, 197.4]]))
    torch.testing.assert_close(found.scores, torch.tensor([0.5]))
    assert run([], [TEMPLATE], recover_unmatched=False).poses == []


def test_boxes_without_a_pose_and_images_without_poses_give_nothing() -> None:
    assert run([B1, B4], [TEMPLATE], **PAPER).poses == [0]
    empty = run([B1, B4], [], **PAPER)
    assert empty.boxes.shape == (0, 4) and empty.scores.shape == (0,)
    assert run([], []).poses == []


def crowd(seed: int) -> tuple[list[tuple[float, ...]], list[torch.Tensor]]:
    """Many overlapping boxes and noisy poses."""
    random = torch.Generator().manual_seed(seed)
    poses = [
        moved(float(dx)) + torch.randn(17, 2, generator=random) * 3 for dx in torch.rand(12, generator=random) * 250
    ]
    low = torch.rand(20, 1, generator=random) * 250
    boxes = torch.cat([low, torch.zeros(20, 1), low + 90, torch.full((20, 1), 190.0)], 1)
    scores = torch.rand(20, 1, generator=random)
    return [tuple(row) for row in torch.cat([boxes, scores], 1).tolist()], poses


@pytest.mark.parametrize("settings", [{}, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize("seed", range(5))
def test_no_two_poses_that_pass_are_one_person(seed: int, settings: dict[str, Any]) -> None:
    boxes, poses = crowd(seed)
    found = run(boxes, poses, **settings)
    kept = torch.stack(poses)[[pose for pose in found.poses if pose >= 0]]
    assert len(kept) > 1
    similarity = pose_oks(kept, torch.ones(len(kept), 17, dtype=torch.bool), SIGMAS)
    assert (similarity.fill_diagonal_(0) < 0.7).all()


@pytest.mark.parametrize("settings", [{}, PAPER], ids=["default", "paper"])
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_boxes_does_not_matter(seed: int, settings: dict[str, Any]) -> None:
    boxes, poses = crowd(seed)
    first, second = run(boxes, poses, **settings), run(boxes[::-1], poses, **settings)
    assert first.poses == second.poses and first.sources == second.sources
    torch.testing.assert_close(first.boxes, second.boxes)


@pytest.mark.parametrize("seed", range(5))
def test_what_passed_passes_again(seed: int) -> None:
    boxes, poses = crowd(seed)
    found = run(boxes, poses, **PAPER)
    rows = torch.cat([found.boxes, found.scores[:, None]], 1).tolist()
    again = run([tuple(row) for row in rows], [poses[pose] for pose in found.poses], **PAPER)
    assert sorted(found.poses[pose] for pose in again.poses) == sorted(found.poses)


def test_the_decision_once_for_each_pose_equals_the_walk_through_all_tuples() -> None:
    for seed in range(10):
        boxes, poses = crowd(seed)
        assert run(boxes, poses, **PAPER).poses == walk(boxes, poses)


def walk(boxes: list[tuple[float, ...]], poses: list[torch.Tensor]) -> list[int]:
    """The algorithm step by step: every (box, pose) in order, nothing clever."""
    keypoints = torch.stack(poses)
    similarity = pose_oks(keypoints, torch.ones(len(poses), 17, dtype=torch.bool), SIGMAS)
    low, high = keypoints.amin(1), keypoints.amax(1)
    own = torch.cat([(low + high) / 2 - 0.6 * (high - low), (low + high) / 2 + 0.6 * (high - low)], 1).clamp(0, 400)
    first, rest = [], []
    for b in sorted(range(len(boxes)), key=lambda b: -boxes[b][4]):
        x1, y1, x2, y2 = boxes[b][:4]
        inside = ((keypoints >= torch.tensor([x1, y1])) & (keypoints <= torch.tensor([x2, y2]))).all(-1)
        mine = [q for q in range(len(poses)) if inside[q].float().mean() >= 0.6]
        mine.sort(key=lambda q: -box_iou(box(boxes[b]), own[q]).item())
        first += mine[:1]
        rest += mine[1:]
    accepted: list[int] = []
    for q in [*first, *rest, *range(len(poses))]:
        if all(similarity[q, other] < 0.7 for other in accepted):
            accepted.append(q)
    return accepted


# ------------------------------------------------------------------------------------------------ the departures


def test_the_papers_filter_has_none_of_the_departures() -> None:
    assert FilterConfig.paper() == FilterConfig(**PAPER)


def test_a_box_without_a_pose_is_left_to_box_nms() -> None:
    beside = (304.0, 0.0, 384.0, 190.0, 0.5)  # IoU .905 with B4
    found = run([B1, B4, beside], [TEMPLATE])
    assert found.sources == ["normal", "uncovered"] and found.poses == [0, -1]
    torch.testing.assert_close(found.boxes[1], box(B4))
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]))
    assert len(run([B4, beside], [], nms_threshold=0.95).boxes) == 2
    assert run([B1, B4, beside], [TEMPLATE], uncovered="drop").sources == ["normal"]


def test_the_box_of_a_pose_suppresses_boxes_without_one() -> None:
    """Of 17 keypoints 10 are in the lower box, too few for it to contain the pose; IoU with the pose's box is .645."""
    lower = (10.0, 60.0, 90.0, 200.0, 0.95)
    assert run([lower, B1], [TEMPLATE]).sources == ["normal"]
    assert run([lower, B1], [TEMPLATE], nms_threshold=0.7).sources == ["normal", "uncovered"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("first", (10.0, 0.0, 120.0, 190.0)),
        ("fit", (10.0, 0.0, 90.0, 190.0)),
        ("mean", (12.0, 0.0, 88.0, 193.7)),
    ],
)
def test_the_box_of_a_pose(rule: str, expected: tuple[float, ...]) -> None:
    """The box of the highest score contains two people, and fits both equally: the pose of lower index gets it."""
    around_both = (10.0, 0.0, 120.0, 190.0, 0.95)
    right = (40.0, 0.0, 120.0, 190.0, 0.85)
    found = run([around_both, B1, right], [TEMPLATE, moved(30)], box=rule)
    assert found.poses == [0, 1] and found.sources == ["normal", "normal"]
    torch.testing.assert_close(found.boxes[0], torch.tensor(expected))
    torch.testing.assert_close(found.scores, torch.tensor([0.95, 0.85]))


def test_the_box_of_a_partial_pose_goes_by_the_score() -> None:
    """Five keypoints of the head fit a small box of low score best, but say little about the person's box."""
    head = (torch.arange(17) < 5).float()
    small, person = (36.0, 2.0, 64.0, 14.0, 0.1), (10.0, 0.0, 90.0, 190.0, 0.9)
    own = torch.tensor([38.0, 5.6, 62.0, 10.4])
    found = run([small, person], [TEMPLATE * head[:, None]], head[None], box="mean")
    assert found.sources == ["normal"]
    torch.testing.assert_close(found.boxes[0], (box(person) + own * 5 / 17) / (22 / 17))
    fitting = run([small, person], [TEMPLATE * head[:, None]], head[None], box="fit")
    torch.testing.assert_close(fitting.boxes[0], box(small))


def halves() -> tuple[list[torch.Tensor], torch.Tensor]:
    """TEMPLATE as two poses, above and below the hips, and their scores."""
    above = torch.arange(17) < 11
    scores = torch.stack([above, ~above]).float()
    return [TEMPLATE * above[:, None], TEMPLATE * ~above[:, None]], scores


def test_fragments_of_a_person_are_one_pose() -> None:
    poses, scores = halves()
    found = run([B1], poses, scores, box="mean")
    assert found.poses == [0] and found.sources == ["normal"]
    torch.testing.assert_close(found.boxes[0], (box(B1) + torch.tensor(OWN)) / 2)
    assert run([B1], poses, scores, merge_fragments=False).poses == [0, 1]


def test_small_fragments_are_merged_into_a_pose_but_not_with_each_other() -> None:
    """Body and pairs of keypoints above and below: one person if the body counts, nobody if no piece does."""
    pieces = torch.zeros(6, 17)
    pieces[0, 5:13] = 1
    pieces[torch.tensor([1, 1, 2, 2, 3, 4, 4, 5, 5]), torch.tensor([0, 1, 2, 3, 4, 13, 14, 15, 16])] = 1
    poses = [TEMPLATE * piece[:, None] for piece in pieces]
    found = run([B1], poses, pieces, box="mean")
    assert found.poses == [0] and found.sources == ["normal"]
    torch.testing.assert_close(found.boxes[0], (box(B1) + torch.tensor(OWN)) / 2)  # of all 17 keypoints
    assert run([B1], poses[1:], pieces[1:], uncovered="drop").poses == []


def test_parts_of_two_people_stay_apart() -> None:
    """The head of one and the legs of the other have no keypoint in common, but each has a box that fits it better."""
    head, legs = torch.arange(17) < 5, torch.arange(17) >= 11
    poses = [TEMPLATE * head[:, None], moved(200) * legs[:, None]]
    boxes = [(38.0, 4.0, 62.0, 12.0, 0.9), (230.0, 90.0, 268.0, 190.0, 0.8), (30.0, 0.0, 270.0, 190.0, 0.7)]
    found = run(boxes, poses, torch.stack([head, legs]).float())
    assert found.poses == [0, 1] and found.sources == ["normal", "normal"]


def test_a_recovered_box_scores_by_the_keypoints_of_its_pose() -> None:
    scores = torch.stack([torch.ones(17), (torch.arange(17) < 9).float()])
    found = run([B5], [TEMPLATE, moved(40)], scores)
    assert found.sources == ["normal", "recovered"]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.9 * 9 / 17]))
    whole = run([B5], [TEMPLATE, moved(40)], scores, scale_recovered=False)
    torch.testing.assert_close(whole.scores, torch.tensor([0.9, 0.9]))


def test_every_mode_says_how_many_crops_are_refined() -> None:
    poses = [TEMPLATE, moved(10)]
    runs = {mode: len(run([B1, B2, B6], poses, mode=mode).boxes) for mode in ("coarse", "none", "nms")}
    assert runs == {"coarse": 2, "none": 3, "nms": 1}
    assert len(run([B1, B6], poses, mode="none").boxes) == len(run([B1, B6], poses).boxes) == 2


def test_oracles_know_the_true_boxes() -> None:
    boxes, scores = torch.stack([box(B1), box(B4)]), torch.tensor([0.9, 0.6])
    annotated = torch.stack([box(B2), torch.tensor([100.0, 200, 200, 400])])
    kept, kept_scores = correct_boxes(boxes, scores, annotated, "no_false")
    torch.testing.assert_close(kept, box(B1)[None])
    assert kept_scores.tolist() == pytest.approx([0.9])
    more, more_scores = correct_boxes(boxes, scores, annotated, "no_missed")
    torch.testing.assert_close(more[2], annotated[1])
    assert more_scores.tolist() == pytest.approx([0.9, 0.6, 1.0])
    alone, alone_scores = correct_boxes(boxes, scores, annotated, "annotated")
    assert alone is annotated and alone_scores.tolist() == [1, 1]
