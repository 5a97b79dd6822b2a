"""Boxes: anchors, the expected sample, proposals, losses and what is returned."""

import pytest
import torch

from posefleet.data.structures import People
from posefleet.models.detposenet.detector import (
    DetectorConfig,
    SharedDetector,
    TorchvisionDetector,
    anchor_boxes,
    expected_sample,
)
from posefleet.models.parts.ops.assign import pad_people

SIZE = (64, 64)
SMALL = DetectorConfig(width=16, hidden=16, per_level=40, proposals=12, anchor_scale=4)


def people(*boxes: tuple[float, float, float, float]) -> People:
    count = len(boxes)
    return People(
        torch.zeros(count, 17, 2),
        torch.zeros(count, 17, dtype=torch.uint8),
        torch.tensor(boxes).view(-1, 4),
        torch.full((count,), 100.0),
        torch.zeros(count, dtype=torch.bool),
    )


def build(config: DetectorConfig = SMALL) -> SharedDetector:
    torch.manual_seed(0)
    return SharedDetector(config, 8, [4, 8, 16])


def pyramid(images: int = 2) -> list[torch.Tensor]:
    return [torch.rand(images, 16, side, side, generator=torch.Generator().manual_seed(side)) for side in (16, 8, 4)]


def test_anchors_stand_on_the_points_of_cells() -> None:
    anchors = anchor_boxes([(2, 2), (1, 1)], [4, 8], 8.0, (0.25, 1.0), torch.device("cpu"))
    assert anchors.shape == (10, 4)
    assert anchors[0].tolist() == [-32, -8, 32, 8]  # area 32^2, height a quarter of the width
    assert anchors[1].tolist() == [-16, -16, 16, 16]
    assert anchors[3].tolist() == [-12, -16, 20, 16]  # the next column
    assert anchors[9].tolist() == [-32, -32, 32, 32]


def test_the_published_sizes_of_anchors() -> None:
    config = DetectorConfig()
    anchors = anchor_boxes([(1, 1)] * 5, [4, 8, 16, 32, 64], config.anchor_scale, (1.0,), torch.device("cpu"))
    assert (anchors[:, 2] - anchors[:, 0]).tolist() == [32, 64, 128, 256, 512]


def test_the_expected_sample_has_the_size_and_the_share_of_a_drawn_one() -> None:
    positive = torch.arange(1000)[None] < torch.tensor([[10], [200], [0], [10]])
    negative = ~positive & (torch.arange(1000)[None] < torch.tensor([[1000], [1000], [1000], [50]]))
    weights = expected_sample(positive, negative, 256, 0.5)
    assert weights.sum(1).tolist() == pytest.approx([256, 256, 256, 50])
    assert (weights * positive).sum(1).tolist() == pytest.approx([10, 128, 0, 10])
    assert weights[0, 0] == 1 and weights[1, 0] == 128 / 200
    assert weights.max() <= 1


def test_the_expected_loss_is_the_mean_of_losses_of_torchvisions_samples() -> None:
    from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

    torch.manual_seed(0)
    losses = torch.rand(60)
    positive = torch.arange(60) < 20
    sampler = BalancedPositiveNegativeSampler(16, 0.5)
    drawn = []
    for _ in range(2000):
        pos, neg = sampler([positive.long()])
        drawn.append(losses[pos[0].bool() | neg[0].bool()].sum())
    expected = (losses * expected_sample(positive[None], ~positive[None], 16, 0.5)).sum()
    assert torch.stack(drawn).mean().item() == pytest.approx(expected.item(), rel=0.01)


def test_proposals_of_one_level_do_not_overlap_and_are_padded() -> None:
    detector = build(DetectorConfig(width=16, hidden=16, per_level=40, proposals=500, anchor_scale=4))
    anchors, logits, deltas, levels = detector._rpn(pyramid())
    assert levels == [3 * 256, 3 * 64, 3 * 16]
    boxes, exists = detector._propose(anchors, logits, deltas, levels, SIZE)
    assert boxes.shape == (2, 500, 4) and exists.sum(1).min() > 3 and exists.sum(1).max() <= 120
    assert ((boxes >= 0) & (boxes <= 64)).all()
    for image in range(2):  # the same proposals come for each image alone
        alone, there = detector._propose(anchors, logits[image : image + 1], deltas[image : image + 1], levels, SIZE)
        torch.testing.assert_close(alone[0][there[0]], boxes[image][exists[image]])


def test_the_losses_start_at_chance_and_count_their_samples() -> None:
    losses = build().losses(pyramid(), pad_people([people((8, 8, 40, 60)), people()], torch.device("cpu")), SIZE)
    assert losses.anchors.item() == pytest.approx(512)
    assert (losses.rpn_cls / losses.anchors).item() == pytest.approx(0.693, abs=0.02)
    assert (losses.roi_cls / losses.regions).item() == pytest.approx(0.693, abs=0.1)
    assert losses.rpn_box > 0 and losses.roi_box > 0


def test_without_people_there_is_nothing_to_regress() -> None:
    losses = build().losses(pyramid(), pad_people([people(), people()], torch.device("cpu")), SIZE)
    assert losses.rpn_box == losses.roi_box == 0
    assert losses.rpn_cls > 0 and losses.roi_cls > 0


def test_crowds_are_no_people_to_detect() -> None:
    crowd = people((8, 8, 40, 60))
    crowd = People(crowd.keypoints, crowd.visibility, crowd.boxes, crowd.areas, torch.ones(1, dtype=torch.bool))
    device = torch.device("cpu")
    with_crowd = build().losses(pyramid(1), pad_people([crowd], device), SIZE)
    without = build().losses(pyramid(1), pad_people([people()], device), SIZE)
    torch.testing.assert_close(with_crowd.rpn_cls, without.rpn_cls)
    assert with_crowd.rpn_box == with_crowd.roi_box == 0


def test_the_best_anchor_answers_for_a_person_whom_none_fits() -> None:
    """A thin box overlaps no anchor by 0.7, so only its best ones are positive."""
    detector = build()
    padded = pad_people([people((30, 4, 34, 60))], torch.device("cpu"))
    losses = detector.losses(pyramid(1), padded, SIZE)
    assert losses.rpn_box > 0


def test_detections_are_sorted_inside_the_image_and_not_suppressed() -> None:
    found = build().detect(pyramid(), SIZE)
    assert len(found) == 2
    for boxes, scores in found:
        assert len(boxes) == len(scores) > 0
        assert ((boxes >= 0) & (boxes <= 64)).all()
        assert (scores.diff() <= 0).all() and scores.min() >= 0.05
    assert len(build(DetectorConfig(width=16, hidden=16, score_floor=1.0)).detect(pyramid(), SIZE)[0].boxes) == 0
    limited = DetectorConfig(width=16, hidden=16, per_level=40, proposals=12, max_boxes=3)
    assert all(len(boxes) <= 3 for boxes, _ in build(limited).detect(pyramid(), SIZE))


def test_a_person_is_detected_after_some_steps() -> None:
    """Features that say where the cell is and whether it lies in the person's box."""
    detector, features = build(), []
    for stride in (4, 8, 16):
        y, x = (torch.arange(64 // stride) * stride / 64).expand(64 // stride, -1).T, torch.arange(64 // stride)
        x = (x * stride / 64).expand(64 // stride, -1)
        inside = ((x > 10 / 64) & (x < 44 / 64) & (y > 6 / 64) & (y < 58 / 64)).float()
        features.append(torch.stack([x, y, inside, 1 - inside, *[torch.zeros_like(x)] * 12])[None])
    padded = pad_people([people((10, 6, 44, 58))], torch.device("cpu"))
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(400):
        losses = detector.losses(features, padded, SIZE)
        total = (losses.rpn_cls + losses.rpn_box) / losses.anchors + (losses.roi_cls + losses.roi_box) / losses.regions
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    boxes, scores = detector.detect(features, SIZE)[0]
    torch.testing.assert_close(boxes[0], torch.tensor([10.0, 6.0, 44.0, 58.0]), atol=3, rtol=0)
    assert scores[0] > 0.5


def test_torchvisions_detector_suppresses_nothing_and_never_trains() -> None:
    config = DetectorConfig(kind="torchvision", size=64, score_floor=0.0, max_boxes=7)
    detector = TorchvisionDetector(config).train()
    assert not detector.training and not any(p.requires_grad for p in detector.parameters())
    assert detector.network.roi_heads.nms_thresh == 1.0
    found = detector.detect(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert len(found) == 2
    assert all(boxes.shape == (len(scores), 4) and len(scores) <= 7 for boxes, scores in found)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pretrained": True}, "pretrained and weights are of 'torchvision'"),
        ({"kind": "torchvision", "pretrained": True, "weights": "x.pth"}, "set one of them"),
        ({"proposals": 0}, "proposals must be at least 1"),
        ({"score_floor": 1.5}, "score_floor"),
    ],
)
def test_settings_that_contradict_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorConfig(**settings)
