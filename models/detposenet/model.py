"""DetPoseNet: top-down pose estimation whose boxes are filtered by bottom-up poses (Ke et al.).

One network predicts boxes of people, without NMS, and coarse poses from keypoint maps and part affinity fields. The
coarse poses filter the boxes: a box without a pose is dropped, a box whose pose is already taken is dropped, and a
pose without a box gets one. Each remaining box is refined once, by a stacked hourglass. It is supervised at several
scales, regresses its maps again from all of them, and has a loss that weights keypoints by the skeleton. People who
overlap remain where box NMS would merge them, and far fewer crops are refined.

No code was published and most numbers are open; ``box_filter.py`` resolves the paper's contradictions. Deviation: the
detector's losses are expectations over the samples that Faster R-CNN draws. The coarse net starts from random weights,
so its small map losses need a large ``loss.kpt`` beside a detector that trains the same features.

Letters: B images, M people of an image (padded), N crops, K keypoints, L limbs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Detections, People, Poses, TargetPoints
from posefleet.models.detposenet import refinement
from posefleet.models.detposenet.box_filter import FilterConfig, Oracle, correct_boxes, filter_boxes
from posefleet.models.detposenet.coarse_net import CoarseConfig, CoarseMaps, CoarseNet
from posefleet.models.detposenet.crops import crop_images, into_crops, out_of_crops, square_boxes
from posefleet.models.detposenet.detector import (
    Boxes,
    DetectorConfig,
    SharedDetector,
    TorchvisionDetector,
    boxes_on_host,
)
from posefleet.models.detposenet.hourglass import Normalise
from posefleet.models.detposenet.limbs import limbs_of
from posefleet.models.detposenet.masking import MaskingConfig, mask_keypoints
from posefleet.models.detposenet.paf import PafConfig, best_points, group_poses, limb_cells, paf_targets
from posefleet.models.detposenet.pose_nms import suppress_by_oks
from posefleet.models.detposenet.refinement import PrsConfig, Scales, build_refiner, final_maps
from posefleet.models.parts.layers.keypoint_channels import Layout, under
from posefleet.models.parts.ops.assign import PaddedPeople, ignored_cells, pad_people, supervised_cells
from posefleet.models.parts.ops.cells import map_points
from posefleet.models.parts.ops.heatmaps import draw_gaussians
from posefleet.models.parts.ops.losses import mean_counts

_REACH = 4
"""Distance from its centre, in standard deviations, at which a Gaussian is cut off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and forms of the losses. A raised weight makes that part learn faster than the others."""

    det: float = 1.0
    """Weight of the detector's four losses, usually 0.1..10."""
    kpt: float = 1.0
    """Weight of the coarse maps' losses. They are mean squares of sparse maps and start near 0.001, so beside a shared
    detector they need a large weight."""
    prs: float = 1.0
    """Weight of the refinement's losses."""
    sa_loss: bool = True
    """Structure-aware loss: the error of a keypoint also counts for its neighbours in the skeleton."""
    neighbours: float = 0.5
    """Weight of a neighbour's error in the structure-aware loss (alpha_2), 0..1. Raised, keypoints with many neighbours
    count more."""
    norm: refinement.LossNorm = "squared"
    """Error of a map of the refinement: mean square (``squared``), or root of the sum of squares (``plain``)."""
    scale_weights: tuple[float, ...] = ()
    """Weights of the scales of the refinement, finest first, one for each of ``prs.depth``; empty: equal weights."""

    def __post_init__(self) -> None:
        if self.neighbours < 0 or min((*self.scale_weights, 0.0)) < 0:
            raise ValueError(
                f"neighbours {self.neighbours} and scale_weights {self.scale_weights} must not be negative"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """Which poses are returned, and how they are scored."""

    keypoint_floor: float = 0.2
    """0..1: only keypoints with a higher score count in the score of a pose. Raised, uncertain keypoints lower the
    score less."""
    final_oks_nms: float = 0.0
    """0..1, OKS from which the lower of two refined poses is dropped. 0 switches it off, because the filter replaces
    it. Raised from a low value, more poses remain."""
    max_poses: int = 20
    """Largest number of poses of one image, at least 1; COCO evaluates 20."""

    def __post_init__(self) -> None:
        for name in ("keypoint_floor", "final_oks_nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be 0..1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """DetPoseNet; the paper's numbers where it has any.

    :meth:`paper` is the paper's text. The authors released neither code nor weights. The shipped recipes depart from
    the text in the points below; ``tests/bench/bench_filter.py`` measures what each brings with perfect maps, and
    docs/results.md has them with a trained network.

    * ``coarse.limb_overhang`` 8 px, as in OpenPose's code, instead of the formula's 0: peaks lie on cells, so limbs of
      a few cells would not be found.
    * ``filter.uncovered``: boxes without a pose go through box NMS. The text drops them, and with them everybody who
      has at most ``filter.delta_kpt`` keypoints.
    * ``filter.box``: a pose gets the box that it fits best. The text takes the first one, which in a crowd is often
      around somebody else.
    * ``filter.merge_fragments``: pieces of a person are joined. In the text each gets a box, because poses without a
      common keypoint have no similarity.
    * ``filter.scale_recovered``: a box made for a second pose has a score by its keypoints. The text gives it the full
      score of the detected box.
    """

    coarse: CoarseConfig = field(default_factory=CoarseConfig)
    """Network and targets of coarse poses."""
    paf: PafConfig = field(default_factory=PafConfig)
    """How coarse maps become poses."""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """Which detector finds boxes."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """Which boxes are refined."""
    prs: PrsConfig = field(default_factory=PrsConfig)
    """Pose refinement sub-net: crops, network and targets."""
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    """Keypoint masking of the crops that train the refinement."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the losses."""
    output: OutputConfig = field(default_factory=OutputConfig)
    """Which poses are returned, and how they are scored."""
    learn: Literal["both", "coarse", "prs"] = "both"
    """Train everything together, only the coarse net with its detector, or only the refinement. The other part is
    frozen, so its weights should come from a checkpoint (``run.init_from``)."""

    def __post_init__(self) -> None:
        scales = len(self.loss.scale_weights)
        if scales and (scales != self.prs.depth or not sum(self.loss.scale_weights) > 0):
            raise ValueError(
                f"loss.scale_weights {self.loss.scale_weights} must be prs.depth {self.prs.depth} numbers, not all zero"
            )

    @classmethod
    def paper(cls) -> Self:
        """The paper's text: its filter, the fields of its formula, and its class of detector (downloaded weights)."""
        return cls(
            detector=DetectorConfig(kind="torchvision", pretrained=True, max_boxes=1000),
            filter=FilterConfig.paper(),
            prs=PrsConfig(scale_jitter=(0.75, 1.25)),
            loss=LossConfig(kpt=100, prs=100),
        )


class Model(nn.Module):
    """DetPoseNet as a :class:`posefleet.models.PoseModel`."""

    decoding: ClassVar = ("filter", "output", "paf")
    network: ClassVar = ("forward_features",)
    decoder: ClassVar = ("detector.rpn", "detector.box_head", "detector.predictor", "detector.network", "refiner")
    sigmas: Tensor
    structure: Tensor
    diagnostics: dict[str, Tensor]
    """Statistics of the last training step, 0-dim tensors on the device: ``crops`` (people refined per image) and
    ``left_out`` (share of the people who were not among the crops)."""
    refined: list[Detections]
    """The boxes refined in each image of the last prediction, on the host. Their number is the paper's measure of
    cost."""

    def __init__(self, config: Config, schema: KeypointSchema) -> None:
        super().__init__()
        self.config = config
        self.edges, self.flip_index = limbs_of(schema), schema.flip_index
        self.normalise = Normalise()
        self.coarse = CoarseNet(config.coarse, len(schema), len(self.edges))
        self.detector: SharedDetector | TorchvisionDetector
        if config.detector.kind == "shared":
            self.detector = SharedDetector(config.detector, 2 * config.coarse.width, self.coarse.strides)
        else:
            self.detector = TorchvisionDetector(config.detector)
        self.refiner = build_refiner(config.prs, len(schema))
        own = ("detector.rpn", "detector.box_head") if isinstance(self.detector, SharedDetector) else ()
        self.compiled = ("coarse", "refiner", *own)  # the detector as a whole has no forward
        if config.learn == "prs":
            self.coarse.requires_grad_(False)
            self.detector.requires_grad_(False)
        if config.learn == "coarse":
            self.refiner.requires_grad_(False)
        structured = config.loss.sa_loss and config.prs.network == "hourglass"
        neighbours = config.loss.neighbours if structured else 0.0
        weights = refinement.structure_weights(self.edges, len(schema), neighbours)
        self.register_buffer("structure", weights, persistent=False)
        self.register_buffer("sigmas", torch.tensor(schema.sigmas), persistent=False)
        self.diagnostics, self.refined = {}, []

    @staticmethod
    def keypoint_score_rule(config: Config) -> str:
        """What the scores of keypoints are, in words."""
        return "peak of the keypoint's map in the box"

    @property
    def score_rule(self) -> str:
        """How poses are ranked, in words. Reports print it beside every AP."""
        output, filtering = self.config.output, self.config.filter
        boxes = {
            "coarse": f"boxes filtered by coarse poses at OKS {filtering.t_oks:g}"
            + (f" and box NMS at {filtering.nms_threshold:g}" if filtering.uncovered == "nms" else ""),
            "nms": f"box NMS at {filtering.nms_threshold:g}",
            "none": "all boxes",
        }[filtering.mode]
        last = f"OKS NMS at {output.final_oks_nms:g}" if output.final_oks_nms else "no NMS of poses"
        return f"box * mean of keypoint scores > {output.keypoint_floor:g}, {boxes}, {last}"

    def keypoint_channels(self, schema: KeypointSchema) -> Layout:
        """See :meth:`posefleet.models.TransferableModel.keypoint_channels`."""
        names = schema.keypoints
        return under("coarse", self.coarse.keypoint_channels(names, self.edges)) | under(
            "refiner", self.refiner.keypoint_channels(names)
        )

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses: ``heat`` and, if there are limbs, ``paf`` of the coarse maps; ``rpn_cls``, ``rpn_box``,
        ``roi_cls``, ``roi_box`` of a shared detector; ``mss`` and, if switched on, ``msr`` of the refinement."""
        pixels = self.normalise(images)
        padded = pad_people(people, self.sigmas.device)
        terms: dict[str, _Term] = {}
        if self.config.learn != "prs":
            maps = self.coarse(pixels)
            terms |= self._coarse_terms(maps, padded)
            if isinstance(self.detector, SharedDetector):
                terms |= self._detector_terms(self.detector, maps, padded, (images.shape[-2], images.shape[-1]))
        if self.config.learn != "coarse":
            crops = self._training_crops(pixels, padded)
            stacks, regressed = self.refiner(crops.pixels, crops.supervised)
            terms |= self._refinement_terms(stacks, regressed, crops)
        counts = mean_counts(torch.stack([term.divisor for term in terms.values()]))
        return {name: term.total / count for (name, term), count in zip(terms.items(), counts.unbind(), strict=True)}

    def forward_features(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Run the network up to the detector: (B, 3, H, W) RGB images in 0..255, any dtype, to ``heat`` and ``paf``
        (one map each; a single keypoint has no ``paf``) and the ``pyramid`` of a shared detector."""
        coarse = self.coarse(self.normalise(images))
        maps = {"heat": [coarse.heat]}
        if coarse.paf is not None:
            maps["paf"] = [coarse.paf]
        if isinstance(self.detector, SharedDetector):
            maps["pyramid"] = self.detector.pyramid(coarse.downs, coarse.ups)
        return maps

    @torch.no_grad()
    def predict(self, images: Tensor) -> list[Poses]:
        """At most ``output.max_poses`` poses of every image, best first."""
        return self._best(self.candidates(images))

    @torch.no_grad()
    def predict_in(
        self,
        images: Tensor,
        people: Sequence[People],
        oracle: Oracle | Literal["none"],
        found: Sequence[Detections] | None = None,
    ) -> list[Poses]:
        """Like :meth:`predict`, but in other boxes.

        Args:
            images: (B, 3, H, W) RGB images in 0..255.
            people: Annotated people of each image, whose boxes ``oracle`` uses.
            oracle: How the filtered boxes are corrected by the annotated ones; ``none``: they are not.
            found: Detections of each image, pixels, which are filtered instead of those of the model's detector.
        """
        chosen = self.chosen_boxes(images, found)
        if oracle != "none":
            chosen = [
                Boxes(*correct_boxes(boxes, scores, annotated.boxes[~annotated.crowd].cpu(), oracle))
                for (boxes, scores), annotated in zip(chosen, people, strict=True)
            ]
        return self._best(self.refine(self.normalise(images), chosen))

    @torch.no_grad()
    def candidates(self, images: Tensor) -> list[Poses]:
        """Refined poses of every image before suppression; those of several passes can be concatenated."""
        return self.refine(self.normalise(images), self.chosen_boxes(images))

    @torch.no_grad()
    def chosen_boxes(self, images: Tensor, detections: Sequence[Detections] | None = None) -> list[Boxes]:
        """The boxes of every image that are refined, among ``detections`` or those of the model's detector."""
        size = (images.shape[-2], images.shape[-1])
        maps = self.forward_features(images)
        if detections is not None:
            found = [
                Boxes(of_image.boxes.to(images.device), of_image.scores.to(images.device)) for of_image in detections
            ]
        elif isinstance(self.detector, SharedDetector):
            found = self.detector.detect(maps["pyramid"], size)
        else:
            found = self.detector.detect(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.filter(found, maps, size)

    def _best(self, poses: Sequence[Poses]) -> list[Poses]:
        threshold = self.config.output.final_oks_nms or math.inf
        return suppress_by_oks(poses, self.sigmas, threshold, self.config.output.max_poses)

    def suppress(self, poses: Sequence[Poses]) -> list[Poses]:
        """Remove poses that several passes over an image found twice, by the OKS that makes coarse poses redundant."""
        threshold = self.config.output.final_oks_nms or self.config.filter.t_oks
        return suppress_by_oks(poses, self.sigmas, threshold, self.config.output.max_poses)

    @torch.no_grad()
    def target_points(self, size: tuple[int, int], people: list[People]) -> list[list[TargetPoints]]:
        """The cells of the affinity fields of each person, to be drawn.

        Args:
            size: (height, width) of the images, pixels.
            people: People of each image.

        Returns:
            For each image, a list of one entry: the limbs.
        """
        stride, coarse = self.coarse.stride, self.config.coarse
        padded = pad_people(people, self.sigmas.device)
        shape = (size[0] // stride, size[1] // stride)
        cells, _ = limb_cells(
            padded.keypoints, padded.labelled, self.edges, shape, stride, coarse.limb_width, coarse.limb_overhang
        )
        result = []
        for inside in cells.any(2):  # (M, h, w)
            person, row, column = inside.nonzero().unbind(1)
            points = torch.stack([column, row], dim=1).float() * stride
            result.append([TargetPoints("limbs", points, person, torch.full_like(points[:, 0], stride))])
        return result

    # ------------------------------------------------------------------------------------------------ targets

    @torch.no_grad()
    def coarse_targets(self, people: PaddedPeople, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Targets of the coarse maps of ``size`` (height, width) cells.

        Returns:
            Keypoint maps (B, K, h, w), fields (B, 2 L, h, w), and weights (B, 1, h, w): 0 inside crowds and people
            without keypoints, else 1. :meth:`_supervised` has those that depend on the channel.
        """
        stride, config = self.coarse.stride, self.config.coarse
        heat = _gaussians(people.keypoints, people.labelled, size, stride, config.sigma / stride)
        paf = paf_targets(
            people.keypoints, people.labelled, self.edges, size, stride, config.limb_width, config.limb_overhang
        )
        drawn = (heat > 0).any(1) | (paf != 0).any(1)
        ignored = ignored_cells(map_points(size, stride, heat.device), people, drawn.flatten(1))
        return heat, paf, (~ignored.view(-1, 1, *size)).float()

    def _supervised(self, people: PaddedPeople, size: tuple[int, int]) -> tuple[Tensor | float, Tensor | float]:
        """Weights (B, K, h, w) of keypoint maps and (B, 2 L, h, w) of fields, 0 where a keypoint, or an end of a limb,
        is not supervised; 1 if all are."""
        cells = supervised_cells(people.supervised_maps, people.seams, size, self.coarse.stride, centred=False)
        if cells is None:
            return 1.0, 1.0
        first, second = (cells[:, [edge[end] for edge in self.edges]] for end in (0, 1))
        return cells.float(), (first & second).repeat_interleave(2, dim=1).float()

    @torch.no_grad()
    def _training_crops(self, pixels: Tensor, people: PaddedPeople) -> "_Crops":
        """``crops_per_image`` times B crops of people from the whole batch.

        If there are more people, they are chosen at random. If there are fewer, the remaining crops repeat people with
        weight 0, so that the statistics of BatchNorm come from people only.
        """
        config = self.config.prs
        valid = people.valid.flatten()
        lot = torch.rand(valid.shape, device=valid.device).where(valid, -1.0)
        slot = torch.arange(len(pixels) * config.crops_per_image, device=valid.device)
        count = valid.sum()
        chosen = lot.argsort(descending=True, stable=True)[slot % count.clamp(min=1)]
        used = slot < count

        low, high = config.scale_jitter
        factor = low + (high - low) * torch.rand(slot.shape, device=valid.device)
        squares = square_boxes(people.annotated_boxes.flatten(0, 1)[chosen], config.padding * factor)
        keypoints = into_crops(people.keypoints.flatten(0, 1)[chosen], squares, config.size)
        inside = ((keypoints >= 0) & (keypoints < config.size)).all(-1)
        labelled = people.labelled.flatten(0, 1)[chosen] & inside & used[:, None]
        crops = crop_images(pixels, chosen // people.valid.shape[1], squares, config.size)
        crops = mask_keypoints(crops, keypoints, labelled, self.config.masking)
        if self.training:
            here = used.sum()
            self.diagnostics = {"crops": here / len(pixels), "left_out": (count - here) / count.clamp(min=1)}
        supervised = None if people.supervised is None else people.supervised.flatten(0, 1)[chosen]
        return _Crops(crops, keypoints, labelled, used, supervised)

    @torch.no_grad()
    def refinement_targets(self, keypoints: Tensor, labelled: Tensor) -> Scales:
        """Keypoint maps of crops at every scale, finest first.

        Args:
            keypoints: (N, K, 2) xy, pixels of the crop.
            labelled: (N, K) bool.
        """
        config, stride = self.config.prs, self.coarse.stride
        scales = config.depth if config.network == "hourglass" else 1

        def draw(scale: int) -> Tensor:
            side = config.size // stride // 2**scale
            return _gaussians(keypoints[:, None], labelled[:, None], (side, side), stride * 2**scale, config.sigma)

        if config.coarser_targets == "redraw":
            return [draw(scale) for scale in range(scales)]
        pool = F.avg_pool2d if config.coarser_targets == "avgpool" else F.max_pool2d
        finest = draw(0)
        return [finest, *(pool(finest, 2**scale) for scale in range(1, scales))]

    # ------------------------------------------------------------------------------------------------ losses

    def _coarse_terms(self, maps: CoarseMaps, people: PaddedPeople) -> dict[str, "_Term"]:
        """Squared errors of the coarse maps; their divisor counts all cells, also those of weight 0."""
        with torch.autocast(maps.heat.device.type, enabled=False):
            size = (maps.heat.shape[-2], maps.heat.shape[-1])
            heat, paf, weights = self.coarse_targets(people, size)
            terms = {}
            of_heat, of_paf = self._supervised(people, size)
            for name, predicted, target, share in (("heat", maps.heat, heat, of_heat), ("paf", maps.paf, paf, of_paf)):
                if predicted is None:
                    continue
                total = (weights * share * (predicted.float() - target).square()).sum()
                count = torch.full((), float(target.numel()), device=target.device)
                terms[name] = _Term(self.config.loss.kpt * total, count)
            return terms

    def _detector_terms(
        self, detector: SharedDetector, maps: CoarseMaps, people: PaddedPeople, size: tuple[int, int]
    ) -> dict[str, "_Term"]:
        losses = detector.losses(detector.pyramid(maps.downs, maps.ups), people, size)
        weight = self.config.loss.det
        return {
            "rpn_cls": _Term(weight * losses.rpn_cls, losses.anchors),
            "rpn_box": _Term(weight * losses.rpn_box, losses.anchors),
            "roi_cls": _Term(weight * losses.roi_cls, losses.regions),
            "roi_box": _Term(weight * losses.roi_box, losses.regions),
        }

    def _refinement_terms(self, stacks: list[Scales], regressed: Scales, crops: "_Crops") -> dict[str, "_Term"]:
        """L_MSS, summed over stacks, and L_MSR: means over scales (eq. 1) of the structure-aware loss (eq. 2)."""
        loss, prs = self.config.loss, self.config.prs
        with torch.autocast(crops.pixels.device.type, enabled=False):
            targets = self.refinement_targets(crops.keypoints, crops.labelled)
            count = crops.used.sum()

            def term(scales: Scales) -> Tensor:
                weights = (loss.scale_weights or (1.0,) * len(targets))[: len(scales)]
                if len(scales) == 1:  # a single scale always has the full weight
                    weights = (1.0,)
                errors = [self._scale_loss(m, t, crops) for m, t in zip(scales, targets, strict=False)]
                return sum((w * e for w, e in zip(weights, errors, strict=True)), count.new_zeros(())) / sum(weights)

            supervised = stacks if prs.mss else [scales[:1] for scales in stacks]
            terms = {"mss": _Term(loss.prs * torch.stack([term(scales) for scales in supervised]).sum(), count)}
            if regressed:
                terms["msr"] = _Term(loss.prs * term(regressed), count)
            return terms

    def _scale_loss(self, maps: Tensor, targets: Tensor, crops: "_Crops") -> Tensor:
        norm = self.config.loss.norm
        return refinement.structure_aware_loss(maps, targets, crops.labelled, self.structure, norm=norm)

    # ------------------------------------------------------------------------------------------------ decode

    def filter(self, found: list[Boxes], maps: dict[str, list[Tensor]], size: tuple[int, int]) -> list[Boxes]:
        """The boxes of every image of ``size`` (height, width) that are worth a refinement, on the host."""
        stride = self.coarse.stride
        if self.config.filter.mode == "coarse":
            fields = maps["paf"][0] if "paf" in maps else None
            poses = group_poses(maps["heat"][0], fields, self.edges, stride, size[0], self.config.paf)
            coarse = [(p.keypoints, p.scores) for p in poses]
        else:
            nobody = Poses.empty(len(self.sigmas))
            coarse = [(nobody.keypoints, nobody.keypoint_scores)] * len(found)
        sigmas, chosen = self.sigmas.cpu(), []
        for (boxes, scores), (keypoints, keypoint_scores) in zip(boxes_on_host(found), coarse, strict=True):
            passed = filter_boxes(boxes, scores, keypoints, keypoint_scores, sigmas, size, self.config.filter)
            chosen.append(Boxes(passed.boxes, passed.scores))
        return chosen

    @torch.no_grad()
    def refine(self, pixels: Tensor, boxes: list[Boxes]) -> list[Poses]:
        """One pose for each box, best first. All boxes of a batch are refined together.

        Args:
            pixels: (B, 3, H, W) normalised images.
            boxes: Boxes of each image.
        """
        config, device = self.config.prs, pixels.device
        counts = [len(found.boxes) for found in boxes]
        self.refined = [Detections(found.boxes, found.scores) for found in boxes]
        box_scores = torch.cat([found.scores for found in boxes]).to(device)
        squares = square_boxes(torch.cat([found.boxes for found in boxes]).to(device), config.padding)
        image = torch.arange(len(boxes)).repeat_interleave(torch.tensor(counts)).to(device)
        maps = [
            self._refined_maps(pixels, i, s)
            for i, s in zip(image.split(config.chunk), squares.split(config.chunk), strict=True)
        ]
        points, peaks = best_points(torch.cat(maps))  # (N, K, 2) cells
        keypoints = out_of_crops(points * self.coarse.stride, squares, config.size)
        x, y = keypoints.unbind(-1)
        keypoints = torch.stack([x.clamp(0, pixels.shape[-1]), y.clamp(0, pixels.shape[-2])], dim=-1)
        keypoint_scores = peaks.clamp(0, 1)
        counted = keypoint_scores > self.config.output.keypoint_floor
        scores = box_scores * keypoint_scores.where(counted, 0.0).sum(1) / counted.sum(1).clamp(min=1)
        everything = Poses(keypoints, keypoint_scores, scores)
        result, start = [], 0
        for count in counts:
            poses = everything[start : start + count]
            result.append(poses[poses.scores.argsort(descending=True, stable=True)])
            start += count
        return result

    def _refined_maps(self, pixels: Tensor, image: Tensor, squares: Tensor) -> Tensor:
        """Final maps (N, K, h, w) float32 of the squares (N, 4) of images (N,)."""
        crops = crop_images(pixels, image, squares, self.config.prs.size)
        maps = final_maps(*self.refiner(crops)).float()
        if not self.config.prs.flip_average or not len(crops):
            return maps
        mirrored = final_maps(*self.refiner(crops.flip(-1))).float()[:, self.flip_index].flip(-1)
        # Cell i is the point i * stride, so its mirror image is cell (size - i): one cell further than flip gives.
        mirrored = torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=-1)
        return (maps + mirrored) / 2


class _Term(NamedTuple):
    """A loss as a sum, and this rank's count; the average of the counts over ranks divides the sum."""

    total: Tensor
    divisor: Tensor


class _Crops(NamedTuple):
    """N crops to train on."""

    pixels: Tensor  # (N, 3, size, size) normalised
    keypoints: Tensor  # (N, K, 2) px of the crop
    labelled: Tensor  # (N, K) bool, keypoints that have a loss
    used: Tensor  # (N,) bool, False for repetitions
    supervised: Tensor | None  # (N, K) bool, keypoints that the person's annotators label; None: all


def _gaussians(keypoints: Tensor, labelled: Tensor, size: tuple[int, int], stride: int, deviation: float) -> Tensor:
    """Maps (B, K, h, w) of Gaussians of ``deviation`` cells at positions (B, M, K, 2) px; cell i is i * stride."""
    reach = math.ceil(_REACH * deviation)
    deviations, radii = (torch.full((), float(v), device=keypoints.device) for v in (deviation, reach))
    return draw_gaussians(keypoints / stride, labelled, deviations, radii, size, reach=reach)
