"""Targets of the maps of keypoints, centres and offsets (LOGO-CAP, section 3.1).

Cell j of a map of stride s is at pixel s * j. Letters: B images, M people of an image (padded), K keypoints,
(h, w) cells.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posefleet.models.logocap.centres import OffsetTargets, offset_targets
from posefleet.models.parts.ops.assign import PaddedPeople, ignored_cells
from posefleet.models.parts.ops.cells import map_points, person_centres
from posefleet.models.parts.ops.heatmaps import draw_gaussians, drawn_cells


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetConfig:
    """Targets of the maps."""

    heat_sigma: float = 2.0
    """Standard deviation of the Gaussians around keypoints, cells, above 0, usually 1.5..3. Raised, maps are easier to
    learn and peaks less exact."""
    centre_sigma: float = 4.0
    """Standard deviation of the Gaussians around centres, cells, above 0, usually 3..6. Raised, centres of close people
    merge."""
    offset_radius: int = 4
    """Half the side of the square around a centre in which offsets train, cells, at least 1, usually 2..6. Raised, more
    cells train, and squares of close people overlap."""
    refined_sigma: float = 4.0
    """Standard deviation of the adapted map's target, pixels, above 0; the paper has 16, the window's. Raised, adapted
    keypoints are less exact."""
    background: float = 0.1
    """0..1, weight of the maps' loss in cells outside all Gaussians. Raised, maps have fewer false peaks."""
    min_area: float = 1024.0
    """People with a smaller area have no centre, square pixels of the input. Lowered, small people train, too."""
    mask_unlabelled: bool = True
    """Skip the loss of the maps inside crowds and people without keypoints."""

    def __post_init__(self) -> None:
        if min(self.heat_sigma, self.centre_sigma, self.refined_sigma) <= 0 or self.offset_radius < 1:
            raise ValueError("heat_sigma, centre_sigma and refined_sigma must be above 0 and offset_radius at least 1")


@torch.no_grad()
def heat_targets(
    people: PaddedPeople, size: tuple[int, int], stride: int, config: TargetConfig
) -> tuple[Tensor, Tensor]:
    """Gaussians (B, K + 1, h, w) of keypoints and, last, centres, and the weights (B, 1, h, w) of their cells."""
    keypoints = people.keypoints / stride
    limit = torch.tensor([size[1], size[0]], device=keypoints.device)
    drawn = people.labelled & ((keypoints >= 0) & (keypoints < limit)).all(-1)
    centres = person_centres(keypoints, people.labelled)
    has_centre = _has_centre(people, config)

    def gaussians(points: Tensor, which: Tensor, sigma: float) -> Tensor:
        radius = 3 * sigma + 2  # the released code draws the cells that are nearer than this
        deviation, edge = points.new_tensor([sigma]), points.new_tensor([radius])
        return draw_gaussians(points, which, deviation, edge, size, reach=math.ceil(radius), within=True)

    maps = [gaussians(keypoints, drawn, config.heat_sigma)]
    maps.append(gaussians(centres[:, :, None], has_centre[..., None], config.centre_sigma))
    radii = keypoints.new_tensor([3 * config.heat_sigma + 2, 3 * config.centre_sigma + 2])
    near = drawn_cells(keypoints.flatten(1, 2), drawn.flatten(1), radii[:1], size)
    near |= drawn_cells(centres, has_centre, radii[1:], size)
    weights = torch.where(near, 1.0, config.background)
    if config.mask_unlabelled:
        ignored = ignored_cells(map_points(size, stride, keypoints.device), people, near.flatten(1))
        weights = weights * ~ignored.view(-1, *size)
    return torch.cat(maps, dim=1), weights[:, None]


def owner_targets(people: PaddedPeople, size: tuple[int, int], stride: int, config: TargetConfig) -> OffsetTargets:
    """Targets of the offsets in the cells around the centres of people."""
    keypoints = people.keypoints / stride
    centres = person_centres(keypoints, people.labelled)
    radius = config.offset_radius
    return offset_targets(centres, _has_centre(people, config), keypoints, people.labelled, people.areas, size, radius)


def _has_centre(people: PaddedPeople, config: TargetConfig) -> Tensor:
    """(B, M) bool, True for people with keypoints whose area is at least ``config.min_area``."""
    return people.valid & (people.areas >= config.min_area)
