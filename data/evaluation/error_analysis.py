"""Analyses errors: AP of every single keypoint, and the kind of error of each predicted keypoint, pose and person.

The AP of a keypoint is COCO's protocol on the data set reduced to that keypoint: similarity, ignored people and
matching are what pycocotools would compute if no other keypoint were annotated or predicted. The error kinds follow
Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation" (ICCV 2017), section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from posefleet.data.evaluation.ground_truth import GroundTruth, PoseTable
from posefleet.data.evaluation.precision_recall import THRESHOLDS, MatchFlags
from posefleet.data.schemas.schema import KeypointSchema

ERROR_KINDS = ("good", "jitter", "inversion", "swap", "miss")
"""Kinds of a labelled keypoint of a matched person; each is exactly one of these.

good: similarity at least ``GOOD``. jitter: at least ``NEAR``. inversion: else, at least ``NEAR`` to its left/right
partner of the same person. swap: else, to the same keypoint or its partner of another person; if both inversion and
swap apply, the more similar wins. miss: near none of these.
"""

GOOD = 0.85
"""Similarity from which a keypoint is good."""
NEAR = 0.5
"""Similarity from which a keypoint is near another."""
MATCH = 0.1
"""Minimum OKS of a match between pose and person, for the error kinds."""

IMAGES_AT_A_TIME = 2000
"""Images that are analysed together; this bounds memory to a few hundred MB for any data set."""

FALSE, TRUE, IGNORED = 0, 1, 2
"""Match result of a pose: matched to nobody, to somebody who counts, to somebody ignored."""
MATCHED, DISREGARDED, BACKGROUND, DUPLICATE = range(4)
"""Kind of a pose by all its keypoints, see :class:`ErrorSplit`; DISREGARDED: matched to somebody ignored."""


@dataclass(frozen=True, slots=True)
class ErrorSplit:
    """How many keypoints, poses and people of a data set there are of each kind of error."""

    keypoints: np.ndarray
    """(K, 5) int64, labelled keypoints of matched people by ``ERROR_KINDS``."""
    people: int
    """Keypoint people: no crowd, at least one labelled keypoint."""
    missed_people: int
    """Keypoint people without a matched pose."""
    poses: int
    """Poses that count: the best of each image, without those matched to ignored people."""
    background_poses: int
    """Poses with an OKS under ``MATCH`` to everybody."""
    high_background_poses: int
    """Background poses with at least the median score of the matched poses; they lower precision at every recall."""
    duplicate_poses: int
    """Poses that fit a person whom a pose with a higher score took: what non-maximum suppression did not remove."""

    def shares(self) -> dict[str, float]:
        """Each error kind as a share of the labelled keypoints of matched people; NaN without any."""
        total = self.keypoints.sum()
        counts = self.keypoints.sum(0).tolist()
        return {kind: count / total if total else np.nan for kind, count in zip(ERROR_KINDS, counts, strict=True)}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What :func:`analyse_errors` finds; the results of several parts of a data set add up."""

    keypoints: MatchFlags
    """Match flags of each keypoint alone: K criteria."""
    person_oks: np.ndarray
    """(P,) OKS of each person with the pose matched to them; 0 for a missed one, NaN for one who does not count."""
    pose_kinds: np.ndarray
    """(D,) int8: MATCHED, DISREGARDED, BACKGROUND or DUPLICATE."""
    errors: np.ndarray
    """(K, 5) int64, labelled keypoints of matched people by ``ERROR_KINDS``."""
    similarity: np.ndarray
    """(K,) sum of the similarity over the same keypoints."""


def analyse_errors(ground_truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> Diagnosis:
    """Match every keypoint alone and split the errors by kind.

    Args:
        ground_truth: The people of some images.
        poses: The poses that count there.
        schema: Names, sigmas and left/right pairs of the K keypoints.
    """
    labelled = ground_truth.visibility > 0
    counted = ~ground_truth.ignored[:, None] & labelled  # (P, K)
    results = np.zeros((len(schema), len(THRESHOLDS), len(poses.image)), np.int8)
    pose_kinds = np.full(len(poses.image), BACKGROUND, np.int8)
    kinds = np.zeros((len(schema), len(ERROR_KINDS)), np.int64)
    similarity_sum = np.zeros(len(schema))
    person_oks = np.where(ground_truth.ignored, np.nan, 0.0)

    for group in _groups(ground_truth, poses):
        similarity = _similarity(group, ground_truth, poses, schema)  # (I, D, G, K)
        people = group.people
        _, result = _match(similarity, counted[people], ground_truth.crowd[people], THRESHOLDS)  # (I, D, K, T)
        results[:, :, group.rows] = result[group.present].transpose(1, 2, 0)

        oks = _oks(similarity, labelled[people])  # (I, D, G)
        real = ~ground_truth.ignored[people]
        person, result = _match(oks[..., None], real[..., None], ground_truth.crowd[people], np.array([MATCH]))
        person, result = person[..., 0, 0], result[..., 0, 0]  # (I, D)
        fit = np.where(real[:, None], oks, 0.0).max(2)  # with the most similar keypoint person
        unmatched = np.where(fit < MATCH, BACKGROUND, DUPLICATE)
        kind = np.select([result == TRUE, result == IGNORED], [MATCHED, DISREGARDED], unmatched)
        pose_kinds[group.rows] = kind[group.present]

        image, pose = np.nonzero(group.present & (result == TRUE))
        person_oks[people[image, person[image, pose]]] = oks[image, pose, person[image, pose]]
        match = _Match(group.poses[image, pose], people[image], person[image, pose], similarity[image, pose])
        own, kind = _error_kinds(match, ground_truth, poses, schema)
        for index in range(len(ERROR_KINDS)):
            kinds[:, index] += (kind == index).sum(0)
        similarity_sum += own.sum(0)

    flags = MatchFlags.pack(results == TRUE, results == FALSE, counted.sum(0))
    return Diagnosis(flags, person_oks, pose_kinds, kinds, similarity_sum)


def split_errors(keypoints: np.ndarray, people: int, pose_kinds: np.ndarray, scores: np.ndarray) -> ErrorSplit:
    """The error split of a whole data set.

    Args:
        keypoints: (K, 5) int64, ``errors`` of :class:`Diagnosis`.
        people: Keypoint people.
        pose_kinds: (D,) int8, kind of each pose.
        scores: (D,) float64, score of each pose.
    """
    matched, background = pose_kinds == MATCHED, pose_kinds == BACKGROUND
    bar = np.median(scores[matched]) if matched.any() else -np.inf
    return ErrorSplit(
        keypoints=keypoints,
        people=people,
        missed_people=people - int(matched.sum()),
        poses=int((pose_kinds != DISREGARDED).sum()),
        background_poses=int(background.sum()),
        high_background_poses=int((background & (scores >= bar)).sum()),
        duplicate_poses=int((pose_kinds == DUPLICATE).sum()),
    )


# ------------------------------------------------------------------------------------------------------- groups


@dataclass(frozen=True, slots=True)
class _Group:
    """I images with the same number G of people, and D poses (padded); images with most poses come first."""

    poses: np.ndarray
    """(I, D) rows of the pose table, best first; any row where not ``present``."""
    present: np.ndarray
    """(I, D) bool."""
    people: np.ndarray
    """(I, G) rows of the ground truth."""

    @property
    def rows(self) -> np.ndarray:
        """Rows of the poses that are present, in the order of ``present``."""
        rows: np.ndarray = self.poses[self.present]
        return rows


def _groups(ground_truth: GroundTruth, poses: PoseTable) -> Iterator[_Group]:
    """Groups of all images with people and poses; images with equal numbers of people need no padding."""
    images = np.arange(len(ground_truth.image_ids))
    pose_start, pose_end = np.searchsorted(poses.image, images), np.searchsorted(poses.image, images, "right")
    person_start, person_end = (
        np.searchsorted(ground_truth.image, images),
        np.searchsorted(ground_truth.image, images, "right"),
    )
    num_poses, num_people = pose_end - pose_start, person_end - person_start
    busy = num_poses > 0
    for size in np.unique(num_people[busy & (num_people > 0)]):
        chosen = images[busy & (num_people == size)]
        chosen = chosen[np.argsort(-num_poses[chosen], kind="stable")]
        for start in range(0, len(chosen), IMAGES_AT_A_TIME):
            part = chosen[start : start + IMAGES_AT_A_TIME]
            columns = np.arange(num_poses[part[0]])
            present = columns < num_poses[part][:, None]
            rows = pose_start[part][:, None] + np.where(present, columns, 0)
            yield _Group(rows, present, person_start[part][:, None] + np.arange(size))


# --------------------------------------------------------------------------------------------------- similarity


def _similarity(group: _Group, ground_truth: GroundTruth, poses: PoseTable, schema: KeypointSchema) -> np.ndarray:
    """(I, D, G, K) similarity of every pose with every person, keypoint by keypoint; -1 for padding.

    For a keypoint that is not labelled this is pycocotools' rule for ignored people: 1 inside the person's box
    enlarged three times, less outside.
    """
    predicted = poses.keypoints[group.poses][:, :, None]  # (I, D, 1, K, 2)
    people = group.people
    offset = predicted - ground_truth.keypoints[people][:, None]
    corner, size = ground_truth.corners_and_sizes[people][:, None, :, None, :2], ground_truth.corners_and_sizes[people]
    size = size[:, None, :, None, 2:]
    outside = np.maximum(corner - size - predicted, 0) + np.maximum(predicted - (corner + 2 * size), 0)
    labelled = (ground_truth.visibility[people] > 0)[:, None, :, :, None]
    offset = np.where(labelled, offset, outside)
    similarity = _falloff(offset, ground_truth.areas[people][:, None, :, None], schema)
    similarity[~group.present] = -1.0
    return similarity


def _falloff(offset: np.ndarray, area: np.ndarray, schema: KeypointSchema) -> np.ndarray:
    """exp(-d^2 / (2 area k^2)) with k = 2 sigma and d the length of (..., K, 2) offsets in pixels."""
    variance = (np.array(schema.sigmas) * 2) ** 2
    similarity: np.ndarray = np.exp(-(offset**2).sum(-1) / variance / (area + np.spacing(1)) / 2)
    return similarity


def _oks(similarity: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """(I, D, G) OKS: mean of (I, D, G, K) over the (I, G, K) labelled keypoints, or over all where none is labelled."""
    weights = np.where(labelled.any(-1, keepdims=True), labelled, True).astype(np.float64)
    oks: np.ndarray = np.einsum("idgk,igk->idg", similarity, weights) / weights.sum(-1)[:, None]
    return oks


# ----------------------------------------------------------------------------------------------------- matching


def _match(
    similarity: np.ndarray, counted: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's greedy matching, for all images, keypoints and thresholds at once.

    In order of score, each pose takes the most similar free person who counts, else the most similar ignored one; of
    equally similar people the last. A crowd stays free.

    Args:
        similarity: (I, D, G, K), poses best first.
        counted: (I, G, K) bool, False for ignored people.
        crowd: (I, G) bool.
        thresholds: (T,) minimum similarity of a match.

    Returns:
        (I, D, K, T) int32, the matched person as an index into G where there is a match, and (I, D, K, T) int8, TRUE,
        IGNORED or FALSE.
    """
    images, num_poses, num_people, num_keypoints = similarity.shape
    bars = np.minimum(thresholds, 1 - 1e-10)
    person = np.zeros((images, num_poses, num_keypoints, len(bars)), np.int32)
    result = np.full(person.shape, FALSE, np.int8)
    free = np.ones((images, num_people, num_keypoints, len(bars)), bool)
    counted, stays_free = counted[..., None], crowd[:, :, None, None]
    for pose in range(num_poses):
        score = similarity[:, pose, :, :, None]
        possible = free & (score >= bars)
        if not possible.any():
            continue
        first_choice = possible & counted
        true, found = first_choice.any(1), possible.any(1)
        eligible = np.where(true[:, None], first_choice, possible)
        best = num_people - 1 - np.where(eligible, score, -1.0)[:, ::-1].argmax(1)  # (I, K, T)
        person[:, pose] = best
        result[:, pose] = np.where(true, TRUE, np.where(found, IGNORED, FALSE))
        taken = (np.arange(num_people)[:, None, None] == best[:, None]) & found[:, None]
        free &= ~taken | stays_free
    return person, result


# ------------------------------------------------------------------------------------------------------- errors


@dataclass(frozen=True, slots=True)
class _Match:
    """M poses with the people matched to them and everybody else in their images."""

    poses: np.ndarray
    """(M,) rows of the pose table."""
    people: np.ndarray
    """(M, G) rows of the ground truth."""
    own: np.ndarray
    """(M,) the matched person as an index into G."""
    similarity: np.ndarray
    """(M, G, K) similarity of the pose with each person."""


def _error_kinds(
    match: _Match, ground_truth: GroundTruth, poses: PoseTable, schema: KeypointSchema
) -> tuple[np.ndarray, np.ndarray]:
    """Two (M, K): the similarity to the own keypoint (0 where not labelled) and its index in ``ERROR_KINDS`` (-1)."""
    flip = schema.flip_index
    labelled = ground_truth.visibility[match.people] > 0  # (M, G, K)
    same = np.where(labelled, match.similarity, 0.0)
    offset = poses.keypoints[match.poses][:, None] - ground_truth.keypoints[match.people][:, :, flip]
    partner = _falloff(offset, ground_truth.areas[match.people][..., None], schema)
    partner = np.where(labelled[:, :, flip] & (np.array(flip) != np.arange(len(flip))), partner, 0.0)

    rows = np.arange(len(match.own))
    own, own_partner = same[rows, match.own], partner[rows, match.own]
    other = np.maximum(same, partner)
    other[rows, match.own] = 0.0
    other = other.max(1, initial=0.0)
    good, jitter, inversion, swap, miss = range(len(ERROR_KINDS))
    inverted = (own_partner >= NEAR) & (own_partner >= other)
    cases = [~labelled[rows, match.own], own >= GOOD, own >= NEAR, inverted, other >= NEAR]
    kind = np.select(cases, [-1, good, jitter, inversion, swap], miss)
    return own, kind
