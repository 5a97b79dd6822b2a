"""Ranks the annotations of a data set by how improbable a model's predictions make them.

The predictions must come from models that did not train on the same images. A suspect is one annotation, or a person
without one, with the kind of fault that explains the predictions better than the label. Its doubt is in nats, about
the log of how much likelier the predictions are if there is that fault; all kinds are in one list.

The error of a keypoint is OKS's exponent, e = d^2 / (2 area (2 sigma)^2). How large errors usually are is taken from
the data itself: g = log(1 + e / median), with the median of the same keypoint and visibility, grows slowly, so a model
that is often wrong in a place raises little doubt there.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression, linear_sum_assignment

from posefleet.data.boxes import areas, intersections, overlaps
from posefleet.data.coco.annotations import is_keypoint_person
from posefleet.data.coco.records import Record
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses

Kind = Literal["swapped", "displaced", "missed", "merged", "flag"]

KINDS: dict[Kind, str] = {
    "swapped": "Left and right are swapped, of the whole person or of some keypoints.",
    "displaced": "A keypoint is elsewhere.",
    "missed": "A person is not annotated.",
    "merged": "The keypoints of two people are in one annotation.",
    "flag": "A keypoint is not labelled though it shows, or a single person is a crowd or has no keypoints.",
}
"""Kinds of faults, with what they mean."""

LEAST_SIMILAR = 0.15
"""OKS, of the labels or of the swapped ones, from which a pose may belong to an annotated person."""
SAME_PERSON = 0.3
"""OKS from which a pose shows an annotated person; it may be inexact."""
INSIDE = 0.5
"""Share of a pose's box inside the box of a crowd or of a person without keypoints, from which the pose shows them."""
LEAST_DOUBT = 0.0
"""Nats from which a suspect is listed."""
LEAST_KEYPOINTS = 3
"""Keypoints of the second person in an annotation of two."""
_ENOUGH = 20
"""Errors from which a keypoint and visibility have a median of their own."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """An annotation that is probably wrong, or a person who is not annotated."""

    kind: Kind
    doubt: float
    """Nats, at least ``LEAST_DOUBT``; higher is more probably wrong."""
    image_id: int
    annotation_id: int | None
    """None: nobody is annotated there."""
    keypoints: tuple[str, ...]
    """The keypoints that are wrong; empty: the whole annotation."""
    pose: int
    """The row, among the predicted poses of the image, of the pose that says so."""
    why: str
    """A sentence."""


def find_suspects(records: Iterable[Record], poses: Mapping[int, Poses], schema: KeypointSchema) -> list[Suspect]:
    """The suspects of a data set, highest doubt first. One annotation may be suspect of several kinds.

    Args:
        records: The images with their people as annotated; images without predictions are left out.
        poses: Predicted poses by image id, in pixels of the original images.
        schema: The keypoints of both.
    """
    images = [_Image.of(record, poses[record["image_id"]], schema) for record in records if record["image_id"] in poses]
    usual = _Usual.of(images, schema)
    found = [suspect for image in images for suspect in _explained(list(_of_image(image, usual, schema)))]
    kept = [suspect for suspect in found if suspect.doubt >= LEAST_DOUBT]
    return sorted(kept, key=lambda s: (-s.doubt, s.image_id, s.annotation_id or -1, s.kind, s.keypoints))


# ------------------------------------------------------------------------------------------------- one image


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """The people and poses of an image, and who is whom. M keypoint people, N poses, K keypoints, O other regions."""

    record: Record
    rows: list[int]  # of the keypoint people among the record's people
    points: np.ndarray  # (M, K, 2)
    visibility: np.ndarray  # (M, K)
    areas: np.ndarray  # (M,)
    found: np.ndarray  # (N, K, 2)
    scores: np.ndarray  # (N,)
    pose_of: np.ndarray  # (M,) the pose of each person, -1 for none
    oks: np.ndarray  # (M, N), the higher one of labels as they are and swapped
    others: list[int]  # rows of crowds and people without keypoints
    other_of: np.ndarray  # (N,) the entry of others that the pose shows, -1 for none

    @classmethod
    def of(cls, record: Record, poses: Poses, schema: KeypointSchema) -> "_Image":
        people = record["people"]
        labels = [np.array(p["keypoints"] or [0] * (3 * len(schema)), float).reshape(-1, 3) for p in people]
        known = [is_keypoint_person(person) for person in people]
        rows, others = np.flatnonzero(known).tolist(), np.flatnonzero(~np.array(known, bool)).tolist()
        own = np.array([labels[row] for row in rows]).reshape(len(rows), len(schema), 3)
        found = poses.keypoints.double().numpy()
        sizes = np.array([max(people[row]["area"], 1.0) for row in rows])
        image = cls(
            record, rows, own[..., :2], own[..., 2], sizes, found, poses.scores.double().numpy(),
            np.full(len(rows), -1), np.zeros((len(rows), len(found))), others, np.full(len(found), -1),
        )  # fmt: skip
        image = replace(image, oks=np.maximum(image.similarity(schema), image.similarity(schema, swapped=True)))
        boxes = np.array([people[row]["bbox"] for row in range(len(people))], float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        near = image.oks + 0.25 * overlaps(boxes[rows], image.boxes)
        for person, pose in zip(*linear_sum_assignment(-near), strict=True):
            if near[person, pose] >= LEAST_SIMILAR:
                image.pose_of[person] = pose
        if others and len(found):
            inside = intersections(boxes[others], image.boxes) / np.maximum(areas(image.boxes), 1e-9)
            image.other_of[:] = np.where(inside.max(0) >= INSIDE, inside.argmax(0), -1)
            image.other_of[image.pose_of[image.pose_of >= 0]] = -1
        return image

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) xyxy of the poses."""
        return np.concatenate([self.found.min(1), self.found.max(1)], 1) if len(self.found) else np.zeros((0, 4))

    def errors(self, schema: KeypointSchema, *, swapped: bool = False) -> np.ndarray:
        """(M, N, K) errors of the keypoints, NaN where not labelled; ``swapped``: of labels with sides exchanged."""
        found = self.found[:, list(schema.flip_index)] if swapped else self.found
        squared = ((self.points[:, None] - found) ** 2).sum(-1)
        e = squared / (2 * self.areas[:, None, None] * (2 * np.array(schema.sigmas)) ** 2)
        return np.where(self.visibility[:, None] > 0, e, np.nan)

    def similarity(self, schema: KeypointSchema, *, swapped: bool = False) -> np.ndarray:
        """(M, N) OKS."""
        if not len(self.points) or not len(self.found):
            return np.zeros((len(self.points), len(self.found)))
        similarity: np.ndarray = np.nanmean(np.exp(-self.errors(schema, swapped=swapped)), axis=2)
        return similarity


# ------------------------------------------------------------------------------------------------- what is usual


@dataclass(frozen=True, slots=True, eq=False)
class _Usual:
    """What labels and predictions of this data set are usually like."""

    errors: np.ndarray
    """(2, K) median error of a keypoint, where it is hidden and where it is visible."""
    score_steps: np.ndarray
    right: np.ndarray
    """Scores, ascending, and how probably a pose of at least that score, and less than the next, is a person."""
    labelled: np.ndarray
    """(K, K) log odds that a keypoint is labelled in people in whom so many others are (second index)."""
    annotated: float
    """Log odds that a person whom the model finds is annotated as a single one with keypoints."""

    @classmethod
    def of(cls, images: Sequence[_Image], schema: KeypointSchema) -> "_Usual":
        count = len(schema)
        errors: list[np.ndarray] = []  # (P, K) of pairs
        flags: list[np.ndarray] = []  # (P, K)
        scores: list[float] = []
        right: list[bool] = []
        labelled = np.ones((2, count, count))  # not labelled, labelled; keypoint; how many others are
        single, other = 1.0, 1.0
        for image in images:
            paired = np.flatnonzero(image.pose_of >= 0)
            e = image.errors(schema)
            errors += [e[person, image.pose_of[person]] for person in paired]
            flags += [image.visibility[person] for person in paired]
            shown = image.oks.max(0, initial=0.0) >= SAME_PERSON  # also a second pose of somebody shows a person
            scores += image.scores[image.other_of < 0].tolist()
            right += shown[image.other_of < 0].tolist()
            single += len(paired)
            other += len({int(entry) for entry in image.other_of if entry >= 0})
            for flag in image.visibility > 0:
                labelled[flag.astype(int), np.arange(count), flag.sum() - flag] += 1
        order = np.argsort(scores, kind="stable")
        steps = np.array(scores)[order]
        # A pose more that is right and one more that is not at both ends, so that nothing is certain.
        hits = np.concatenate([[0.0], np.array(right, float)[order], [1.0]]) if len(order) else np.zeros(0)
        fitted = isotonic_regression(hits).x[1:-1] if len(order) else np.zeros(0)
        return cls(
            _medians(np.array(errors).reshape(-1, count), np.array(flags).reshape(-1, count)),
            steps,
            fitted.clip(1 / (len(order) + 2), 1 - 1 / (len(order) + 2)),
            np.log(labelled[1] / labelled[0]),
            math.log(single / other),
        )

    def surprise(self, errors: np.ndarray, visibility: np.ndarray) -> np.ndarray:
        """g of errors (..., K) of keypoints with a visibility (..., K)."""
        keypoint = np.arange(errors.shape[-1])
        median = self.errors[(visibility > 1).astype(int), keypoint]
        g: np.ndarray = np.log1p(errors / median)
        return g

    def is_person(self, score: float) -> float:
        """How probably a pose of this score shows a person, 0..1."""
        if not len(self.score_steps):
            return 0.5
        return float(self.right[max(0, int(np.searchsorted(self.score_steps, score, side="right")) - 1)])


def _medians(errors: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """(2, K) medians of errors (P, K) where the flag is 1 and where it is 2; with few of them, of both, or of all."""
    count = errors.shape[1]
    everything = errors[np.isfinite(errors)]
    result = np.full((2, count), float(np.median(everything)) if len(everything) else 1.0)
    for k in range(count):
        both = errors[np.isfinite(errors[:, k]), k]
        for row, flag in enumerate((1, 2)):
            own = errors[flags[:, k] == flag, k]
            enough = own if len(own) >= _ENOUGH else both
            if len(enough) >= _ENOUGH:
                result[row, k] = float(np.median(enough))
    medians: np.ndarray = np.maximum(result, 1e-4)
    return medians


# ------------------------------------------------------------------------------------------------- suspects


def _of_image(image: _Image, usual: _Usual, schema: KeypointSchema) -> Iterator[Suspect]:
    free = [pose for pose in range(len(image.found)) if pose not in image.pose_of and image.other_of[pose] < 0]
    new = [pose for pose in free if not (len(image.oks) and image.oks[:, pose].max() >= SAME_PERSON)]
    visibility = image.visibility[:, None]
    as_they_are = usual.surprise(image.errors(schema), visibility)  # (M, N, K)
    exchanged = usual.surprise(image.errors(schema, swapped=True), visibility)
    for person, pose in enumerate(image.pose_of.tolist()):
        if pose >= 0:
            g, mirrored = as_they_are[person], exchanged[person, pose]
            yield from _of_person(image, person, pose, free, g, mirrored, usual, schema)
    for pose in new:
        doubt = _log_odds(usual.is_person(image.scores[pose]))
        yield _suspect(image, "missed", doubt, None, (), pose, f"a pose of score {image.scores[pose]:.2f} is nobody's")
    for entry in {int(entry) for entry in image.other_of if entry >= 0}:
        poses = np.flatnonzero(image.other_of == entry)
        pose, boxes = int(poses[image.scores[poses].argmax()]), image.boxes[poses]
        apart = overlaps(image.boxes[pose : pose + 1], boxes)[0] < SAME_PERSON
        if not any(usual.is_person(score) >= 0.5 for score in image.scores[poses][apart]):  # else it is a crowd
            person = image.record["people"][image.others[entry]]
            left, top, width, height = person["bbox"]
            box = np.array([[left, top, left + width, top + height]])
            overlap = float(overlaps(box, image.boxes[pose : pose + 1])[0, 0])
            what = "a crowd" if person["iscrowd"] else "without keypoints"
            doubt = _log_odds(usual.is_person(image.scores[pose])) + usual.annotated + 2 * math.log(max(overlap, 1e-6))
            why = f"is {what}, and one pose of score {image.scores[pose]:.2f} fills its box"
            yield _suspect(image, "flag", doubt, person["id"], (), pose, why)


def _of_person(
    image: _Image,
    person: int,
    pose: int,
    free: Sequence[int],
    g: np.ndarray,
    mirrored: np.ndarray,
    usual: _Usual,
    schema: KeypointSchema,
) -> Iterator[Suspect]:
    """What is improbable about a person whose pose was found.

    Args:
        person: Row among the image's keypoint people.
        pose: Row of the person's pose.
        free: Rows of the poses that are nobody's.
        g: (N, K) surprise of the person's labels beside each pose.
        mirrored: (K,) surprise of the labels with left and right exchanged, beside ``pose``.
    """
    names, visibility = schema.keypoints, image.visibility[person]
    annotation: int = image.record["people"][image.rows[person]]["id"]
    trust = usual.is_person(image.scores[pose])
    own, labelled = g[pose], visibility > 0

    sides = labelled & (np.array(schema.flip_index) != np.arange(len(names)))
    gain = np.where(sides, own - mirrored, 0.0)
    if sides.sum() >= 2:
        doubt = trust * gain.sum() / math.sqrt(sides.sum() / 2)
        why = f"the pose fits {sides.sum()} keypoints better with left and right exchanged"
        yield _suspect(image, "swapped", doubt, annotation, (), pose, why)
    for k, partner in enumerate(schema.flip_index):
        if k < partner and labelled[k] and labelled[partner]:
            pair = (names[k], names[partner])
            rest = np.delete(gain, [k, partner])
            doubt = trust * (gain[k] + gain[partner] - max(0.0, rest.sum()))
            yield _suspect(image, "swapped", doubt, annotation, pair, pose, "the pose has the two exchanged")

    typical = float(np.median(own[labelled]))
    for k in np.flatnonzero(labelled).tolist():
        # Where the pose is wrong as a whole, one more wrong keypoint says little.
        doubt = trust * (own[k] - 2 * typical)
        away = float(np.hypot(*(image.points[person, k] - image.found[pose, k])))
        why = f"the pose has it {away:.0f} px away"
        yield _suspect(image, "displaced", doubt, annotation, (names[k],), pose, why)

    for other in free:
        better = np.where(labelled, own - g[other], 0.0)
        theirs, ours = better > 1, better < -1
        if min(theirs.sum(), ours.sum()) >= LEAST_KEYPOINTS:
            halves = [abs(better[half].sum()) / math.sqrt(half.sum()) for half in (theirs, ours)]
            doubt = trust * usual.is_person(image.scores[other]) * min(halves)
            keypoints = tuple(name for name, is_theirs in zip(names, theirs, strict=True) if is_theirs)
            why = f"a second pose fits {len(keypoints)} of its keypoints better"
            yield _suspect(image, "merged", doubt, annotation, keypoints, other, why)

    size = np.array([image.record["width"], image.record["height"]])
    # A keypoint near the border may be outside, where nobody can label it.
    room = 4 * np.array(schema.sigmas) * math.sqrt(image.areas[person])
    inside = ((image.found[pose] >= room[:, None]) & (image.found[pose] <= size - room[:, None])).all(1)
    for k in np.flatnonzero(~labelled & inside).tolist():
        doubt = trust * usual.labelled[k, labelled.sum()]
        yield _suspect(image, "flag", doubt, annotation, (names[k],), pose, "is not labelled, unlike in most people")


def _suspect(
    image: _Image, kind: Kind, doubt: float, annotation: int | None, keypoints: tuple[str, ...], pose: int, why: str
) -> Suspect:
    return Suspect(kind, float(doubt), image.record["image_id"], annotation, keypoints, pose, why)


def _log_odds(share: float) -> float:
    return math.log(share / (1 - share))


def _explained(suspects: Sequence[Suspect]) -> list[Suspect]:
    """The suspects of an image without those that a more doubtful one explains.

    Two people in one annotation have keypoints elsewhere, and one of them is missed; exchanged sides are elsewhere.
    """
    kept: list[Suspect] = []
    for suspect in sorted(suspects, key=lambda s: -s.doubt):
        for other in kept:
            same = suspect.annotation_id is not None and suspect.annotation_id == other.annotation_id
            moved = suspect.kind in ("swapped", "displaced") and other.kind in ("swapped", "displaced", "merged")
            covered = not other.keypoints or not suspect.keypoints or set(suspect.keypoints) & set(other.keypoints)
            if same and ((moved and covered) or suspect.kind == other.kind == "merged"):
                break
            if (
                suspect.kind in ("merged", "missed")
                and other.kind in ("merged", "missed")
                and suspect.pose == other.pose
            ):
                break
        else:
            kept.append(suspect)
    return kept
