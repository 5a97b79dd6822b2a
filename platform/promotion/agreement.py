"""How far two models agree on an image nobody annotated: which of their poses are of the same person, and how alike."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from posefleet.data.coco.annotations import AREA_OF_BOX
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.models.parts.ops.oks import oks

SAME_PERSON = 0.5
"""Least OKS between two poses of one person."""


_LEAST_AREA = 1.0
"""Square pixels. All keypoints of a pose may lie on an edge of the image; its box has no area then, and OKS would be
decided by rounding, which is another in each size of batch."""


@dataclass(frozen=True, slots=True)
class PoseAgreement:
    """Of two models on one image."""

    similarities: tuple[float, ...]
    """OKS of the poses of people whom both found, scaled by the first one's pose."""
    only_first: int
    """People whom only the first model found."""
    only_second: int


def compare_poses(first: Poses, second: Poses, schema: KeypointSchema) -> PoseAgreement:
    """Pair the poses of two models so that their OKS is largest in all, each at most once.

    Args:
        first: Of the model that areas are taken from, in the same pixels as ``second``.
        second: Of the other one.
    """
    if not len(first) or not len(second):
        return PoseAgreement((), len(first), len(second))
    areas = (first.boxes[:, 2:] - first.boxes[:, :2]).prod(1) * AREA_OF_BOX
    areas = areas.clamp(min=_LEAST_AREA)
    labelled = torch.ones(len(first), len(schema), dtype=torch.bool)
    similarity = oks(
        second.keypoints[:, None], first.keypoints, labelled, areas, torch.tensor(schema.sigmas)
    ).numpy()  # (second, first)
    similarity = np.where(similarity >= SAME_PERSON, similarity, 0.0)  # others must not draw poses from their person
    found = similarity[linear_sum_assignment(-similarity)]
    pairs = tuple(np.sort(found[found > 0]).tolist())
    return PoseAgreement(pairs, len(first) - len(pairs), len(second) - len(pairs))
