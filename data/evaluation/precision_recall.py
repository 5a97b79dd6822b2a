"""Which poses are right: what matching says of every pose, and the precision and recall that come of it.

Matching works image by image, precision and recall on all poses in order of their score. Between the two stand
:class:`MatchFlags`, two bits for each pose and question, so that the poses of many images, matched in many processes,
fit into one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""(T,) of OKS, COCO's."""
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
"""(R,) at which COCO reads precision."""
AREAS = ("all", "medium", "large")
"""Of people, as COCO evaluates keypoints."""


@dataclass(frozen=True, slots=True)
class MatchFlags:
    """What D poses are worth at T thresholds under Q questions (areas, keypoints).

    A pose is true (matched to somebody who counts), false (matched to nobody), or neither: it does not count.
    """

    true: np.ndarray
    """(Q, T, ceil(D / 8)) uint8, bits along D."""
    false: np.ndarray
    """The same."""
    positives: np.ndarray
    """(Q,) int64, how many there are to be found."""
    poses: int
    """D."""

    @classmethod
    def pack(cls, true: np.ndarray, false: np.ndarray, positives: np.ndarray) -> Self:
        """From (Q, T, D) bool and (Q,)."""
        return cls(np.packbits(true, axis=2), np.packbits(false, axis=2), positives, true.shape[2])

    def at(self, question: int, threshold: int) -> tuple[np.ndarray, np.ndarray]:
        """(D,) bool each: who is true, who is false."""
        true, false = self.true[question, threshold], self.false[question, threshold]
        return np.unpackbits(true, count=self.poses).astype(bool), np.unpackbits(false, count=self.poses).astype(bool)

    @classmethod
    def join(cls, parts: Sequence[Self], order: np.ndarray) -> Self:
        """Of the poses of all parts, in another order: ``order`` has the places in the parts one after the other."""
        questions, thresholds, _ = parts[0].true.shape
        bits = [np.empty((questions, thresholds, -(-len(order) // 8)), np.uint8) for _ in range(2)]
        for question in range(questions):
            for threshold in range(thresholds):  # one at a time: a million images have gigabytes of them
                for kind, planes in enumerate(zip(*(part.at(question, threshold) for part in parts), strict=True)):
                    bits[kind][question, threshold] = np.packbits(np.concatenate(planes)[order])
        return cls(bits[0], bits[1], np.sum([part.positives for part in parts], axis=0), len(order))


@dataclass(frozen=True, slots=True)
class Curves:
    """Precision and recall; -1 where there is nobody to find, as COCOeval has it."""

    precision: np.ndarray
    """(T, R, Q) at ``THRESHOLDS`` and ``RECALL_POINTS``."""
    recall: np.ndarray
    """(T, Q) of all poses."""

    @classmethod
    def of(cls, verdicts: MatchFlags, *, among: np.ndarray | None = None) -> Self:
        """From verdicts on poses that are sorted, the best first, as COCOeval accumulates: with its very numbers.

        Args:
            among: (D,) bool, the poses to look at; the positives of ``verdicts`` must be theirs.
        """
        questions, thresholds, _ = verdicts.true.shape
        precision = np.full((thresholds, len(RECALL_POINTS), questions), -1.0)
        recall = np.full((thresholds, questions), -1.0)
        for question in np.flatnonzero(verdicts.positives).tolist():
            for threshold in range(thresholds):
                true, false = verdicts.at(question, threshold)
                if among is not None:
                    true, false = true[among], false[among]
                hits = np.flatnonzero(true)  # recall grows at these only, and precision falls at all others
                found, wrong = np.arange(1.0, len(hits) + 1), np.cumsum(false, dtype=np.int32)[hits]
                share = found / verdicts.positives[question]
                purity = found / (found + wrong + np.spacing(1))
                highest = np.append(np.maximum.accumulate(purity[::-1])[::-1], 0.0)  # at that recall or a higher one
                precision[threshold, :, question] = highest[np.searchsorted(share, RECALL_POINTS, side="left")]
                recall[threshold, question] = share[-1] if len(share) else 0.0
        return cls(precision, recall)

    def average_precision(self, question: int = 0) -> float:
        """Mean over thresholds and recalls; NaN with nobody to find."""
        return mean_of_known(self.precision[..., question])


def mean_of_known(values: np.ndarray) -> float:
    """As COCOeval summarizes: without the -1 of those with nobody to find; NaN if there are no others."""
    known = values[values > -1]
    return float(known.mean()) if known.size else np.nan
