"""Confidence intervals of AP differences: a bootstrap over images.

AP is computed again for many draws of the images with replacement; an image that is drawn twice counts twice. Two
predictors get the same draws, so images that are hard for both do not widen the interval of their difference.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from posefleet.data.evaluation.precision_recall import RECALL_POINTS, THRESHOLDS, MatchFlags

CONFIDENCE = 0.95
"""Share of the draws that lies inside an interval."""
_CELLS = 4_000_000
"""Draws x poses that are computed at once; this bounds memory."""


@dataclass(frozen=True, slots=True)
class Matches:
    """What COCO's matching found for D poses of I images at T thresholds of OKS, best pose first."""

    image_ids: np.ndarray
    """(I,) int64, ascending."""
    people: np.ndarray
    """(I,) int64, people of each image that count."""
    image: np.ndarray
    """(D,) int64, each pose's image as a row of ``image_ids``."""
    flags: MatchFlags
    """Match flags of the poses; only the first criterion, all areas, is used."""

    def comparable(self, other: "Matches") -> bool:
        """Whether both come from the same images with the same people."""
        return np.array_equal(self.image_ids, other.image_ids) and np.array_equal(self.people, other.people)


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with the range that holds it in 95 of 100 repetitions with other images."""

    value: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the range excludes 0: then the difference is not noise."""
        return self.low > 0 or self.high < 0

    def __neg__(self) -> "Interval":
        return Interval(0.0 - self.value, 0.0 - self.high, 0.0 - self.low)  # no -0

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f}..{self.high:+.3f})"


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """AP (S,) of S draws; ``weights`` (S, I) is how often each image was drawn.

    AP is accumulated as in COCOeval: precision at 101 points of recall, each the highest precision at that recall or a
    higher one, mean over thresholds. It is NaN where a draw has nobody to find.
    """
    total = weights @ matches.people  # (S,)
    often = weights[:, matches.image]  # (S, D)
    sums = np.zeros(len(weights))
    with np.errstate(invalid="ignore", divide="ignore"):
        for threshold in range(len(THRESHOLDS)):
            true, false = matches.flags.at(0, threshold)
            hits, misses = np.cumsum(often * true, axis=1), np.cumsum(often * false, axis=1)
            recall = hits / total[:, None]
            precision = hits / np.maximum(hits + misses, 1)
            precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for draw in range(len(weights)):
                at = np.searchsorted(recall[draw], RECALL_POINTS, side="left")
                sums[draw] += precision[draw, at[at < recall.shape[1]]].sum()
    return np.where(total > 0, sums / (len(RECALL_POINTS) * len(THRESHOLDS)), np.nan)


def difference(one: Matches, other: Matches, *, draws: int = 1000, seed: int = 0) -> Interval:
    """AP of ``one`` minus that of ``other`` on the same images.

    Args:
        one: The matches of one predictor.
        other: The matches of the other.
        draws: Draws of the images; more make the ends of the interval more stable, and take longer.
        seed: Of the draws.

    Raises:
        ValueError: They come from different images, or from different people.
    """
    if not one.comparable(other):
        raise ValueError(
            "the two were not scored on the same images and people, so their difference means nothing; "
            "evaluate both on the same images"
        )
    return differences({"one": one, "other": other}, draws=draws, seed=seed)["one", "other"]


def differences(
    predictors: Mapping[str, Matches], *, draws: int = 1000, seed: int = 0
) -> dict[tuple[str, str], Interval]:
    """For each pair of predictors, in both orders, the AP of the first minus that of the second.

    Pairs that were not scored on the same images and people are left out. Arguments as for :func:`difference`.
    """
    found: dict[tuple[str, str], Interval] = {}
    waiting = dict(predictors)
    while waiting:
        first = next(iter(waiting.values()))
        group = {name: matches for name, matches in waiting.items() if matches.comparable(first)}
        waiting = {name: matches for name, matches in waiting.items() if name not in group}
        if len(group) > 1:
            found |= _differences(group, draws, seed)
    return found


def _differences(group: Mapping[str, Matches], draws: int, seed: int) -> dict[tuple[str, str], Interval]:
    """The differences of predictors that share images and people; each AP is computed once for every draw."""
    images = len(next(iter(group.values())).image_ids)
    everything = np.ones((1, images), np.int64)
    whole = {name: average_precision(matches, everything)[0] for name, matches in group.items()}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in group}
    longest = max(1, *(len(matches.image) for matches in group.values()))
    for weights in _draws(images, draws, seed, at_once=max(1, _CELLS // longest)):
        for name, matches in group.items():
            parts[name].append(average_precision(matches, weights))
    drawn = {name: np.concatenate(values) for name, values in parts.items()}
    tail = (1 - CONFIDENCE) / 2
    found = {}
    for one, other in itertools.combinations(group, 2):
        low, high = np.nanquantile(drawn[one] - drawn[other], [tail, 1 - tail])
        found[one, other] = Interval(float(whole[one] - whole[other]), float(low), float(high))
        found[other, one] = -found[one, other]
    return found


def _draws(images: int, draws: int, seed: int, *, at_once: int) -> Iterator[np.ndarray]:
    """(S, I) int64, how often each image is drawn, in parts of at most ``at_once`` draws."""
    rng = np.random.default_rng(seed)
    for start in range(0, draws, at_once):
        yield rng.multinomial(images, np.full(images, 1 / images), size=min(at_once, draws - start))
