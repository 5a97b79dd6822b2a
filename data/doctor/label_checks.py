"""What is wrong with the keypoints of a data set, looked at some people after the other: the doctor's closer look."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posefleet.data.doctor.findings import MAX_EXAMPLES, Findings
from posefleet.data.keypoints import KeypointSchema

BORDER = 1.0
"""Pixels that a keypoint or box may lie outside its image; COCO's own annotations reach the border."""
MANY_OUTSIDE = 0.01
"""From this share of labelled keypoints outside their image on, it is no slip but the wrong coordinates."""
CONSTANT_SHARE, CONSTANT_COUNT = 0.05, 5
"""A keypoint is suspicious when this share of its labels, and this many, are one and the same point."""
DUPLICATE_KEYPOINTS = 3
"""People with fewer labelled keypoints may well agree by chance."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The keypoints of some people that have them in full."""

    annotation_ids: list[int]
    image_ids: list[int]
    sizes: np.ndarray
    """(N, 2) width, height of their images."""
    keypoints: np.ndarray
    """(N, K, 3) float64 x, y, v."""
    crowd: np.ndarray
    """(N,) bool."""

    @classmethod
    def of(
        cls, annotations: Sequence[dict[str, Any]], sizes: Sequence[tuple[int, int]], schema: KeypointSchema
    ) -> "Labels":
        """Those of some annotations, whose images have ``sizes``."""
        nothing = [0] * (3 * len(schema))
        return cls(
            [a["id"] for a in annotations],
            [a["image_id"] for a in annotations],
            np.array(sizes, float).reshape(-1, 2),
            np.array([a.get("keypoints") or nothing for a in annotations], float).reshape(-1, len(schema), 3),
            np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
        )

    @property
    def labelled(self) -> np.ndarray:
        """(N, K) bool; nothing of a crowd is labelled."""
        mask: np.ndarray = (self.keypoints[..., 2] > 0) & ~self.crowd[:, None]
        return mask

    def who(self, row: int) -> str:
        """A person, for messages."""
        return f"annotation {self.annotation_ids[row]} of image {self.image_ids[row]}"


class LabelChecks:
    """Looks at people, and then at what they have in common; keeps numbers of them, no records."""

    def __init__(self, schema: KeypointSchema, findings: Findings) -> None:
        self.people = 0
        self.keypoint_people = 0
        self.by_count = np.zeros(len(schema) + 1, np.int64)
        """Entry n: people, crowds aside, with n labelled keypoints."""
        self.by_keypoint = np.zeros(len(schema), np.int64)
        """People in whom a keypoint is labelled."""
        self._schema = schema
        self._findings = findings
        self._points: list[list[np.ndarray]] = [[] for _ in schema.keypoints]  # (N,) complex64 x + iy where labelled
        self._outside = 0
        self._examples_outside: list[str] = []
        # Of everybody with enough keypoints to tell him from others: annotation, image, and what stands for keypoints.
        self._annotation_ids, self._image_ids, self._marks = array("q"), array("q"), array("q")

    def look(self, labels: Labels) -> None:
        """Check some people."""
        findings, labelled = self._findings, labels.labelled
        counts = labelled.sum(1)
        self.people += len(labels.annotation_ids)
        self.keypoint_people += int((counts > 0).sum())
        self.by_count += np.bincount(counts[~labels.crowd], minlength=len(self.by_count))
        self.by_keypoint += labelled.sum(0)
        wrong = ~np.isin(labels.keypoints[..., 2], (0, 1, 2))
        for row, k in np.argwhere(wrong).tolist():
            where = f"annotation {labels.annotation_ids[row]}: {self._schema.keypoints[k]}"
            findings.add("bad_visibility", f"{where} has visibility {labels.keypoints[row, k, 2]:g}")
        self._look_outside(labels, labelled)
        for row in np.flatnonzero(_swapped(labels.keypoints * labelled[..., None], self._schema)).tolist():
            findings.add("left_right_swapped", labels.who(row))
        for row in np.flatnonzero(counts >= DUPLICATE_KEYPOINTS).tolist():
            self._annotation_ids.append(labels.annotation_ids[row])
            self._image_ids.append(labels.image_ids[row])
            self._marks.append(hash((labels.image_ids[row], labels.keypoints[row].tobytes())))
        for k, kept in enumerate(self._points):
            x, y, _ = labels.keypoints[labelled[:, k], k].T
            kept.append((x + 1j * y).astype(np.complex64))

    def finish(self) -> None:
        """Nobody follows: check what only all of them show."""
        findings = self._findings
        if not self.keypoint_people:
            findings.add("no_keypoint_people")
            return
        many = self._outside > MANY_OUTSIDE * self.by_keypoint.sum()
        code = "many_keypoints_outside" if many else "keypoint_outside"
        for example in self._examples_outside:
            findings.add(code, example)
        findings.add(code, count=self._outside - len(self._examples_outside))
        for row, first in repeats(np.array(self._marks, np.int64)):
            who = f"annotation {self._annotation_ids[row]} of image {self._image_ids[row]}"
            findings.add("duplicate_person", f"{who} and {self._annotation_ids[first]}")
        for name, kept in zip(self._schema.keypoints, self._points, strict=True):
            points = np.concatenate(kept)
            if not len(points):
                findings.add("never_labelled", name)
                continue
            places, counts = np.unique(points, return_counts=True)
            top = counts.argmax()
            if counts[top] >= max(CONSTANT_COUNT, CONSTANT_SHARE * len(points)):
                x, y = places[top].real, places[top].imag
                findings.add("constant_keypoint", f"{name}: ({x:g}, {y:g}) in {counts[top]} of {len(points)} people")

    def _look_outside(self, labels: Labels, labelled: np.ndarray) -> None:
        points, sizes = labels.keypoints[..., :2], labels.sizes[:, None]
        outside = ((points < -BORDER) | (points > sizes + BORDER)).any(-1) & labelled
        self._outside += int(outside.sum())
        for row, k in np.argwhere(outside)[: MAX_EXAMPLES - len(self._examples_outside)].tolist():
            (x, y), (width, height) = points[row, k].tolist(), labels.sizes[row].tolist()
            where = f"{self._schema.keypoints[k]} at ({x:g}, {y:g}), image {width:g} x {height:g}"
            self._examples_outside.append(f"{labels.who(row)}: {where}")


def repeats(values: np.ndarray) -> list[tuple[int, int]]:
    """The places of values (N,) that came before, ascending, and where each came first."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    before = first[which]
    places = np.flatnonzero(before < np.arange(len(values)))
    return list(zip(places.tolist(), before[places].tolist(), strict=True))


def _swapped(keypoints: np.ndarray, schema: KeypointSchema) -> np.ndarray:
    """Which people have left and right swapped, as far as one can tell from where their keypoints lie.

    Who shows the face to the camera, upright, has the left eye at the right in the image, and so the left shoulder
    and hip, unless the body is turned. So it is a swap when face and shoulders are both the wrong way round, or
    when the face is right and shoulders and hips are both wrong.

    Args:
        keypoints: (N, K, 3) x, y, v; v is 0 where not labelled.

    Returns:
        (N,) bool.
    """
    needed = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if not set(needed) <= set(schema.keypoints):
        return np.zeros(len(keypoints), bool)
    nose, left_eye, right_eye, *body = (keypoints[:, schema.keypoints.index(name)] for name in needed)
    left_shoulder, right_shoulder, left_hip, right_hip = body
    x, y, v = np.moveaxis(np.where(keypoints[..., 2:] > 0, keypoints, np.nan), 2, 0)
    some = (v > 0).sum(1) > 1
    size = np.zeros(len(keypoints))
    size[some] = np.hypot(np.nanmax(x[some], 1) - np.nanmin(x[some], 1), np.nanmax(y[some], 1) - np.nanmin(y[some], 1))

    def order(left: np.ndarray, right: np.ndarray, margin: np.ndarray | float) -> np.ndarray:
        """+1 where left lies clearly at the right in the image, as in a frontal view, -1 the other way, else 0."""
        distance = left[:, 0] - right[:, 0]
        clear = (np.abs(distance) > margin) & (left[:, 2] > 0) & (right[:, 2] > 0)
        return np.where(clear, np.sign(distance), 0.0)

    eyes = order(left_eye, right_eye, 2.0)
    shoulders = order(left_shoulder, right_shoulder, 0.15 * size)
    hips = order(left_hip, right_hip, 0.1 * size)
    face = (nose[:, 2] == 2) & (left_eye[:, 2] == 2) & (right_eye[:, 2] == 2)
    face &= (nose[:, 0] - left_eye[:, 0]) * (nose[:, 0] - right_eye[:, 0]) < 0  # the nose between the eyes
    upright = np.maximum(left_eye[:, 1], right_eye[:, 1]) < np.minimum(left_shoulder[:, 1], right_shoulder[:, 1])
    whole = (eyes < 0) & (shoulders < 0) & (hips <= 0)
    body_only = (eyes > 0) & (shoulders < 0) & (hips < 0)
    swapped: np.ndarray = face & upright & (whole | body_only)
    return swapped
