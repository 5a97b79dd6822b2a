"""Match flags, which mark each pose as true or false positive, and the precision and recall accumulated from them.

Matching works image by image; precision and recall need all poses in order of score. :class:`MatchFlags` carries the
result from one to the other in two bits for each pose, threshold and criterion, so that the poses of many images,
matched in many processes, fit into the memory of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""(T,) COCO's thresholds of OKS."""
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""(R,) recalls at which COCO reads precision."""
AREAS = ("all", "medium", "large")
"""COCO's area ranges of people for keypoints."""


@dataclass(frozen=True, slots=True)
class MatchFlags:
    """Whether each of D poses is a true or a false positive, at T thresholds under Q criteria.

    A criterion is an area range or a single keypoint. A pose is true (matched to somebody who counts), false (matched
    to nobody), or neither (matched to somebody ignored: it does not count).
    """

    true: np.ndarray
    """(Q, T, ceil(D / 8)) uint8, bits along D."""
    false: np.ndarray
    """(Q, T, ceil(D / 8)) uint8, bits along D."""
    positives: np.ndarray
    """(Q,) int64, how many people or keypoints there are to be found."""
    poses: int
    """D."""

    @classmethod
    def pack(cls, true: np.ndarray, false: np.ndarray, positives: np.ndarray) -> Self:
        """Pack (Q, T, D) bool flags; ``positives`` is (Q,) int64."""
        return cls(np.packbits(true, axis=2), np.packbits(false, axis=2), positives, true.shape[2])

    def at(self, criterion: int, threshold: int) -> tuple[np.ndarray, np.ndarray]:
        """The true and the false positives of one criterion at one threshold, both (D,) bool."""
        true, false = self.true[criterion, threshold], self.false[criterion, threshold]
        return np.unpackbits(true, count=self.poses).astype(bool), np.unpackbits(false, count=self.poses).astype(bool)

    @classmethod
    def merge(cls, parts: Sequence[Self], order: np.ndarray) -> Self:
        """The flags of the poses of all parts: pose i is pose ``order[i]`` of the parts laid end to end."""
        criteria, thresholds, _ = parts[0].true.shape
        bits = [np.empty((criteria, thresholds, -(-len(order) // 8)), np.uint8) for _ in range(2)]
        for criterion in range(criteria):
            for threshold in range(thresholds):  # one at a time: a million images have gigabytes of them
                for kind, planes in enumerate(zip(*(part.at(criterion, threshold) for part in parts), strict=True)):
                    bits[kind][criterion, threshold] = np.packbits(np.concatenate(planes)[order])
        return cls(bits[0], bits[1], np.sum([part.positives for part in parts], axis=0), len(order))


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision and recall; -1 where there is nobody to find, as in COCOeval."""

    precision: np.ndarray
    """(T, R, Q) precision at ``THRESHOLDS`` and ``RECALL_POINTS``."""
    recall: np.ndarray
    """(T, Q) recall of all poses."""

    @classmethod
    def from_flags(cls, flags: MatchFlags, *, among: np.ndarray | None = None) -> Self:
        """Accumulate match flags to the same numbers as COCOeval.

        Args:
            flags: Of poses that are sorted by score, best first.
            among: (D,) bool, the poses to use; ``flags.positives`` must count the people of the same images.
        """
        criteria, thresholds, _ = flags.true.shape
        precision = np.full((thresholds, len(RECALL_POINTS), criteria), -1.0)
        recall = np.full((thresholds, criteria), -1.0)
        for criterion in np.flatnonzero(flags.positives).tolist():
            for threshold in range(thresholds):
                true, false = flags.at(criterion, threshold)
                if among is not None:
                    true, false = true[among], false[among]
                hits = np.flatnonzero(true)  # only here recall grows; precision falls everywhere else
                found, wrong = np.arange(1.0, len(hits) + 1), np.cumsum(false, dtype=np.int32)[hits]
                share = found / flags.positives[criterion]
                purity = found / (found + wrong + np.spacing(1))
                highest = np.append(np.maximum.accumulate(purity[::-1])[::-1], 0.0)  # at that recall or a higher one
                precision[threshold, :, criterion] = highest[np.searchsorted(share, RECALL_POINTS, side="left")]
                recall[threshold, criterion] = share[-1] if len(share) else 0.0
        return cls(precision, recall)

    def average_precision(self, criterion: int = 0) -> float:
        """AP of a criterion: mean over thresholds and recalls; NaN with nobody to find."""
        return mean_of_known(self.precision[..., criterion])


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values that are not -1 (nobody to find), as COCOeval summarizes; NaN if all are -1."""
    known = values[values > -1]
    return float(known.mean()) if known.size else np.nan
