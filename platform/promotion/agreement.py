"""Compares the poses of two models on one image without annotations: pairs them by person and measures their OKS."""

from dataclasses import dataclass

import numpy as np
import torch

from posefleet.data.coco.annotations import AREA_OF_BOX
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.models.parts.ops.oks import oks

SAME_PERSON = 0.5
"""Minimum OKS between two poses of one person."""

_MIN_AREA = 1.0
"""Square pixels. All keypoints of a pose may lie on an edge of the image. Its box has no area then, and rounding, which
depends on the size of the batch, would decide the OKS."""


@dataclass(frozen=True, slots=True)
class PoseAgreement:
    """How far two models agree on one image."""

    similarities: tuple[float, ...]
    """OKS of the two poses of each person whom both found, ascending; scaled by the area of the first model's pose."""
    only_first: int
    """People whom only the first model found."""
    only_second: int
    """People whom only the second model found."""


def compare_poses(first: Poses, second: Poses, schema: KeypointSchema) -> PoseAgreement:
    """Pair the poses of two models, each at most once, so that the sum of their OKS is largest.

    Args:
        first: Poses of the first model, which the areas are computed from.
        second: Poses of the second model, in the same pixels.
        schema: The keypoints of both.
    """
    if not len(first) or not len(second):
        return PoseAgreement((), len(first), len(second))
    from scipy.optimize import linear_sum_assignment  # half a second of every replica

    areas = (first.boxes[:, 2:] - first.boxes[:, :2]).prod(1) * AREA_OF_BOX
    areas = areas.clamp(min=_MIN_AREA)
    labelled = torch.ones(len(first), len(schema), dtype=torch.bool)
    similarity = oks(
        second.keypoints[:, None], first.keypoints, labelled, areas, torch.tensor(schema.sigmas)
    ).numpy()  # (second, first)
    similarity = np.where(similarity >= SAME_PERSON, similarity, 0.0)  # pairs below it must not outweigh real ones
    found = similarity[linear_sum_assignment(-similarity)]
    pairs = tuple(np.sort(found[found > 0]).tolist())
    return PoseAgreement(pairs, len(first) - len(pairs), len(second) - len(pairs))
