"""How much the poses of two predictors differ that should find the same ones."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Self

import numpy as np
import torch

from posefleet.data.structures import Poses


class Agreement(NamedTuple):
    """How much the poses of two predictors differ on the same images."""

    images: int
    poses: int
    """Number of pairs: a pose of the first predictor and the nearest pose of the second that is not paired yet."""
    unpaired: int
    """Number of poses of either predictor without a partner."""
    pixels: float
    """Largest difference of a coordinate within a pair, pixels of the original image."""
    scores: float
    """Largest difference of a pose score or a keypoint score within a pair."""

    def __str__(self) -> str:
        alone = f", {self.unpaired} without a partner" if self.unpaired else ""
        return (
            f"{self.poses} poses in {self.images} images{alone}: "
            f"at most {self.pixels:.2g} px and {self.scores:.2g} in scores apart"
        )

    def within(self, pixels: float, scores: float) -> bool:
        """Whether every pose has a partner, and no pair differs by more than ``pixels`` and ``scores``."""
        return not self.unpaired and self.pixels <= pixels and self.scores <= scores

    @classmethod
    def of(cls, ours: Sequence[Poses], theirs: Sequence[Poses]) -> Self:
        """Compare the poses that two predictors found in the same images, image by image."""
        parts = [_compare_poses(a, b) for a, b in zip(ours, theirs, strict=True)]
        return cls(
            images=len(parts),
            poses=sum(part.poses for part in parts),
            unpaired=sum(part.unpaired for part in parts),
            pixels=max((part.pixels for part in parts), default=0.0),
            scores=max((part.scores for part in parts), default=0.0),
        )


def _compare_poses(ours: Poses, theirs: Poses) -> Agreement:
    """Compare the poses of one image: pair each pose of ours, best first, with the nearest unpaired pose of theirs.

    Pairs do not follow the ranking, because poses with equal scores may be in any order.
    """
    differences = (ours.keypoints[:, None] - theirs.keypoints[None]).abs().amax((-2, -1))  # (N, M)
    distances = differences.nan_to_num(torch.inf).numpy()
    pixels, scores, pairs = 0.0, 0.0, min(distances.shape)
    for row in range(pairs):
        column = int(distances[row].argmin())
        pixels = max(pixels, float(distances[row, column]))
        scores = max([scores, *_score_gaps(ours[row : row + 1], theirs[column : column + 1])])
        distances[:, column] = np.inf
    return Agreement(1, pairs, len(ours) + len(theirs) - 2 * pairs, pixels, scores)


def _score_gaps(one: Poses, other: Poses) -> Iterable[float]:
    yield float((one.scores - other.scores).abs().nan_to_num(torch.inf).max())
    yield float((one.keypoint_scores - other.keypoint_scores).abs().nan_to_num(torch.inf).max())
