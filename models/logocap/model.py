"""LOGO-CAP: learning local-global contextual adaptation for pose estimation (Xue et al., CVPR 2022).

A map of centres, and offsets from them, give rough poses (centre-offset regression). Around every rough keypoint a
small mesh of candidates (local keypoint expansion map) samples embeddings. Convolutional message passing over the
meshes of all keypoints of a person turns them into attraction maps, which predict each candidate's OKS term. A wide
window of the keypoint map (global expansion map) is convolved with the attraction map of the same keypoint. The mean of
the two best cells of the result is the adapted keypoint.

:class:`Config` has three presets. :meth:`Config.paper` is the paper's text, :meth:`Config.released` the authors' code,
whose formulas differ from it and made the paper's numbers. The default is the code without its faults. Two things
deviate in all of them: ``target.min_area`` is measured in the input image instead of the original one, and adaptation
trains on a fixed number of instances of each image, so that no shape depends on the data.

Letters: B images, M people of an image (padded), T instances of an image, K keypoints, (h, w) cells of stride 4,
S candidates along the side of a local mesh, W pixels along the side of a global window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import People, Poses, TargetPoints
from posefleet.models.logocap.adaptation import AdaptConfig, Instances, message_passing, training_instances
from posefleet.models.logocap.centres import Centres, OffsetTargets, rough_poses, top_centres
from posefleet.models.logocap.exact_conv import ExactConv2d
from posefleet.models.logocap.expansion_maps import (
    candidate_axes,
    candidate_mesh,
    convolve_windows,
    mesh_span,
    outer,
    sample_candidates,
    sample_windows,
    top_two,
    window_axes,
)
from posefleet.models.logocap.flip import FlipConvention, mirror_images, unmirror_map, unmirror_offsets
from posefleet.models.logocap.suppression import suppress_near
from posefleet.models.logocap.targets import TargetConfig, heat_targets, owner_targets
from posefleet.models.parts.layers.backbones import Backbone, BackboneConfig
from posefleet.models.parts.layers.blocks import Norm, norm_layer
from posefleet.models.parts.layers.fusion import ConcatConv, mixing
from posefleet.models.parts.layers.keypoint_channels import Channel, KeypointChannels, Layout, coordinates, one_each
from posefleet.models.parts.ops.assign import PaddedPeople, pad_people
from posefleet.models.parts.ops.cells import read_cells
from posefleet.models.parts.ops.counts import in_proportion
from posefleet.models.parts.ops.losses import l2_loss, mean_counts, smooth_l1_loss

STRIDE = 4
"""Pixels per cell of all maps; cell j is at pixel 4 j."""

_CACHED = 2
"""Instances of an image whose windows a CPU computes together, so that they stay in its cache; all at once they take
twice the time."""

_NOTHING = 1e-6
"""Values of adapted maps up to this limit are rounding errors."""

STRIDES = (4, 8, 16, 32)
"""Pixels per cell of the backbone's maps that are fused."""

ReleasedBackbone = Literal["hrnet_w32", "hrnet_w48"]
"""Backbones whose weights the authors published."""

Maps = dict[str, list[Tensor]]
"""Dense predictions, one map each: ``heat`` (B, K + 1, h, w), the centre last; ``offset`` (B, 2K, h, w), cells, x
before y; ``embedding`` (B, D, h, w), absent without attraction maps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CentreHeadConfig:
    """How wide the heads are, and their norm."""

    heat_channels: int = 32
    """Hidden channels of the keypoint and centre maps; the paper has 48 with HRNet-W48."""
    offset_channels: int = 256
    """Hidden channels of the offsets."""
    embedding_channels: int = 64
    """Channels sampled at every candidate, usually 16..128. Fewer needs less memory and time."""
    mixing_channels: int = 0
    """Channels of 3x3 convolutions between backbone and heads; 0: no such convolutions. Backbones that do not mix their
    scales at stride 4, as HRNet does, need them."""
    mixing_depth: int = 2
    """Number of those convolutions, at least 1."""
    separate_mixing: bool = False
    """Use a second set of these convolutions for the offsets. The loss of the offsets has a small weight, so with
    shared convolutions the offsets learn slowly in short trainings."""
    norm: Norm = "batch"
    """Norm of heads and message passing: BatchNorm as in the paper, whose statistics are those of one process, or
    GroupNorm for small batches (then channels must be multiples of 4 up to 128, of 32 above)."""

    def __post_init__(self) -> None:
        if self.mixing_channels and self.mixing_depth < 1:
            raise ValueError(f"mixing_channels is {self.mixing_channels} but mixing_depth is {self.mixing_depth}")
        if self.separate_mixing and not self.mixing_channels:
            raise ValueError("separate_mixing is true but mixing_channels is 0, which mixes nothing")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """Weights and forms of the losses. A raised weight makes that part learn faster than the others."""

    heat: float = 1.0
    """Weight of the keypoint and centre maps."""
    refine: float = 1.0
    """Weight of the adapted maps (the reweighing)."""
    offset: float = 0.01
    """Weight of the offsets."""
    kam: float = 0.01
    """Weight of the attraction maps (the OKS loss)."""
    heat_weight: Literal["outside", "inside"] = "outside"
    """Weights of cells multiply the squared error, or (paper) the error."""
    offset_weight: Literal["inv_sqrt_area", "area"] = "inv_sqrt_area"
    """Weight of a person's offsets: 1 / sqrt(area), or (paper) the area."""
    offset_count: Literal["coordinates", "cells"] = "coordinates"
    """What divides the offset loss: trained coordinates, or (paper) trained cells."""
    beta: float = 1 / 9
    """Error at which the offset loss becomes linear, cells, above 0. Raised, small errors count less."""
    kam_weight: Literal["gain", "oks"] = "gain"
    """Weight of a keypoint's attraction map: the OKS term that its best candidate gains over the rough keypoint, or
    (paper) the instance's OKS times the keypoint's best term."""
    refine_weight: Literal["gain", "none"] = "gain"
    """Weight of a keypoint's adapted map: the same gain, or (paper) 1."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeConfig:
    """Which centres become poses, and how duplicates are suppressed."""

    centres: int = 30
    """T, number of best centres of each image, 1..1024; training chooses ``adapt.instances`` from them. More finds more
    people in crowds, and costs time and memory."""
    centre_pool: int = 3
    """Side of the square in which a centre must be the largest value, pixels, odd. Raised, close centres merge."""
    min_centre: float = 0.01
    """0..1: centres of lower value are dropped, except the best one. Raised, prediction is faster and finds fewer."""
    near_distance: float = 0.05
    """Keypoints of two poses are near if closer than this share of the diagonal of a pose's box. Raised, more poses are
    duplicates."""
    near_keypoints: int = 8
    """A pose with more near keypoints than this is a duplicate. It is stated for COCO's 17 keypoints: other schemas
    have the same share of theirs, rounded. Raised, fewer poses are duplicates."""
    visit: Literal["pose", "centre"] = "pose"
    """Score by which suppression visits poses: that of the pose, or, in the released code, that of its centre."""
    stay: bool = True
    """Leave a keypoint at its rough place where nothing attracts it, so that its adapted map is empty. The released
    code moves it to a corner of the window."""
    clip: bool = True
    """Move keypoints outside the image to its border. The released code leaves them outside."""
    max_poses: int = 30
    """Largest number of poses of one image, at least 1; COCO evaluates 20."""
    flip_average: bool = False
    """Average the maps with those of the mirrored image, as the paper's results do. It doubles the network's time."""

    def __post_init__(self) -> None:
        if not 1 <= self.centres <= 1024 or self.max_poses < 1:
            raise ValueError(f"centres must be 1..1024 and max_poses above 0, not {self.centres} and {self.max_poses}")
        if self.centre_pool < 1 or self.centre_pool % 2 == 0:
            raise ValueError(f"centre_pool must be odd, not {self.centre_pool}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """LOGO-CAP with HRNet-W32. The defaults are the authors' released settings but for these, of which none changes a
    shape:

    * ``half_pixel_fix: true``, ``flip_convention: own``, ``target.column_shift: 0``. The released network has to learn
      that its maps are read 1.5 px off, and mirrors cells otherwise than pixels. Targets that are decoded as if they
      were predictions have a mean OKS of 0.959 there (77 % above 0.95), here 0.997 (99 %).
    * ``adapt.border: repeat``. The released sampling lets values fall to 0 in the last row and column, where people
      who are cut off have keypoints: attraction maps change by up to 0.62, windows by up to 0.65, both of 1.
    * ``adapt.instances: 12``. More instances cost memory, and few images have more people.
    * ``target.centre_of_unlabelled: false``. A centre without offsets teaches a centre whose pose is arbitrary.
    * ``decode.visit: pose``. Suppression ranks by the score by which poses are evaluated.
    * ``decode.stay: true``. A keypoint that nothing attracts is likelier at its rough place than 48 px away.
    * ``decode.clip: true``. No annotated keypoint is outside the image.
    * ``decode.flip_average: false``. It takes twice the time; ``jobs/configs/logocap.yaml`` turns it on.
    """

    backbone: BackboneConfig = field(
        default_factory=lambda: BackboneConfig(name="hrnet_w32", frozen_stages=0, norm="trained")
    )
    """Network that computes features at strides 4, 8, 16 and 32."""
    head: CentreHeadConfig = field(default_factory=CentreHeadConfig)
    """How wide the heads are, and their norm."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    """How rough poses are adapted."""
    target: TargetConfig = field(default_factory=TargetConfig)
    """Targets of the maps."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights and forms of the losses."""
    decode: DecodeConfig = field(default_factory=DecodeConfig)
    """Which centres become poses, and how duplicates are suppressed."""
    half_pixel_fix: bool = True
    """Read upsampled maps where upsampling puts their cells, 1.5 px further right and down than the released code does.
    A centre is then its cell's pixel, not its peak's. Without the fix a network has to learn the shift: targets that
    are decoded as if they were predictions have a mean OKS of 0.938 on photographs of COCO, with the fix 0.997.
    Networks trained without the fix need it off."""
    flip_convention: FlipConvention = "own"
    """What the network learned of mirrored images; it belongs to the weights. ``own``: mirrored images are moved by one
    cell before their maps are averaged. ``released``: they are not, because the released code mirrors cells otherwise
    than pixels, and its networks learned the middle (see ``target.column_shift``). The other value moves poses by 2 px
    to the right or left."""

    @property
    def widths(self) -> list[int]:
        """Hidden channels of keypoint and centre maps, offsets, and embedding (0 if there is none)."""
        return [
            self.head.heat_channels,
            self.head.offset_channels,
            self.head.embedding_channels if self.adapt.attracts else 0,
        ]

    @classmethod
    def paper(cls) -> Self:
        """The settings of the paper's text, and ours where it is silent."""
        return cls(
            adapt=AdaptConfig(assign="clampmean"),
            target=TargetConfig(refined_sigma=16.0),
            loss=LossConfig(
                heat_weight="inside",
                offset_weight="area",
                offset_count="cells",
                kam_weight="oks",
                refine_weight="none",
            ),
            decode=DecodeConfig(flip_average=True),
        )

    @classmethod
    def released(cls, backbone: ReleasedBackbone = "hrnet_w32") -> Self:
        """The settings of the authors' released code for one of its backbones; their weights need them."""
        return cls(
            backbone=BackboneConfig(name=backbone, frozen_stages=0, norm="trained"),
            head=CentreHeadConfig(heat_channels=48 if backbone == "hrnet_w48" else 32),
            adapt=AdaptConfig(border="fade", instances=30),
            target=TargetConfig(column_shift=0.375, centre_of_unlabelled=True),
            decode=DecodeConfig(visit="centre", stay=False, clip=False, flip_average=True),
            half_pixel_fix=False,
            flip_convention="released",
        )

    def __post_init__(self) -> None:
        if self.flip_convention == "released" and self.half_pixel_fix:
            raise ValueError(
                "flip_convention is 'released' but half_pixel_fix is true; the released networks learned columns that "
                "the fix would move by 1.5 px: set half_pixel_fix false, or flip_convention 'own'"
            )
        if self.adapt.attracts and self.adapt.instances > self.decode.centres:
            raise ValueError(
                f"adapt.instances {self.adapt.instances} must not exceed decode.centres {self.decode.centres}"
            )


class Model(nn.Module):
    """LOGO-CAP as a :class:`posefleet.models.PoseModel`."""

    decoding: ClassVar = ("decode", "adapt.top_weight")
    network: ClassVar = ("forward_features",)
    decoder: ClassVar = ("message_passing",)
    sigmas: Tensor
    diagnostics: dict[str, Tensor]
    """Statistics of the last training step, 0-dim tensors on the device; :meth:`Instances.stats` describes them."""

    def __init__(self, config: Config, schema: KeypointSchema) -> None:
        super().__init__()
        self.config = config
        head, adapt, keypoints = config.head, config.adapt, len(schema)
        self.backbone = Backbone(config.backbone, strides=STRIDES)
        self.widths = config.widths
        ends = [sum(self.widths[: part + 1]) for part in range(3)]
        self.parts = [slice(end - width, end) for end, width in zip(ends, self.widths, strict=True)]
        self.mix, self.mix_for_offsets = (
            mixing(self.backbone.channels, head.mixing_channels, head.mixing_depth, head.norm) if wanted else None
            for wanted in (head.mixing_channels > 0, head.separate_mixing)
        )
        fused = [head.mixing_channels] if head.mixing_channels else self.backbone.channels
        self.fuse = ConcatConv(fused, sum(self.widths))
        self.heat = _head(head.norm, head.heat_channels, keypoints + 1)
        self.offset = _head(head.norm, head.offset_channels, 2 * keypoints)
        if adapt.attracts:
            channels = head.embedding_channels
            self.embedding = nn.Sequential(norm_layer(channels, head.norm), nn.ReLU())
            self.message_passing = message_passing(adapt, head.norm, keypoints * channels, keypoints)
        self.flip_index = schema.flip_index
        self.shift = (STRIDE - 1) / 2 if config.half_pixel_fix else 0.0
        self.fades = config.adapt.border == "fade"
        self.span = mesh_span(schema.sigmas, adapt.kem_size, adapt.kem_step, STRIDE)
        self.register_buffer("sigmas", torch.tensor(schema.sigmas), persistent=False)
        self.diagnostics = {}

    @staticmethod
    def keypoint_score_rule(config: Config) -> str:
        """What the scores of keypoints are, in words."""
        return "centre * value of the adapted map at the keypoint"

    @property
    def clips_poses(self) -> bool:
        """Whether poses end at the border of the image."""
        return self.config.decode.clip

    @property
    def near_keypoints(self) -> int:
        """``decode.near_keypoints`` for this schema."""
        return in_proportion(self.config.decode.near_keypoints, len(self.flip_index))

    @property
    def score_rule(self) -> str:
        """How poses are ranked, in words. Reports print it beside every AP."""
        decode, mode = self.config.decode, self.config.adapt.mode
        values = {"none": "map", "kem": "window", "partial": "attraction", "full": "adapted map"}[mode]
        flipped = ", flip-averaged maps" if decode.flip_average else ""
        return (
            f"centre * mean over keypoints of the {values}, centre >= {decode.min_centre:g}{flipped}, duplicates have "
            f"more than {self.near_keypoints} keypoints within {decode.near_distance:g} diagonals"
        )

    def keypoint_channels(self, schema: KeypointSchema) -> Layout:
        """See :meth:`posefleet.models.TransferableModel.keypoint_channels`."""
        names = schema.keypoints
        layout = {
            "heat.2": KeypointChannels(outputs=[*one_each(names), Channel("centre")]),
            "offset.2": KeypointChannels(outputs=coordinates(names)),
        }
        if self.config.adapt.attracts:
            channels, last = range(self.config.head.embedding_channels), len(self.message_passing) - 1
            read = [Channel(f"embedding {channel}", (name,)) for name in names for channel in channels]
            layout["message_passing.0"] = KeypointChannels(inputs=read)
            layout[f"message_passing.{last}"] = KeypointChannels(outputs=one_each(names))
        return layout

    def forward(self, images: Tensor, people: list[People]) -> dict[str, Tensor]:
        """Weighted losses ``heat``, ``offset`` and, if switched on, ``kam``, ``refine``."""
        maps = self.forward_features(images)
        exact = torch.autocast(images.device.type, enabled=False)
        with exact:
            padded = pad_people(people, self.sigmas.device)
            instances = self._instances(maps, padded) if self.config.adapt.attracts else None
        kams = self._attraction(maps, instances.axes) if instances else None
        with exact:
            return self._losses(maps, padded, instances, kams)

    def forward_features(self, images: Tensor, *, offsets: bool = True) -> Maps:
        """Run the network up to instances: (B, 3, H, W) RGB images in 0..255, any dtype, to dense predictions.

        Without ``offsets`` the result has the levels instead, from which :meth:`_offsets_at` computes offsets at a few
        cells. GroupNorm needs whole maps, so with it offsets are always computed.
        """
        levels = self.backbone(images)
        of_maps = of_offsets = [self.mix(levels)] if self.mix is not None else levels
        if self.mix_for_offsets is not None:
            of_offsets = [self.mix_for_offsets(levels)]
        heat, offset, embedding = self.parts
        maps = {"heat": [self.heat(self.fuse(of_maps, heat))]}
        if offsets or self.config.head.norm == "group":
            maps["offset"] = [self.offset(self.fuse(of_offsets, offset))]
        else:
            maps["levels"] = of_offsets
        if self.config.adapt.attracts:
            maps["embedding"] = [self.embedding(self.fuse(of_maps, embedding))]
        return maps

    def _offsets_at(self, maps: Maps, cells: Tensor) -> Tensor:
        """Offsets (B, T, 2K) float32 at cells (B, T, 2); a prediction needs no others."""
        if "offset" in maps:
            return read_cells(maps["offset"][0].float(), cells)
        offsets: Tensor = self.offset(self.fuse.at(maps["levels"], cells, self.parts[1]))
        return offsets[..., 0].transpose(1, 2)

    def _attraction(self, maps: Maps, axes: Tensor) -> Tensor:
        """Attraction maps (B, T, K, S, S) float32 of the candidates (B, T, K, S, 2)."""
        with torch.autocast(axes.device.type, enabled=False):
            blocks = sample_candidates(maps["embedding"][0], axes, STRIDE, self.span, fade=self.fades)
        kams: Tensor = self.message_passing(blocks).float().unflatten(0, axes.shape[:2])
        return kams

    def _windows(self, heat: Tensor, poses: Tensor, window: int) -> Tensor:
        """Windows (B, T, K, W, W) of the keypoint maps in (B, K + 1, h, w) around poses (B, T, K, 2)."""
        sigma = self.config.adapt.window_sigma
        maps = heat[:, :-1].float()
        return sample_windows(maps, poses, window, STRIDE, shift=self.shift, sigma=sigma, fade=self.fades)

    @torch.no_grad()
    def predict(self, images: Tensor) -> list[Poses]:
        """At most ``decode.max_poses`` poses of every image, best first."""
        return self.suppress(self.candidates(images))

    @torch.no_grad()
    def candidates(self, images: Tensor) -> list[Poses]:
        """Poses of every image before suppression; those of several passes over an image can be concatenated."""
        maps = self.forward_features(images, offsets=self.config.decode.flip_average)
        if self.config.decode.flip_average:
            move = STRIDE if self.config.flip_convention == "own" else 0
            mirrored = self.forward_features(mirror_images(images, move))
            centre = len(self.flip_index)
            heat = unmirror_map(mirrored["heat"][0], [*self.flip_index, centre])
            maps["heat"] = [(maps["heat"][0] + heat) / 2]
            maps["offset"] = [(maps["offset"][0] + unmirror_offsets(mirrored["offset"][0], self.flip_index)) / 2]
        return self.decode(maps, (images.shape[-2], images.shape[-1]))

    def suppress(self, poses: Sequence[Poses]) -> list[Poses]:
        """Remove duplicates: poses most of whose keypoints are near those of a better one."""
        decode = self.config.decode
        return suppress_near(
            poses,
            distance=decode.near_distance,
            keypoints=self.near_keypoints,
            limit=decode.max_poses,
            best_first=decode.visit == "pose",
        )

    @torch.no_grad()
    def target_points(self, size: tuple[int, int], people: list[People]) -> list[list[TargetPoints]]:
        """The cells whose offsets learn people, to be drawn.

        Args:
            size: (height, width) of the images, pixels.
            people: People of each image.

        Returns:
            For each image, a list of one entry: the cells with offsets.
        """
        padded = pad_people(people, self.sigmas.device)
        targets = owner_targets(padded, (size[0] // STRIDE, size[1] // STRIDE), STRIDE, self.config.target)
        result = []
        for person in targets.person.amax(1):  # (h, w)
            rows, columns = (person >= 0).nonzero(as_tuple=True)
            points = STRIDE * torch.stack([columns, rows], dim=-1).float()
            strides = torch.full((len(points),), float(STRIDE), device=points.device)
            result.append([TargetPoints("cells with offsets", points, person[rows, columns], strides)])
        return result

    # ------------------------------------------------------------------------------------------------ targets

    def _centres(self, heat: Tensor) -> Centres:
        decode = self.config.decode
        return top_centres(
            heat[:, -1:].float(),
            decode.centres,
            STRIDE,
            pool=decode.centre_pool,
            half_pixel_fix=self.config.half_pixel_fix,
        )

    @torch.no_grad()
    def _instances(self, maps: Maps, people: PaddedPeople) -> Instances:
        """The instances that train adaptation: rough poses as in prediction, matched with the annotated people."""
        centres = self._centres(maps["heat"][0])
        poses = rough_poses(self._offsets_at(maps, centres.cells), centres, STRIDE)
        return training_instances(poses, people, self.sigmas, self.config.adapt)

    # ------------------------------------------------------------------------------------------------ losses

    def _losses(
        self, maps: Maps, people: PaddedPeople, instances: Instances | None, kams: Tensor | None
    ) -> dict[str, Tensor]:
        loss, adapt = self.config.loss, self.config.adapt
        heat, offset = maps["heat"][0].float(), maps["offset"][0].float()
        size = (heat.shape[-2], heat.shape[-1])
        target, weights = heat_targets(people, size, STRIDE, self.config.target)
        sums = {"heat": l2_loss(heat, target, weights if loss.heat_weight == "outside" else weights.square())}
        counts = [weights.new_tensor(heat.numel())]
        owners = owner_targets(people, size, STRIDE, self.config.target)
        trained = owners.person >= 0
        sums["offset"] = self._offset_loss(offset, owners, people)
        counts.append(2 * trained.sum() if loss.offset_count == "coordinates" else trained.any(1).sum())
        if instances is not None and kams is not None:
            gain = instances.gain()
            plain = instances.used[..., None] * instances.labelled
            best = instances.oks[..., None] * instances.terms.amax((-2, -1)) * plain
            per_kam = gain if loss.kam_weight == "gain" else best
            sums["kam"] = l2_loss(kams, instances.terms, per_kam[..., None, None]) / kams[0, 0].numel()
            counts.append(instances.used.sum())
            if adapt.mode == "full":
                per_map = gain if loss.refine_weight == "gain" else plain.float()
                sums["refine"] = self._refine_loss(heat, kams, instances, per_map)
                counts.append(instances.used.sum())
            if self.training:
                self.diagnostics = instances.stats()
        means = mean_counts(torch.stack(counts))
        return {
            name: getattr(loss, name) * total / mean for (name, total), mean in zip(sums.items(), means, strict=True)
        }

    def _offset_loss(self, offset: Tensor, owners: OffsetTargets, people: PaddedPeople) -> Tensor:
        areas = people.areas.clamp(min=1.0)
        by_person = areas.rsqrt() if self.config.loss.offset_weight == "inv_sqrt_area" else areas
        person = owners.person.flatten(1)
        weights = by_person.gather(1, person.clamp(min=0)).where(person >= 0, 0.0).view_as(owners.person)
        weights = weights.repeat_interleave(2, dim=1)
        return smooth_l1_loss(offset, owners.offsets, weights, beta=self.config.loss.beta)

    def _refine_loss(self, heat: Tensor, kams: Tensor, instances: Instances, weights: Tensor) -> Tensor:
        """Sum over instances of the weighted mean error of their adapted maps; ``weights`` (B, T, K)."""
        adapt = self.config.adapt
        refined = convolve_windows(self._windows(heat, instances.poses, adapt.window), kams)
        away = window_axes(instances.poses, adapt.window) - instances.keypoints[..., None, :]  # (B, T, K, W, 2)
        target = outer(torch.exp(-away.square() / (2 * self.config.target.refined_sigma**2)))
        return l2_loss(refined, target, weights[..., None, None]) / refined[0, 0].numel()

    # ------------------------------------------------------------------------------------------------ decode

    def decode(self, maps: Maps, size: tuple[int, int]) -> list[Poses]:
        """Dense predictions of images of ``size`` (height, width) pixels -> candidate poses as ``decode.visit`` orders
        them."""
        adapt, decode = self.config.adapt, self.config.decode
        exact = torch.autocast(self.sigmas.device.type, enabled=False)
        with exact:
            centres = self._centres(maps["heat"][0])
            kept = centres.scores >= decode.min_centre
            kept[:, 0] = True
            most = int(kept.sum(1).max())  # the host waits here, so that no padding is adapted
            centres = Centres(*(values[:, :most] for values in centres))
            rough = rough_poses(self._offsets_at(maps, centres.cells), centres, STRIDE)
            axes = candidate_axes(rough, self.sigmas, adapt.kem_size, adapt.kem_step)
        kams = self._attraction(maps, axes).clamp(0, 1) if adapt.attracts else None
        with exact:
            keypoints, values = self._adapt(maps["heat"][0], rough, axes, kams)
        if decode.clip:
            x, y = keypoints.unbind(-1)
            keypoints = torch.stack([x.clamp(0, size[1]), y.clamp(0, size[0])], dim=-1)
        keypoint_scores = (values.clamp(min=0) * centres.scores[..., None]).clamp(max=1)
        scores = keypoint_scores.mean(-1).where(kept[:, :most], 0.0)
        ranks = scores if decode.visit == "pose" else (scores > 0).float()  # centres are in order already
        order = ranks.argsort(dim=1, descending=True, stable=True)
        image = torch.arange(len(order), device=order.device)[:, None]
        keypoints, keypoint_scores, scores = (values[image, order] for values in (keypoints, keypoint_scores, scores))
        found = (scores > 0).sum(1).tolist()
        return [Poses(keypoints[i, :n], keypoint_scores[i, :n], scores[i, :n]) for i, n in enumerate(found)]

    def _adapt(self, heat: Tensor, rough: Tensor, axes: Tensor, kams: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rough poses (B, T, K, 2) -> adapted ones, and the values (B, T, K) of their keypoints."""
        adapt = self.config.adapt
        if adapt.mode == "none":
            return rough, self._windows(heat, rough, 1)[..., 0, 0]
        if kams is not None and adapt.mode == "partial":
            values, best = kams.flatten(-2).max(-1)  # (B, T, K)
            mesh = candidate_mesh(axes).flatten(-3, -2)
            return mesh.gather(-2, best[..., None, None].expand(*best.shape, 1, 2)).squeeze(-2), values
        few = _CACHED if rough.device.type == "cpu" else len(rough[0])
        parts = range(0, len(rough[0]), max(few, 1))
        found = [
            self._best_cells(heat, rough[:, i : i + few], None if kams is None else kams[:, i : i + few]) for i in parts
        ]
        move, values = (torch.cat(part, dim=1) for part in zip(*found, strict=True))
        if self.config.decode.stay:  # where no value exceeds rounding errors, the best cell is arbitrary
            move = move.where((values > _NOTHING)[..., None], 0.0)
        return rough + move, values

    def _best_cells(self, heat: Tensor, rough: Tensor, kams: Tensor | None) -> tuple[Tensor, Tensor]:
        """Moves (B, T, K, 2), pixels, from rough keypoints to the best cells of windows, and values (B, T, K) there."""
        adapt = self.config.adapt
        windows = self._windows(heat, rough, adapt.window)
        if kams is None:
            return top_two(windows, 1.0)
        return top_two(convolve_windows(windows, kams), adapt.top_weight)


def _head(norm: Norm, channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(norm_layer(channels, norm), nn.ReLU(inplace=True), ExactConv2d(channels, out_channels, 1))
