"""Boxes: anchors, the expected sample, proposals, losses and what is returned."""

from pathlib import Path
from typing import Any

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
    found = detector.detect(torch.zeros(2, 3, 64, 96, dtype=torch.uint8))
    assert len(found) == 2
    assert all(boxes.shape == (len(scores), 4) and len(scores) <= 7 for boxes, scores in found)


class Proposals(torch.nn.Module):
    """Region proposals that are given, in pixels of the resized image."""

    def __init__(self, boxes: torch.Tensor) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, *_: Any) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
        return [self.boxes], {}


def published_layout() -> Any:
    """torchvision's Faster R-CNN as it builds it for its COCO weights: 91 classes, frozen BatchNorm without eps."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection._utils import overwrite_eps
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    torch.manual_seed(0)
    network = FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None),
        num_classes=91,
        min_size=320,
        box_nms_thresh=1.0,
        box_detections_per_img=300,
    )
    overwrite_eps(network, 0.0)
    return network.eval()


def half_bright() -> torch.Tensor:
    """An image (1, 3, 320, 320) uint8 whose left half is bright and whose right half is dark."""
    noise = torch.randint(0, 60, (1, 3, 320, 320), generator=torch.Generator().manual_seed(0))
    image = noise + torch.where(torch.arange(320) < 160, 190, 0)
    return image.to(torch.uint8)


def chairs_and_people() -> torch.Tensor:
    """40 proposals for each of 8 chairs on the left, then 200 for people on the right, (520, 4)."""
    random = torch.Generator().manual_seed(1)
    left = torch.tensor([[20.0 + 70 * (n % 2), 10.0 + 75 * (n // 2)] for n in range(8)]).repeat_interleave(40, 0)
    right = torch.tensor([[170.0 + 14 * (n % 10), 4.0 + 14 * (n // 10)] for n in range(200)])
    low = torch.cat([left, right]) + torch.rand(520, 2, generator=random) * 4
    return torch.cat([low, low + torch.where(torch.arange(520) < 320, 56.0, 20.0)[:, None]], 1)


def test_no_person_is_lost_beside_eight_chairs(tmp_path: Path) -> None:
    """The published layout with weights that say chair on the left (score .92) and person on the right (.38)."""
    network, image, boxes = published_layout(), half_bright(), chairs_and_people()
    own, network.rpn = network.rpn, Proposals(boxes)
    heads = network.roi_heads
    with torch.no_grad():
        resized, _ = network.transform([image[0].float() / 255])
        pooled = heads.box_roi_pool(network.backbone(resized.tensors), [boxes], resized.image_sizes)
        features = heads.box_head(pooled).double()
        features = torch.cat([features, torch.ones(520, 1)], 1)
        wanted = torch.zeros(520, 91, dtype=torch.float64)
        wanted[:320, 62], wanted[320:, 1] = 7, 4
        scale = features.square().sum(1).mean()
        gram = features.T @ features + 1e-6 * scale * torch.eye(features.shape[1])
        solution = torch.linalg.solve(gram, features.T @ wanted).T.float()
        heads.box_predictor.cls_score.weight.copy_(solution[:, :-1])
        heads.box_predictor.cls_score.bias.copy_(solution[:, -1])
        torch.nn.init.zeros_(heads.box_predictor.bbox_pred.weight)
        torch.nn.init.zeros_(heads.box_predictor.bbox_pred.bias)
        (theirs,) = network([image[0].float() / 255])
    assert len(theirs["labels"]) == 300 and set(theirs["labels"].tolist()) == {62}  # chairs alone

    file = tmp_path / "fasterrcnn_resnet50_fpn_coco.pth"
    torch.save(network.state_dict() | own.state_dict(prefix="rpn."), file)
    detector = TorchvisionDetector(DetectorConfig(kind="torchvision", weights=str(file), size=320, max_boxes=1000))
    detector.network.rpn = network.rpn
    (found,) = detector.detect(image)
    people = boxes[320:]
    near = (found.boxes[:, None] - people[None]).abs().amax(2) < 1e-3
    assert near.any(0).all(), "every proposal of a person is found"
    assert found.scores[near.any(1)].min() > 0.2
    assert (found.scores.diff() <= 0).all()


def test_people_are_scored_as_torchvision_scores_them(tmp_path: Path) -> None:
    """With the variances of frozen BatchNorm small, so that an eps would show."""
    network = published_layout()
    state = network.state_dict()
    for name in state:
        if name.endswith("running_var"):
            state[name] = torch.full_like(state[name], 1e-4)
        elif name.startswith("backbone.body") and state[name].dim() == 4:
            state[name] = state[name] * 1e-2
    network.load_state_dict(state)
    network.roi_heads.detections_per_img, network.roi_heads.score_thresh = 100_000, 0.0
    file = tmp_path / "weights.pth"
    torch.save(state, file)
    detector = TorchvisionDetector(
        DetectorConfig(kind="torchvision", weights=str(file), size=320, max_boxes=5000, score_floor=0.0)
    )
    image = half_bright()[..., :200]  # resized, so that boxes are moved back
    with torch.no_grad():
        (theirs,) = network([image[0].float() / 255])
    (ours,) = detector.detect(image)
    person = theirs["labels"] == 1
    assert len(ours.boxes) == person.sum() > 100
    torch.testing.assert_close(ours.scores, theirs["scores"][person])
    assert (ours.boxes[:, None] - theirs["boxes"][person][None]).abs().amax(2).amin(1).max() < 1e-2


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"layer.weight": torch.zeros(3)}, file)
    with pytest.raises(
        ValueError, match=r"detector.weights .*weights.pth is no state dict of torchvision's fasterrcnn"
    ):
        TorchvisionDetector(DetectorConfig(kind="torchvision", weights=str(file)))


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
