"""People and dense predictions with known numbers, for tests of methods that regress poses from cells of a pyramid."""

import torch

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import People
from posefleet.models.parts.layers.fpn import FPN
from posefleet.models.parts.ops.cells import encode_offsets, level_sizes, pyramid_cells
from posefleet.models.parts.regression.pose_head import Maps

K = len(COCO17)
SIZE = 512
CELLS = pyramid_cells(level_sizes(SIZE, SIZE, FPN.strides), FPN.strides, torch.device("cpu"))


def person(x1: float, y1: float, x2: float, y2: float, area: float = 10_000) -> People:
    """One person with all keypoints labelled inside a box that two of them span."""
    keypoints = torch.rand(1, K, 2, generator=torch.Generator().manual_seed(0))
    keypoints = torch.tensor([x1, y1]) + keypoints * torch.tensor([x2 - x1, y2 - y1])
    keypoints[0, 0], keypoints[0, 1] = torch.tensor([x1, y1]), torch.tensor([x2, y2])
    box = torch.tensor([[x1, y1, x2, y2]])
    visibility = torch.full((1, K), 2, dtype=torch.uint8)
    return People(keypoints, visibility, box, torch.tensor([float(area)]), torch.zeros(1, dtype=torch.bool))


ADULT = person(100, 100, 220, 340)


def unflatten(values: torch.Tensor) -> list[torch.Tensor]:
    """(B, P, C) -> maps of the levels."""
    parts = values.split([h * w for h, w in CELLS.sizes], dim=1)
    return [part.unflatten(1, size).permute(0, 3, 1, 2) for part, size in zip(parts, CELLS.sizes, strict=True)]


def maps_of(poses: torch.Tensor, logit: float = 0.0, *more: str) -> tuple[Maps, dict[str, torch.Tensor]]:
    """Predictions of one image whose every cell gives ``poses`` (K, 2) or (P, K, 2) in both stages; and its leaves.

    ``more`` names maps of one channel besides ``cls`` and ``psm``; all but ``cls`` have logits 0.
    """
    offsets = encode_offsets(CELLS.points, CELLS.strides, poses.expand(len(CELLS), K, 2))[None]
    leaves = {
        "cls": torch.full((1, len(CELLS), 1), logit),
        "init": offsets.clone(),
        "refine": offsets.clone(),
        **{name: torch.zeros(1, len(CELLS), 1) for name in ("psm", *more)},
    }
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items()}
    maps = {name: unflatten(leaf) for name, leaf in leaves.items()}
    maps["heatmap"] = [torch.zeros(1, K, SIZE // 8, SIZE // 8)]
    return maps, leaves


def assigned(model: torch.nn.Module, people: People) -> torch.Tensor:
    """(P,) bool."""
    (points,) = model.target_points((SIZE, SIZE), [people])[0]
    return (CELLS.points[:, None] == points.points).all(-1).any(1) & torch.isin(CELLS.strides, points.stride)


def trained(leaf: torch.Tensor) -> torch.Tensor:
    """(P,) bool, the cells where a prediction got a gradient."""
    return (leaf.grad[0] != 0).any(-1)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
