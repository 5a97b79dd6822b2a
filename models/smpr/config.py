"""Settings of SMPR, and those of the paper.

S1 are all cells that are assigned to a person, S2 those of them that pass the OKS gate.
"""

from dataclasses import dataclass, field
from typing import Literal, Self

from posefleet.models.parts.layers.backbones import CAFFE_INPUT, BackboneConfig
from posefleet.models.parts.layers.fpn import Activation
from posefleet.models.parts.regression.oks_gate import KeepBest
from posefleet.models.parts.regression.pose_decode import PoseDecodeConfig
from posefleet.models.parts.regression.pose_head import PoseHeadConfig
from posefleet.models.parts.regression.pose_loss import PoseLoss
from posefleet.models.parts.regression.positives import PositivesConfig
from posefleet.models.parts.regression.pyramid_model import Neck


@dataclass(frozen=True, kw_only=True, slots=True)
class AssignConfig(PositivesConfig):
    """Which cells train which part of the network. S1 are all assigned cells, S2 those that pass the OKS gate."""

    oks_of: Literal["init", "refined"] = "init"
    """The pose whose OKS filters cells, weights the regression and is the target of the pose score."""
    refine_oks_threshold: float = 0.5
    """0..1: cells whose pose has a lower OKS do not train the second stage. Raised, fewer and better first poses train
    it, and training starts more slowly. The paper has 0.5."""
    keep_best: Literal[KeepBest, True, False] = "assigned"
    """Cells that train the second stage whatever their OKS. ``assigned``: the best of the cells assigned to a person,
    so that each person trains it from the first step. ``image``, the released rule: the person's best cell of the whole
    image, if it is assigned to anybody; while poses are bad it mostly is not, so the second stage starts later, on
    better poses. ``none``: no cell, so it starts late. (Older files have ``true`` and ``false`` for ``assigned`` and
    ``none``.)"""
    cls_target: Literal["s2", "s1"] = "s2"
    """Positives of the classification: the cells of the second stage (S2), or all assigned cells (S1)."""
    ignore_unlabelled: bool = False
    """Skip the classification loss inside crowds and people without keypoints; otherwise these cells are negatives."""

    def __post_init__(self) -> None:
        PositivesConfig.__post_init__(self)
        if isinstance(self.keep_best, bool):
            object.__setattr__(self, "keep_best", "assigned" if self.keep_best else "none")
        if not 0 <= self.refine_oks_threshold <= 1:
            raise ValueError(f"refine_oks_threshold must be 0..1, not {self.refine_oks_threshold}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights (eq. 5) and forms of the losses. A raised weight makes that part learn faster than the others."""

    cls: float = 1.0
    """Weight of the classification."""
    heatmap: float = 4.0
    """Weight of the keypoint map."""
    init: float = 0.05
    """Weight of the first pose. Its error is in cells, summed over coordinates."""
    refine: float = 0.1
    """Weight of the second pose. Its error is in cells, summed over coordinates."""
    psm: float = 1.0
    """Weight of the pose score."""
    regression: PoseLoss = "l1"
    """Form of both pose losses; ``oks`` is 1 - OKS of a pose and its person."""
    beta: float = 1 / 9
    """Error at which ``smooth_l1`` becomes linear, cells, above 0. Raised, small errors count less."""
    oks_weighted_regression: bool = True
    """Weight each cell's pose loss by its OKS, and divide by the sum of weights instead of the number of cells."""
    count_images: bool = True
    """Divide the two focal losses by the number of positives plus the number of images, instead of positives alone.
    This makes batches with few people count less."""
    psm_target: Literal["s2", "s1"] = "s2"
    """Cells that train the pose score: those of the second stage (all assigned cells if it has none), or all assigned
    cells."""
    heatmap_target: Literal["one_class", "multihot", "gaussian"] = "one_class"
    """Targets of the keypoint map: a cell has the class of its last keypoint; or of all its keypoints (better for
    images below 400 px); or Gaussians around the keypoints, with the focal loss made for Gaussians."""
    gaussian_overlap: float = 0.9
    """0..1, IoU that a box shifted by the radius of a Gaussian still has. Lowered, Gaussians are wider."""
    gaussian_radius: int = 3
    """Largest radius of a Gaussian, cells. Raised, Gaussians of large people are wider."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")
        if not 0 < self.gaussian_overlap < 1:
            raise ValueError(f"gaussian_overlap must be between 0 and 1, not {self.gaussian_overlap}")
        if self.gaussian_radius < 0:
            raise ValueError(f"gaussian_radius must not be negative, but is {self.gaussian_radius}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig:
    """Which pose is returned, and how poses are ranked."""

    pose: Literal["refined", "initial"] = "refined"
    """Stage whose pose is returned; without a second stage it is the first one's."""
    rank: Literal["psm", "cls"] = "psm"
    """Rank poses by classification and pose score, or by classification alone."""
    exponent: float = 0.5
    """0..1, the a of the score (classification^a * pose score^(1 - a))^2. Raised, the classification counts more."""

    def __post_init__(self) -> None:
        if not 0 <= self.exponent <= 1:
            raise ValueError(f"exponent must be 0..1, not {self.exponent}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """SMPR; the defaults are the authors' released settings, but for five of them:

    * ``backbone``: timm's ImageNet weights, so its ``style`` and ``input``. The authors started from weights that were
      converted from Caffe, which timm does not have.
    * ``neck_activation``: none, as in the paper and in the pyramids that it cites. The released ReLU sits behind every
      convolution of the PAFPN, also the laterals, whose sums can then only grow.
    * ``head.align_norm``: GroupNorm. Without it the second stage stopped learning within a few steps.
    * ``assign.keep_best``: the best of a person's own cells. While poses are bad, the best cell of the whole image is
      mostly assigned to nobody, and then nothing of that person trains the second stage and the classification.
    * ``decode.pixel_boxes``: off. Coordinates are continuous everywhere in this project, so boxes are not a pixel
      larger than the keypoints that they hold, and an image ends at its width, not at the last pixel's centre.

    :meth:`released` has the authors' values, and :meth:`paper` those of the paper's text.
    """

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Network that computes features C3..C5."""
    neck: Neck = "pafpn"
    """Feature pyramid. ``pafpn`` adds a path from fine to coarse levels to ``fpn`` and costs more time; ``hrfpn``, made
    for HRNet, fuses the maps of strides 4 to 32 and pools the result."""
    neck_activation: Activation = "none"
    """What follows every convolution of the pyramid; it must be what the weights were trained with. SMPR's authors
    released weights with ``relu``."""
    head: PoseHeadConfig = field(default_factory=PoseHeadConfig)
    """What the head predicts."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Which cells train which part."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the losses."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Which pose is returned, and how poses are ranked."""
    decode: PoseDecodeConfig = field(default_factory=PoseDecodeConfig)
    """Which cells become poses, how duplicates are suppressed, and what the score of a keypoint is."""

    def __post_init__(self) -> None:
        if self.assign.oks_of == "refined" and not self.head.refine:
            raise ValueError("assign.oks_of is 'refined' but head.refine is false: there is no refined pose")
        if self.decode.keypoint_scores == "map" and not self.head.heatmap:
            raise ValueError("decode.keypoint_scores is 'map' but head.heatmap is false: there is no keypoint map")
        if self.head.centerness:
            raise ValueError("head.centerness is true, but SMPR has no loss for it; head.psm takes its place")

    @classmethod
    def released(cls, backbone: Literal["resnet50", "hrnet_w32"] = "resnet50") -> Self:
        """The settings of the authors' released code; imported weights have them.

        Its network differs from ours in the backbone's style and input, in the ReLU behind every convolution of the
        pyramid, and in having no norm inside the alignment; its training in ``assign.keep_best``; its predictions in
        ``decode.pixel_boxes``. For HRNet, no outputs of the released code were at hand: that its input is Caffe's and
        its HRFPN has no ReLU follows mmdetection, which that code extends.

        Args:
            backbone: Which of the two published models.
        """
        hrnet = backbone == "hrnet_w32"
        return cls(
            backbone=BackboneConfig(
                name=backbone, pretrained=False, style="pytorch" if hrnet else "caffe", input=CAFFE_INPUT
            ),
            neck="hrfpn" if hrnet else "pafpn",
            neck_activation="none" if hrnet else "relu",
            head=PoseHeadConfig(align_norm="none"),
            assign=AssignConfig(keep_best="image"),
            decode=PoseDecodeConfig(pixel_boxes=True),
        )

    @classmethod
    def paper(cls) -> Self:
        """The settings of the paper's text, and those of RepPoints where it is silent."""
        return cls(
            neck="fpn",
            head=PoseHeadConfig(
                tower_depth=3,
                heatmap_channels=256,
                offset_groups=1,
                offset_bias=True,
                offset_std=0.01,
                gradient_mul=0.1,
                level_scales=False,
                hidden_layer=True,
                output_kernel=1,
            ),
            assign=AssignConfig(
                level_rule="reppoints",
                center_half_side=0.75,
                force_one=True,
                cls_target="s1",
                ignore_unlabelled=True,
                oks_of="refined",
            ),
            loss=LossConfig(
                oks_weighted_regression=False, count_images=False, psm_target="s1", heatmap_target="multihot"
            ),
            decode=PoseDecodeConfig(max_poses=100),
        )
