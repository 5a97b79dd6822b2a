"""Contextual adaptation (LOGO-CAP): its settings, message passing, and the instances that train it.

Letters: B images, M people of an image (padded), T instances of an image, K keypoints, S candidates along a side.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posefleet.models.logocap.exact_conv import ExactConv2d
from posefleet.models.logocap.expansion_maps import axis_similarity, candidate_axes, outer
from posefleet.models.logocap.winograd import Conv3x3
from posefleet.models.parts.layers.blocks import Norm, group_norm, norm_layer
from posefleet.models.parts.ops.assign import PaddedPeople


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptConfig:
    """How rough poses are adapted."""

    mode: Literal["full", "partial", "kem", "none"] = "full"
    """``none``: keep the rough pose. ``kem``: take the best cell of the global window. ``partial``: take the best
    candidate by its attraction map. ``full``: take the best cells of the window convolved with the attraction map."""
    kem_size: int = 11
    """S, number of candidates along a side of the local mesh, odd, usually 7..19. Raised, keypoints can move further,
    and time and memory grow with its square."""
    kem_step: float = 1.0
    """Pixels between candidates of the keypoint with the smallest sigma. Raised, keypoints can move further and less
    exactly; smaller images need smaller steps."""
    message_channels: tuple[int, ...] = (512, 256, 128)
    """Widths of the 3x3 convolutions of message passing; if empty, only the 1x1 output layer remains. Narrower is
    faster."""
    attentive_norm: bool = True
    """Use Attentive Norm after the second of these convolutions."""
    mixture: int = 20
    """Number of affine transforms that Attentive Norm mixes, at least 1."""
    window: int = 97
    """W, side of the global window, pixels, odd, larger than ``kem_size``. Raised, keypoints can move further, and time
    and memory grow with its square."""
    window_sigmas: float = 3.0
    """Distance from the window's centre to its border, in standard deviations of its Gaussian; the paper has 3. Raised,
    the window fades faster and keypoints stay closer to the rough pose."""
    border: Literal["repeat", "fade"] = "repeat"
    """What maps are worth beyond their last row and column when they are sampled: the last values are repeated, or, in
    the released code, values are 0 at the last row or column itself and return to the last values within one cell."""
    top_weight: float = 0.75
    """0.5..1, weight of the best cell in the mean of the two best cells; 1 takes the best cell alone."""
    assign: Literal["best", "clampmean"] = "best"
    """Person of an instance: the one with the largest mean over keypoints of the best candidate's OKS term, or (paper)
    with the largest mean over all candidates of terms clamped at 0.5."""
    positive_oks: float = 0.5
    """0..1: an instance trains adaptation only if its candidates can form a pose of at least this OKS. Raised, fewer
    and better instances train."""
    instances: int = 12
    """Number of instances of an image that train adaptation, at least 1, the most confident first. If there are fewer,
    they repeat with weight 0, so that batch statistics are those of trained instances. More costs memory."""

    def __post_init__(self) -> None:
        for name in ("kem_size", "window"):
            if getattr(self, name) < 1 or getattr(self, name) % 2 == 0:
                raise ValueError(f"{name} must be odd and above 0, not {getattr(self, name)}")
        if self.window <= self.kem_size:
            raise ValueError(f"window {self.window} must be larger than kem_size {self.kem_size}")
        if self.kem_step <= 0 or self.window_sigmas <= 0:
            raise ValueError(
                f"kem_step and window_sigmas must be above 0, not {self.kem_step} and {self.window_sigmas}"
            )
        if not 0.5 <= self.top_weight <= 1:
            raise ValueError(f"top_weight must be 0.5..1, not {self.top_weight}")
        if not 0 <= self.positive_oks <= 1:
            raise ValueError(f"positive_oks must be 0..1, not {self.positive_oks}")
        if self.instances < 1 or self.mixture < 1:
            raise ValueError(f"instances and mixture must be at least 1, not {self.instances} and {self.mixture}")

    @property
    def window_sigma(self) -> float:
        """Standard deviation of the window's Gaussian, pixels."""
        return (self.window // 2) / self.window_sigmas

    @property
    def attracts(self) -> bool:
        """True if the mode uses attraction maps."""
        return self.mode in ("partial", "full")


class Instances(NamedTuple):
    """Rough poses that train adaptation, T of each image, and the annotations of their people. No gradients."""

    poses: Tensor
    """(B, T, K, 2) pixels."""
    axes: Tensor
    """(B, T, K, S, 2) pixels, the candidates."""
    terms: Tensor
    """(B, T, K, S, S), OKS term of every candidate; 0 for unlabelled keypoints."""
    keypoints: Tensor
    """(B, T, K, 2) pixels, annotated keypoints of the person."""
    labelled: Tensor
    """(B, T, K) bool, True for labelled keypoints of the person."""
    oks: Tensor
    """(B, T), the largest OKS of a pose that has the same mesh position (row, column) at all keypoints."""
    used: Tensor
    """(B, T) bool, False for repeated rows."""

    def gain(self) -> Tensor:
        """(B, T, K): OKS term of the best candidate minus that of the rough keypoint; 0 in unused rows."""
        centre = self.terms.shape[-1] // 2
        return (self.terms.amax((-2, -1)) - self.terms[..., centre, centre]) * self.used[..., None]

    def stats(self) -> dict[str, Tensor]:
        """Statistics to log, 0-dim tensors: ``trained`` (instances per image), ``rough_oks`` and ``best_oks`` (means
        over trained instances of the OKS of the rough pose and of the best candidates)."""
        centre = self.terms.shape[-1] // 2
        count = self.used.sum().clamp(min=1)
        share = self.used[..., None] / self.labelled.sum(-1, keepdim=True).clamp(min=1) / count
        return {
            "trained": self.used.sum() / len(self.used),
            "rough_oks": (self.terms[..., centre, centre] * share).sum(),
            "best_oks": (self.terms.amax((-2, -1)) * share).sum(),
        }


def message_passing(config: AdaptConfig, norm: Norm, in_channels: int, keypoints: int) -> nn.Sequential:
    """The network of message passing, over the meshes of all keypoints of an instance: (N, C, S, S) -> (N, K, S, S)."""
    layers: list[nn.Module] = []
    for i, channels in enumerate(config.message_channels):
        attentive = config.attentive_norm and i == 1
        layers += [
            Conv3x3(in_channels, channels),
            AttentiveNorm(channels, config.mixture, norm) if attentive else norm_layer(channels, norm),
            nn.ReLU(inplace=True),
        ]
        in_channels = channels
    return nn.Sequential(*layers, ExactConv2d(in_channels, keypoints, 1))


@torch.no_grad()
def training_instances(poses: Tensor, people: PaddedPeople, sigmas: Tensor, config: AdaptConfig) -> Instances:
    """Choose the rough poses that train adaptation, and assign people to them.

    Args:
        poses: (B, T, K, 2) pixels, most confident first.
        people: People of each image.
        sigmas: (K,) deviations of the schema.

    Returns:
        ``config.instances`` rows of each image.
    """
    axes = candidate_axes(poses, sigmas, config.kem_size, config.kem_step)
    similar = axis_similarity(axes[:, :, None], people.keypoints[:, None], people.areas[:, None], sigmas)
    person = _person_of(similar, people, config)  # (B, T)

    rows = person[:, :, None, None, None, None].expand(-1, -1, 1, *similar.shape[3:])
    terms = outer(similar.gather(2, rows).squeeze(2))  # (B, T, K, S, S)
    image = torch.arange(len(person), device=person.device)[:, None]
    labelled = people.labelled[image, person]  # (B, T, K)
    terms = terms.where(labelled[..., None, None], 0.0)
    oks = (terms.sum(2) / labelled.sum(2).clamp(min=1)[..., None, None]).amax((-2, -1))  # (B, T)
    kept = (oks >= config.positive_oks) & labelled.any(-1)

    order = kept.float().argsort(dim=1, descending=True, stable=True)
    slots = torch.arange(config.instances, device=order.device)
    count = kept.sum(1, keepdim=True)
    chosen = order.gather(1, slots % count.clamp(min=1))  # (B, config.instances)
    every = Instances(poses, axes, terms, people.keypoints[image, person], labelled, oks, kept)
    return Instances(*(values[image, chosen] for values in every))._replace(used=slots < count)


def _person_of(similar: Tensor, people: PaddedPeople, config: AdaptConfig) -> Tensor:
    """The person (B, T) of every instance, from OKS terms (B, T, M, K, S, 2) along the axes."""
    if config.assign == "best":
        best = similar.amax(-2).prod(-1)  # (B, T, M, K): the best column and the best row
        labelled = people.labelled[:, None]
        scores = best.where(labelled, 0.0).sum(-1) / labelled.sum(-1).clamp(min=1)
    else:
        terms = outer(similar).clamp(min=0.5).where(people.labelled[:, None, :, :, None, None], 0.5)
        scores = terms.mean((-3, -2, -1))
    return scores.where(people.valid[:, None], -1.0).argmax(-1)


_EPSILON = 1e-3
"""Added to the variance behind the attention."""


class AttentiveNorm(nn.Module):
    """A norm without affine; then a scale and a shift, mixed from tables with weights that depend on the instance.

    Args:
        channels: C.
        mixture: J, number of entries of each table.
        kind: The norm: BatchNorm or GroupNorm.
    """

    def __init__(self, channels: int, mixture: int, kind: Norm = "batch") -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(channels, affine=False)
        if kind == "group":
            self.norm = nn.GroupNorm(group_norm(channels).num_groups, channels, affine=False)
        self.attention = nn.Linear(channels, mixture, bias=False)
        self.scales = nn.Parameter(1 + 0.1 * torch.randn(mixture, channels))
        self.shifts = nn.Parameter(0.1 * torch.randn(mixture, channels))
        nn.init.kaiming_normal_(self.attention.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        with torch.autocast(x.device.type, enabled=False):  # a variance needs more than bfloat16's 8 bits
            variance, mean = torch.var_mean(x.float(), dim=(2, 3))  # (N, C)
            weights = F.hardsigmoid(self.attention(mean * torch.rsqrt(variance + _EPSILON)))  # (N, J)
            scale, shift = weights @ self.scales, weights @ self.shifts  # (N, C)
            out = torch.addcmul(shift[..., None, None], self.norm(x.float()), scale[..., None, None])
        return out.to(x.dtype)
