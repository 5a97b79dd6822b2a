"""How sure an AP, or the difference of two, is: a bootstrap over images.

AP is computed again for many draws of the images with replacement; an image that is drawn twice counts twice. Two
predictors see the same draws, so what makes an image hard for both does not blur their difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

RECALL_POINTS = np.linspace(0, 1, 101)
CONFIDENCE = 0.95
_CELLS = 4_000_000
"""Draws x poses that are worked on at once: bounds memory."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What COCO's matching says of D poses of I images at T thresholds of OKS, best pose first."""

    image_ids: np.ndarray
    """(I,)."""
    people: np.ndarray
    """(I,) people of an image that count."""
    image: np.ndarray
    """(D,) row of the image of each pose."""
    true: np.ndarray
    """(T, D) bool, matched to a person that counts."""
    false: np.ndarray
    """(T, D) bool, matched to nobody; a pose that is neither matched an ignored person and does not count."""

    @classmethod
    def of_coco(cls, evaluation: Any, max_detections: int) -> "Matches":
        """From a COCOeval that has evaluated, all areas together."""
        image_ids = np.array(evaluation.params.imgIds)
        people = np.zeros(len(image_ids), np.int64)
        thresholds = len(evaluation.params.iouThrs)
        image, scores = [np.zeros(0, np.int64)], [np.zeros(0)]
        true, false = [np.zeros((thresholds, 0), bool)], [np.zeros((thresholds, 0), bool)]
        for row, found in enumerate(evaluation.evalImgs[: len(image_ids)]):  # the first area range is "all"
            if found is None:
                continue
            people[row] = np.count_nonzero(np.asarray(found["gtIgnore"]) == 0)
            matched = found["dtMatches"][:, :max_detections] > 0
            counts = ~found["dtIgnore"][:, :max_detections].astype(bool)
            image.append(np.full(matched.shape[1], row))
            scores.append(np.array(found["dtScores"][:max_detections]))
            true.append(matched & counts)
            false.append(~matched & counts)
        order = np.argsort(-np.concatenate(scores), kind="stable")
        columns = (np.concatenate(parts, axis=1)[:, order] for parts in (true, false))
        return cls(image_ids, people, np.concatenate(image)[order], *columns)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with the range that holds it in 95 of 100 repetitions with other images."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the range leaves out 0: a difference that is not noise."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f}..{self.high:+.3f})"


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP (S,) of S draws; ``weights`` (S, I) says how often each image was drawn.

    As COCOeval accumulates it: precision at 101 points of recall, each the highest at that recall or a higher one, mean
    over thresholds; NaN where a draw has nobody to find.
    """
    total = weights @ matches.people  # (S,)
    often = weights[:, matches.image]  # (S, D)
    sums = np.zeros(len(weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        for true, false in zip(matches.true, matches.false, strict=True):
            hits, misses = np.cumsum(often * true, axis=1), np.cumsum(often * false, axis=1)
            recall = hits / total[:, None]
            precision = hits / np.maximum(hits + misses, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for draw in range(len(weights)):
                at = np.searchsorted(recall[draw], RECALL_POINTS, side="left")
                sums[draw] += precision[draw, at[at < recall.shape[1]]].sum()
    return np.where(total > 0, sums / (len(RECALL_POINTS) * len(matches.true)), np.nan)


def difference(one: Matches, other: Matches, *, draws: int = 1000, seed: int = 0) -> Interval:
    """AP of ``one`` minus that of ``other`` on the same images.

    Raises:
        ValueError: They are of different images, or of different people.
    """
    if not np.array_equal(one.image_ids, other.image_ids) or not np.array_equal(one.people, other.people):
        raise ValueError("the two were not scored on the same images and people, so their difference says nothing")
    images = len(one.image_ids)
    everything = np.ones((1, images), np.int64)
    value = float((average_precision(one, everything) - average_precision(other, everything))[0])
    found: list[np.ndarray] = []
    for weights in _draws(images, draws, seed, at_once=max(1, _CELLS // max(1, len(one.image), len(other.image)))):
        found.append(average_precision(one, weights) - average_precision(other, weights))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(np.concatenate(found), [tail, 1 - tail])
    return Interval(value, float(low), float(high))


def _draws(images: int, draws: int, seed: int, *, at_once: int) -> Iterator[np.ndarray]:
    """(S, I) how often each image is drawn, in parts of at most ``at_once`` draws."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, at_once):
        yield rng.multinomial(images, np.full(images, 1 / images), size=min(at_once, draws - start))
