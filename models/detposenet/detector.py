"""Detection of people without a final NMS: Faster R-CNN on features of an hourglass, or torchvision's published one.

The detector on hourglass features is trained with the losses of torchvision, but draws nothing at random: where
Faster R-CNN samples anchors and proposals, each one is weighted by the probability that the sample contains it. Losses
are therefore sums over all ranks, and two ranks give the gradients of one. Letters: B images, A anchors, R regions of
an image (proposals and annotated boxes), M people of an image (padded), W channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.parts.layers.published import PublishedFile
from posefleet.models.parts.layers.safe_load import only_tensors, read_tensors
from posefleet.models.parts.ops.assign import PaddedPeople
from posefleet.models.parts.ops.cells import flatten_levels, map_sizes
from posefleet.models.parts.ops.losses import smooth_l1_loss
from posefleet.models.parts.ops.nms import box_iou


@dataclass(frozen=True, kw_only=True, slots=True)
class DetectorConfig:
    """Which detector finds boxes, and how many boxes it keeps."""

    kind: Literal["shared", "torchvision"] = "shared"
    """``shared``: built on the coarse net's features and trained with it; needs no other weights. ``torchvision``: the
    published Faster R-CNN R50-FPN for COCO, which is never trained here; the detector of the paper's tables."""
    score_floor: float = 0.05
    """0..1: boxes of lower score are dropped. Raised, fewer boxes are refined, which is faster and misses people."""
    max_boxes: int = 300
    """Largest number of boxes of an image, at least 1; the best are kept. Without NMS a person has tens of boxes: with
    too few, people with lower scores are missed. More costs little time, because the filter drops most of them."""
    pretrained: bool = False
    """Load COCO weights into ``torchvision``, downloaded on first use; without weights it is untrained."""
    weights: str = ""
    """Local file with the state dict (.pth) of ``torchvision``; needs ``pretrained: false``."""
    size: int = 800
    """Short side to which ``torchvision`` resizes images, pixels. Smaller is faster and misses small people."""
    width: int = 256
    """Channels of the pyramid of ``shared``. Fewer is faster."""
    hidden: int = 1024
    """Width of the two fully connected layers of ``shared``. Less is faster."""
    anchor_scale: float = 8.0
    """Side of an anchor, cells of its level. Raised, anchors fit larger people."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height divided by width of the anchors of a cell; each ratio adds an anchor."""
    per_level: int = 1000
    """Largest number of proposals of each level before NMS, at least 1."""
    proposals: int = 512
    """Number of proposals of an image after NMS, in training and prediction, at least 1. More is slower and needs more
    memory."""
    proposal_nms: float = 0.7
    """IoU of proposals of one level above which the lower score is dropped, in (0, 1]. Raised, more remain."""

    def __post_init__(self) -> None:
        if self.pretrained and self.weights:
            raise ValueError(f"pretrained is true and weights is {self.weights!r}; set one of them")
        if self.kind == "shared" and (self.pretrained or self.weights):
            raise ValueError("kind is 'shared', which starts from scratch; pretrained and weights are of 'torchvision'")
        if not 0 <= self.score_floor <= 1 or not 0 < self.proposal_nms <= 1:
            raise ValueError(
                f"score_floor must be 0..1 and proposal_nms above 0, not {self.score_floor} and {self.proposal_nms}"
            )
        for name in ("max_boxes", "per_level", "proposals"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")

    def published(self) -> PublishedFile | None:
        """torchvision's file of COCO weights, if ``pretrained`` asks for it."""
        if not self.pretrained:
            return None
        from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

        url = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.url
        return PublishedFile(
            url=url,
            copy=Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2]),
            setting="model.detector",
            content="torchvision's state dict of fasterrcnn_resnet50_fpn",
            fresh={"kind": "shared"},
        )


class Boxes(NamedTuple):
    """Boxes of one image, best first."""

    boxes: Tensor
    """(D, 4) xyxy, pixels."""
    scores: Tensor
    """(D,) in [0, 1]."""


def boxes_on_host(found: Sequence[Boxes]) -> list[Boxes]:
    """Copy the boxes of all images to the host, in one transfer."""
    packed = torch.cat([torch.cat([boxes, scores[:, None]], dim=1) for boxes, scores in found]).cpu()
    return [Boxes(part[:, :4], part[:, 4]) for part in packed.split([len(scores) for _, scores in found])]


class DetectorLosses(NamedTuple):
    """Sums of the four losses over a batch, and the expected sample sizes (anchors, regions) that divide them."""

    rpn_cls: Tensor
    rpn_box: Tensor
    roi_cls: Tensor
    roi_box: Tensor
    anchors: Tensor
    regions: Tensor


ANCHOR_SAMPLE, ANCHOR_POSITIVES = 256, 0.5
REGION_SAMPLE, REGION_POSITIVES = 512, 0.25
"""Faster R-CNN's sample sizes per image, and the largest share of positives in a sample."""


class SharedDetector(nn.Module):
    """Region proposals and their classification on the features of an hourglass (Ren et al.; Lin et al.).

    Args:
        in_channels: Channels of the features of each level.
        strides: Pixels per cell of each level.
    """

    def __init__(self, config: DetectorConfig, in_channels: int, strides: Sequence[int]) -> None:
        super().__init__()
        from torchvision.models.detection._utils import BoxCoder
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.rpn import RPNHead
        from torchvision.ops import MultiScaleRoIAlign
        from torchvision.ops.poolers import LevelMapper

        self.config, self.strides = config, list(strides)
        self.levels = nn.ModuleList(nn.Conv2d(in_channels, config.width, 1) for _ in strides)
        self.rpn = RPNHead(config.width, len(config.ratios))
        self.pool = MultiScaleRoIAlign([str(level) for level in range(len(strides))], output_size=7, sampling_ratio=2)
        # By default the pool infers scales and levels from its first images. FPN's rule assigns 224 px to stride 16,
        # for anchors of 8 cells.
        self.pool.scales = [1 / stride for stride in strides]
        first = strides[0].bit_length() - 1
        self.pool.map_levels = LevelMapper(first, first + len(strides) - 1, round(224 * config.anchor_scale / 8))
        self.box_head = TwoMLPHead(config.width * 7 * 7, config.hidden)
        self.predictor = FastRCNNPredictor(config.hidden, 2)
        self._anchor_coder, self._region_coder = BoxCoder((1.0, 1.0, 1.0, 1.0)), BoxCoder((10.0, 10.0, 5.0, 5.0))

    def pyramid(self, downs: Sequence[Tensor], ups: Sequence[Tensor]) -> list[Tensor]:
        """Features of the way down and up of an hourglass -> (B, W, h, w) of every level."""
        return [
            convolution(torch.cat(pair, dim=1)).float()
            for convolution, *pair in zip(self.levels, downs, ups, strict=True)
        ]

    def losses(self, pyramid: list[Tensor], people: PaddedPeople, size: tuple[int, int]) -> DetectorLosses:
        """Sums of the four losses of Faster R-CNN for images of ``size`` (height, width)."""
        gt_boxes, valid = people.annotated_boxes, people.counted  # (B, M, 4), (B, M)
        anchors, logits, deltas, levels = self._rpn(pyramid)
        proposals, exists = self._propose(anchors, logits.detach(), deltas.detach(), levels, size)

        iou = box_iou(anchors[None, :, None], gt_boxes[:, None]).where(valid[:, None], -1.0)  # (B, A, M)
        best, match = iou.max(-1)
        # A person whom no anchor fits well gets the anchors that fit best.
        most = iou.amax(1, keepdim=True)
        positive = (best >= 0.7) | ((iou == most) & (most > 0)).any(-1)
        weights = expected_sample(positive, (best < 0.3) & ~positive, ANCHOR_SAMPLE, ANCHOR_POSITIVES)
        target = _encode(self._anchor_coder, _matched(gt_boxes, match), anchors.expand(len(gt_boxes), -1, -1))
        rpn_cls = F.binary_cross_entropy_with_logits(logits, positive.float(), weights, reduction="sum")
        rpn_box = smooth_l1_loss(deltas, target, (weights * positive)[..., None])

        regions, exists = torch.cat([proposals, gt_boxes], dim=1), torch.cat([exists, valid], dim=1)
        best, match = box_iou(regions[:, :, None], gt_boxes[:, None]).where(valid[:, None], -1.0).max(-1)
        positive = (best >= 0.5) & exists
        shares = expected_sample(positive, exists & ~positive, REGION_SAMPLE, REGION_POSITIVES)
        classes, offsets = self._classify(pyramid, regions, size)
        target = _encode(self._region_coder, _matched(gt_boxes, match), regions)
        entropy = F.cross_entropy(classes.flatten(0, 1), positive.long().flatten(), reduction="none")
        roi_cls = (entropy * shares.flatten()).sum()
        roi_box = smooth_l1_loss(offsets, target, (shares * positive)[..., None])
        return DetectorLosses(rpn_cls, rpn_box, roi_cls, roi_box, weights.sum(), shares.sum())

    @torch.no_grad()
    def detect(self, pyramid: list[Tensor], size: tuple[int, int]) -> list[Boxes]:
        """Boxes of people in every image of ``size`` (height, width). Waits for the host."""
        anchors, logits, deltas, levels = self._rpn(pyramid)
        proposals, exists = self._propose(anchors, logits, deltas, levels, size)
        classes, offsets = self._classify(pyramid, proposals, size)
        scores = classes.softmax(-1)[..., 1].where(exists, 0.0)
        boxes = _clip(self._region_coder.decode_single(offsets.flatten(0, 1), proposals.flatten(0, 1)), size)
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1).view_as(scores)
        scores, order = scores.where(wide, 0.0).sort(dim=1, descending=True, stable=True)
        boxes = boxes.view_as(proposals).gather(1, order[..., None].expand(-1, -1, 4))
        good = (scores >= self.config.score_floor) & (scores > 0)
        counts = good.sum(1).clamp(max=self.config.max_boxes).tolist()
        return [Boxes(boxes[image, :count], scores[image, :count]) for image, count in enumerate(counts)]

    def _rpn(self, pyramid: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Anchors (A, 4), their logits (B, A) and offsets (B, A, 4), and the number of anchors of each level."""
        logits, deltas = self.rpn(pyramid)
        sizes = map_sizes(pyramid)
        ratios = self.config.ratios
        anchors = anchor_boxes(sizes, self.strides, self.config.anchor_scale, ratios, pyramid[0].device)
        flat = flatten_levels(deltas).unflatten(2, (len(ratios), 4)).flatten(1, 2)
        return anchors, flatten_levels(logits).flatten(1), flat, [len(ratios) * h * w for h, w in sizes]

    @torch.no_grad()
    def _propose(
        self, anchors: Tensor, logits: Tensor, deltas: Tensor, levels: Sequence[int], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The best proposals (B, ``proposals``, 4) after NMS within each level, and which of them exist."""
        from torchvision.ops import batched_nms

        images, config = len(logits), self.config
        starts = [sum(levels[:level]) for level in range(len(levels))]
        sizes = [min(config.per_level, count) for count in levels]
        parts = zip(starts, sizes, logits.split(list(levels), dim=1), strict=True)
        chosen = torch.cat([start + part.topk(n, dim=1).indices for start, n, part in parts], dim=1)  # (B, n)
        scores = logits.gather(1, chosen)
        picked = deltas.gather(1, chosen[..., None].expand(-1, -1, 4))
        boxes = self._anchor_coder.decode_single(picked.flatten(0, 1), anchors[chosen].flatten(0, 1))
        boxes = _clip(boxes, size)
        level = torch.arange(len(levels)).repeat_interleave(torch.tensor(sizes))
        group = (torch.arange(images)[:, None] * len(levels) + level).flatten().to(boxes.device, non_blocking=True)
        kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        kept[batched_nms(boxes, scores.flatten(), group, config.proposal_nms)] = True  # waits for the host
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 1e-3).all(1)
        ranking = scores.where((kept & wide).view_as(scores), -torch.inf)
        ranking = F.pad(ranking, (0, max(0, config.proposals - ranking.shape[1])), value=-torch.inf)
        best, order = ranking.topk(config.proposals, dim=1)
        exists = best.isfinite()
        order = order.where(exists, 0)
        return boxes.view(images, -1, 4).gather(1, order[..., None].expand(-1, -1, 4)), exists

    def _classify(self, pyramid: list[Tensor], regions: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Class logits (B, R, 2) and offsets of people (B, R, 4) of regions (B, R, 4)."""
        features = {str(level): feature for level, feature in enumerate(pyramid)}
        pooled = self.pool(features, list(regions.unbind(0)), [size] * len(regions))
        classes, offsets = self.predictor(self.box_head(pooled))
        shape = regions.shape[:2]
        return classes.float().unflatten(0, shape), offsets.float()[:, 4:].unflatten(0, shape)


class TorchvisionDetector(nn.Module):
    """Faster R-CNN R50-FPN of torchvision for the 91 classes of COCO, without NMS: the best boxes of people.

    torchvision keeps the best boxes of all classes together. Without NMS a few chairs would leave none of people, so
    the scores of people are taken before the best are chosen. BatchNorm is frozen and adds nothing to the variance
    (eps 0), as the published weights expect, wherever the weights come from.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
        from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
        from torchvision.ops import FrozenBatchNorm2d

        self.config = config
        backbone = resnet_fpn_backbone(
            backbone_name="resnet50", weights=None, norm_layer=partial(FrozenBatchNorm2d, eps=0.0)
        )
        self.network: Any = FasterRCNN(backbone, num_classes=_CLASSES, min_size=config.size)
        if config.pretrained:
            file, weights = config.published(), FasterRCNN_ResNet50_FPN_Weights.COCO_V1
            assert file
            file.check()
            with file.explained(), only_tensors(f"the download of {file.url}"):
                self.network.load_state_dict(weights.get_state_dict(check_hash=True))
        if config.weights:
            self._load(config.weights)
        self.requires_grad_(False)
        self.train()

    def _load(self, path: str) -> None:
        try:
            self.network.load_state_dict(read_tensors(path))
        except RuntimeError as error:
            raise ValueError(
                f"detector.weights {path} is no state dict of torchvision's fasterrcnn_resnet50_fpn with {_CLASSES} "
                f"classes: {' '.join(str(error).split())[:300]}"
            ) from None

    def train(self, mode: bool = True) -> "TorchvisionDetector":
        """Stay in eval mode: in training mode torchvision's detector requires targets."""
        return super().train(False)

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Boxes]:
        """Boxes of people in every uint8 image (B, 3, H, W), at most ``max_boxes``. Waits for the host."""
        network, size = self.network, (images.shape[-2], images.shape[-1])
        resized, _ = network.transform([image.float() / 255 for image in images])
        features = network.backbone(resized.tensors)
        proposals, _ = network.rpn(resized, features)
        heads = network.roi_heads
        pooled = heads.box_roi_pool(features, proposals, resized.image_sizes)
        classes, offsets = heads.box_predictor(heads.box_head(pooled))
        counts = [len(boxes) for boxes in proposals]
        scores = classes.float().softmax(-1)[:, _PERSON].split(counts)
        boxes = heads.box_coder.decode(offsets.float(), proposals)[:, _PERSON].split(counts)
        shapes = zip(boxes, scores, resized.image_sizes, strict=True)
        return [self._best(*of_image, size) for of_image in shapes]

    def _best(self, boxes: Tensor, scores: Tensor, resized: tuple[int, int], size: tuple[int, int]) -> Boxes:
        """The best boxes of an image: in pixels of the ``resized`` (height, width) one, to pixels of ``size``."""
        boxes = _clip(boxes, resized)
        wide = ((boxes[:, 2:] - boxes[:, :2]) > 0.01).all(1)
        scores, order = scores.where(wide & (scores >= self.config.score_floor), 0.0).sort(descending=True, stable=True)
        count = int((scores > 0).sum().clamp(max=self.config.max_boxes))
        x, y = size[1] / resized[1], size[0] / resized[0]
        return Boxes(boxes[order[:count]] * boxes.new_tensor([x, y, x, y]), scores[:count])


_CLASSES, _PERSON = 91, 1
"""Classes of torchvision's detectors for COCO, background included, and the class of people."""


def expected_sample(positive: Tensor, negative: Tensor, size: int, share: float) -> Tensor:
    """The probability that a sample of Faster R-CNN contains each element.

    Faster R-CNN draws ``size`` elements of an image, of them at most ``share`` positives, and fills up with negatives.

    Args:
        positive: (B, N) bool.
        negative: (B, N) bool.

    Returns:
        (B, N); the loss weighted by it is the expectation of the loss of a sample.
    """
    positives, negatives = positive.sum(1, keepdim=True), negative.sum(1, keepdim=True)
    drawn = positives.clamp(max=int(size * share))
    filled = torch.minimum(negatives, size - drawn)
    return positive * (drawn / positives.clamp(min=1)) + negative * (filled / negatives.clamp(min=1))


def anchor_boxes(
    sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    scale: float,
    ratios: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Anchors (A, 4) xyxy, pixels, around the corners of cells: cell (x, y) of stride s is the point (x s, y s).

    Args:
        sizes: (height, width) of each level, cells.
        strides: Pixels per cell.
        scale: Root of an anchor's area, cells.
        ratios: Height over width.
    """
    root = torch.tensor(ratios, device=device).sqrt()
    half = torch.stack([1 / root, root], dim=1) * scale / 2  # (ratios, 2) width, height in cells
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
        centre = torch.stack([x, y], dim=-1).view(-1, 1, 2)
        levels.append(torch.cat([centre - half, centre + half], dim=-1).flatten(0, 1) * stride)
    return torch.cat(levels)


def _encode(coder: Any, gt_boxes: Tensor, regions: Tensor) -> Tensor:
    """Offsets (B, R, 4) from regions to annotated boxes. Degenerate boxes give finite numbers, which have weight 0."""
    low, extent = gt_boxes[..., :2], (gt_boxes[..., 2:] - gt_boxes[..., :2]).clamp(min=1e-3)
    regions = torch.cat(
        [regions[..., :2], regions[..., :2] + (regions[..., 2:] - regions[..., :2]).clamp(min=1e-3)], -1
    )
    encoded: Tensor = coder.encode_single(torch.cat([low, low + extent], -1).flatten(0, 1), regions.flatten(0, 1))
    return encoded.view_as(regions)


def _matched(gt_boxes: Tensor, match: Tensor) -> Tensor:
    return gt_boxes.gather(1, match[..., None].expand(-1, -1, 4))


def _clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    return torch.stack(
        [
            boxes[:, 0].clamp(0, width),
            boxes[:, 1].clamp(0, height),
            boxes[:, 2].clamp(0, width),
            boxes[:, 3].clamp(0, height),
        ],
        dim=1,
    )
