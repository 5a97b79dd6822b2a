"""Checks what only the doctor says of keypoints: doubtful labels, some people at a time; and counts them."""

from array import array

import numpy as np

from posefleet.data.coco.labels import Labels
from posefleet.data.coco.reader import repeats
from posefleet.data.findings import Findings
from posefleet.data.schemas.schema import KeypointSchema

CONSTANT_SHARE, CONSTANT_COUNT = 0.05, 5
"""A keypoint is reported as constant when this share of its labels, and this many, are the same point."""
DUPLICATE_KEYPOINTS = 3
"""Minimum labelled keypoints of a duplicate person; people with fewer may agree by chance."""


class LabelChecks:
    """Checks people some at a time, and at the end what only all of them show; keeps numbers, no records."""

    def __init__(self, schema: KeypointSchema, findings: Findings) -> None:
        self.people = 0
        self.keypoint_people = 0
        self.by_count = np.zeros(len(schema) + 1, np.int64)
        """Entry n: people, crowds aside, with n labelled keypoints."""
        self.by_keypoint = np.zeros(len(schema), np.int64)
        """(K,) people in whom the keypoint is labelled."""
        self._schema = schema
        self._findings = findings
        self._points: list[list[np.ndarray]] = [[] for _ in schema.keypoints]  # (N,) complex64 x + iy where labelled
        # For each person with DUPLICATE_KEYPOINTS or more: annotation id, image id, and hash of image id and keypoints.
        self._annotation_ids, self._image_ids, self._marks = array("q"), array("q"), array("q")

    def add(self, labels: Labels) -> None:
        """Check some people, and count them."""
        findings, labelled = self._findings, labels.labelled
        counts = labelled.sum(1)
        self.people += len(labels.annotation_ids)
        self.keypoint_people += int((counts > 0).sum())
        self.by_count += np.bincount(counts[~labels.crowd], minlength=len(self.by_count))
        self.by_keypoint += labelled.sum(0)
        for row in np.flatnonzero(_swapped(labels.keypoints * labelled[..., None], self._schema)).tolist():
            findings.add("left_right_swapped", labels.describe(row))
        for row in np.flatnonzero(counts >= DUPLICATE_KEYPOINTS).tolist():
            self._annotation_ids.append(labels.annotation_ids[row])
            self._image_ids.append(labels.image_ids[row])
            self._marks.append(hash((labels.image_ids[row], labels.keypoints[row].tobytes())))
        for k, kept in enumerate(self._points):
            x, y, _ = labels.keypoints[labelled[:, k], k].T
            kept.append((x + 1j * y).astype(np.complex64))

    def finish(self) -> None:
        """Call this after the last people: runs the checks that need all of them."""
        findings = self._findings
        if not self.keypoint_people:
            return
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


def _swapped(keypoints: np.ndarray, schema: KeypointSchema) -> np.ndarray:
    """Which people seem to have left and right swapped, by the positions of their keypoints.

    A person who is upright and faces the camera has the left eye, shoulder and hip at the right in the image, unless
    the body is turned. So left and right are swapped when face and shoulders are both the wrong way round, or when the
    face is right but shoulders and hips are both wrong.

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
