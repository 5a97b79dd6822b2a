"""Object keypoint similarity (OKS) in torch: COCO's measure, for use inside training. Always float32.

For a keypoint at distance d from an annotated one of a person of area A, e = d^2 / (2 A (2 sigma)^2) and its
similarity is exp(-e); OKS is the mean over the labelled keypoints. Shapes broadcast: leading dimensions may be
(N,), or (N, 1) against (N, M), and so on.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from posefleet.data.structures import People, Poses

_MIN_AREA = 1e-9


def oks(poses: Tensor, keypoints: Tensor, labelled: Tensor, areas: Tensor, sigmas: Tensor) -> Tensor:
    """OKS of poses and annotated people.

    Args:
        poses: (..., K, 2) predicted xy, pixels.
        keypoints: (..., K, 2) annotated xy, pixels.
        labelled: (..., K) bool.
        areas: (...) areas of the people, square pixels.
        sigmas: (K,) deviations of the schema.

    Returns:
        (...) in [0, 1]; 0 for a person without a labelled keypoint. Gradients flow to ``poses``.
    """
    return _mean(torch.exp(-_exponents(poses, keypoints, areas, sigmas)), labelled)


def oks_and_rank(
    poses: Tensor, keypoints: Tensor, labelled: Tensor, areas: Tensor, sigmas: Tensor
) -> tuple[Tensor, Tensor]:
    """OKS, and a number that ranks poses like OKS, also where OKS is 0 in float32. Without gradients.

    exp(-e) underflows for far or small people, and then all poses of a person would be equally good. There the rank is
    minus the mean exponent, which is below every OKS.

    Returns:
        OKS (...) in [0, 1] and rank (...) in (-inf, 1].
    """
    with torch.no_grad():
        exponents = _exponents(poses, keypoints, areas, sigmas)
        similarity = _mean(torch.exp(-exponents), labelled)
        return similarity, torch.where(similarity > 0, similarity, -_mean(exponents, labelled))


def score_by_ground_truth(poses: Poses, people: People, sigmas: Tensor) -> Poses:
    """The same poses, scored and ordered by their best OKS with the annotated people of the image.

    These scores use the annotations, so they show the AP of a perfect ranking. Keypoint scores stay.

    Args:
        poses: N poses of one image.
        people: People of that image, in the same pixels. If none has keypoints, all scores are 0.
        sigmas: (K,) deviations of the schema.
    """
    people = people[people.labelled]
    similarity = oks(poses.keypoints[:, None], people.keypoints, people.visibility > 0, people.areas, sigmas)  # (N, M)
    scores = F.pad(similarity, (0, 1)).amax(1)  # a column of zeros, because there may be no people
    order = scores.argsort(descending=True, stable=True)
    return Poses(poses.keypoints[order], poses.keypoint_scores[order], scores[order])


def _exponents(poses: Tensor, keypoints: Tensor, areas: Tensor, sigmas: Tensor) -> Tensor:
    distance2 = (poses.float() - keypoints.float()).square().sum(-1)  # (..., K) px^2
    variance = (2 * sigmas.float()).square()  # (K,)
    return distance2 / (2 * variance * areas.float().clamp(min=_MIN_AREA)[..., None])


def _mean(values: Tensor, labelled: Tensor) -> Tensor:
    """Mean over the labelled keypoints. (A product with the mask would be slower, and inf * 0 is NaN.)"""
    return values.where(labelled, 0.0).sum(-1) / labelled.sum(-1).clamp(min=1)
