"""Targets of the maps of keypoints, centres and offsets (LOGO-CAP, section 3.1).

Cell j of a map of stride s is at pixel s * j. Letters: B images, M people of an image (padded), K keypoints,
(h, w) cells.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from posefleet.models.logocap.centres import OffsetTargets, offset_targets
from posefleet.models.parts.ops.assign import PaddedPeople, ignored_cells, supervised_cells
from posefleet.models.parts.ops.cells import map_points
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
    centre_of_unlabelled: bool = False
    """Draw the centres of people without keypoints, too, in the middle of their boxes, as the released code does. Its
    map is trained there only beyond the person, where a mask hides the person itself."""
    column_shift: float = 0.0
    """Cells by which the columns of all maps are left of their keypoints and centres. The released code mirrors pixels,
    x -> W - 1 - x, otherwise than cells, so its networks learned columns 0.375 cells further left; training that starts
    from their weights needs 0.375, or it has to unlearn that first."""
    mask_unlabelled: bool = True
    """Skip the loss of the maps inside crowds and people without keypoints."""

    def __post_init__(self) -> None:
        if min(self.heat_sigma, self.centre_sigma, self.refined_sigma) <= 0 or self.offset_radius < 1:
            raise ValueError("heat_sigma, centre_sigma and refined_sigma must be above 0 and offset_radius at least 1")


@torch.no_grad()
def heat_targets(
    people: PaddedPeople, size: tuple[int, int], stride: int, config: TargetConfig
) -> tuple[Tensor, Tensor]:
    """Gaussians (B, K + 1, h, w) of keypoints and, last, centres, and the weights of their cells: (B, 1, h, w), or
    (B, K + 1, h, w) if not all keypoints are supervised."""
    keypoints, centres = _on_map(people.keypoints, stride, config), _on_map(people.centres, stride, config)
    limit = torch.tensor([size[1], size[0]], device=keypoints.device)
    drawn = people.labelled & _inside(keypoints, limit)
    has_centre = _has_centre(people, config) & _inside(centres, limit)

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
    weights = weights[:, None]
    supervised = supervised_cells(people.supervised_maps, people.seams, size, stride, centred=False)
    if supervised is not None:
        weights = weights * torch.cat([supervised, torch.ones_like(supervised[:, :1])], dim=1)
    return torch.cat(maps, dim=1), weights


def owner_targets(people: PaddedPeople, size: tuple[int, int], stride: int, config: TargetConfig) -> OffsetTargets:
    """Targets of the offsets in the cells around the centres of people."""
    keypoints, centres = _on_map(people.keypoints, stride, config), _on_map(people.centres, stride, config)
    radius = config.offset_radius
    return offset_targets(centres, _has_centre(people, config), keypoints, people.labelled, people.areas, size, radius)


def _on_map(points: Tensor, stride: int, config: TargetConfig) -> Tensor:
    """Points (..., 2) xy in pixels -> in cells of the maps."""
    return points / stride - points.new_tensor([config.column_shift, 0.0])


def _inside(points: Tensor, limit: Tensor) -> Tensor:
    """(...) bool, True for points (..., 2) in [0, limit), limit (2,)."""
    return ((points >= 0) & (points < limit)).all(-1)


def _has_centre(people: PaddedPeople, config: TargetConfig) -> Tensor:
    """(B, M) bool, True for people whose area is at least ``config.min_area``; those without keypoints if asked for."""
    return (people.counted if config.centre_of_unlabelled else people.valid) & (people.areas >= config.min_area)
