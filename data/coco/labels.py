"""Checks the numbers of annotated people, some at a time, and whether they are plausible beside image, box and area."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from posefleet.data.coco.annotations import AREA_OF_BOX, Annotation
from posefleet.data.findings import MAX_EXAMPLES, Findings
from posefleet.data.schemas.schema import KeypointSchema

BORDER = 1.0
"""Pixels that a keypoint or box may lie outside its image; COCO's own annotations reach the border."""
LARGEST = 1e9
"""Numbers beyond this are no pixels; 32 bits hold their square."""
MANY_OUTSIDE = 0.01
"""If more than this share of the labelled keypoints lies outside their image, the coordinates are probably wrong."""
MANY_BOXES_OUTSIDE = 0.3
"""Share of boxes, as above. Boxes of two corners, read as corner and size, reach out of the image where the person is
not at the upper left."""
MANY = 0.05
"""Share of keypoint people, as above, for boxes without keypoints, implausible areas, and coordinates from 0 to 1."""
SMALLEST_AREA = 1e-3
"""Area of a person, as a share of the box, below which it is not plausible. Boxes round the keypoints alone may be much
smaller than the person, so they give no upper limit."""


@dataclass(frozen=True, slots=True)
class Labels:
    """The numbers of N annotated people."""

    annotation_ids: list[int]
    image_ids: list[int]
    sizes: np.ndarray
    """(N, 2) width, height of their images."""
    keypoints: np.ndarray
    """(N, K, 3) float64 x, y, v; zeros without keypoints."""
    boxes: np.ndarray
    """(N, 4) float64 left, top, width, height."""
    areas: np.ndarray
    """(N,) float64 square pixels; ``AREA_OF_BOX`` of the box where the annotation has none."""
    crowd: np.ndarray
    """(N,) bool."""

    @classmethod
    def of(cls, annotations: Sequence[Annotation], sizes: np.ndarray, keypoints: int) -> Self:
        """The labels of annotations whose fields have the right types.

        Args:
            annotations: Their keypoints are none or ``keypoints``.
            sizes: (N, 2) width, height of their images.
            keypoints: Number of keypoints.
        """
        nothing = [0] * (3 * keypoints)
        boxes = _floats([a["bbox"] for a in annotations]).reshape(-1, 4)
        areas = _floats([np.nan if a.get("area") is None else a["area"] for a in annotations])
        unknown = np.array([a.get("area") is None for a in annotations], bool)
        return cls(
            [a["id"] for a in annotations],
            [a["image_id"] for a in annotations],
            sizes.astype(np.float64),
            _floats([a.get("keypoints") or nothing for a in annotations]).reshape(len(annotations), keypoints, 3),
            boxes,
            np.where(unknown, AREA_OF_BOX * boxes[:, 2] * boxes[:, 3], areas),
            np.array([bool(a.get("iscrowd")) for a in annotations], bool),
        )

    def select(self, kept: np.ndarray) -> Self:
        """The people where ``kept`` (N,) bool is True."""
        rows = np.flatnonzero(kept).tolist()
        return type(self)(
            [self.annotation_ids[row] for row in rows],
            [self.image_ids[row] for row in rows],
            self.sizes[rows],
            self.keypoints[rows],
            self.boxes[rows],
            self.areas[rows],
            self.crowd[rows],
        )

    @property
    def labelled(self) -> np.ndarray:
        """(N, K) bool; nothing of a crowd is labelled."""
        mask: np.ndarray = (self.keypoints[..., 2] > 0) & ~self.crowd[:, None]
        return mask

    def describe(self, row: int) -> str:
        """Annotation and image of a person, for messages."""
        return f"annotation {self.annotation_ids[row]} of image {self.image_ids[row]}"

    def box(self, row: int) -> str:
        """The box of a person, for messages."""
        return f"bbox [{', '.join(f'{value:g}' for value in self.boxes[row])}]"


def _floats(values: list[Any]) -> np.ndarray:
    """The numbers as float64; integers that float64 cannot hold become infinite."""
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return np.array([[*map(_float, value)] if isinstance(value, list) else _float(value) for value in values])


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return np.inf


def number_faults(labels: Labels, schema: KeypointSchema | None) -> Iterator[tuple[int, str, str]]:
    """The faults of people that cannot be read: (row, code of ``findings.CHECKS``, example), some rows repeatedly."""
    keypoints, boxes, areas = labels.keypoints, labels.boxes, labels.areas
    numbers = np.concatenate([keypoints.reshape(len(boxes), -1), boxes, areas[:, None]], 1)
    finite = (np.abs(numbers) <= LARGEST).all(1)  # false for NaN
    for row in np.flatnonzero(~finite).tolist():
        column = int(np.flatnonzero(~(np.abs(numbers[row]) <= LARGEST))[0])
        value = f"{numbers[row, column]:g}"
        yield row, "not_finite", f"{labels.describe(row)}: {_field_at(column, keypoints.shape[1], schema)} is {value}"
    v = keypoints[..., 2]
    wrong = (v * (v - 1) * (v - 2) != 0) & finite[:, None]
    for row, k in np.argwhere(wrong).tolist():
        name = schema.keypoints[k] if schema else f"keypoint {k}"
        yield row, "bad_visibility", f"{labels.describe(row)}: {name} has visibility {v[row, k]:g}"
    small = (boxes[:, 2:].min(1) <= 0) & finite
    flat = (areas <= 0) & finite
    labelled = labels.labelled.any(1)
    for row in np.flatnonzero((small | flat) & labelled).tolist():
        code, what = ("bad_box", labels.box(row)) if small[row] else ("bad_area", f"area {areas[row]:g}")
        yield row, code, f"{labels.describe(row)}: {what}"


def _field_at(column: int, keypoints: int, schema: KeypointSchema | None) -> str:
    if column < 3 * keypoints:
        keypoint, part = divmod(column, 3)
        return f"{'xyv'[part]} of {schema.keypoints[keypoint] if schema else f'keypoint {keypoint}'}"
    return "area" if column == 3 * keypoints + 4 else f"bbox[{column - 3 * keypoints}]"


@dataclass(slots=True)
class _Doubt:
    """Cases that are a warning if they are few, and an error if they are many."""

    few: str
    many: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def report(self, findings: Findings, most: float) -> str:
        """Add the cases to the findings as an error if there are more than ``most``; returns the code."""
        code = self.many if self.count > most else self.few
        for example in self.examples:
            findings.add(code, example)
        findings.add(code, count=self.count - len(self.examples))
        return code


class Plausibility:
    """Compares the labels of people with their images, boxes and areas; keeps numbers, no records."""

    def __init__(self, findings: Findings, schema: KeypointSchema | None) -> None:
        self.keypoint_people = 0
        self.people = 0
        self._findings = findings
        self._schema = schema
        self._labelled = 0
        self._keypoints = _Doubt("keypoint_outside", "many_keypoints_outside")
        self._boxes = _Doubt("box_outside", "many_boxes_outside")
        self._empty = _Doubt("box_without_keypoints", "many_boxes_without_keypoints")
        self._areas = _Doubt("implausible_area", "many_implausible_areas")
        self._unit = _Doubt("keypoints_in_one_pixel", "normalised_coordinates")
        self._unit_people = array("q")

    def add(self, labels: Labels) -> None:
        """Check some people."""
        labelled, points, boxes, sizes = labels.labelled, labels.keypoints[..., :2], labels.boxes, labels.sizes
        counts = labelled.sum(1)
        some = counts > 0
        outside = ((points < -BORDER) | (points > sizes[:, None] + BORDER)).any(-1) & labelled
        self._labelled += int(counts.sum())
        self._keypoints.count += int(outside.sum())
        for row, k in np.argwhere(outside)[: MAX_EXAMPLES - len(self._keypoints.examples)].tolist():
            name = self._schema.keypoints[k] if self._schema else f"keypoint {k}"
            (x, y), size = points[row, k].tolist(), _size(sizes[row])
            self._keypoints.examples.append(f"{labels.describe(row)}: {name} at ({x:g}, {y:g}), image {size}")

        low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
        whole = (boxes[:, 2:] > 0).all(1) & (labels.areas > 0)
        out = ((low < -BORDER) | (high > sizes + BORDER)).any(1) & whole
        self._doubt(self._boxes, out, labels, lambda row: f"{labels.box(row)}, image {_size(sizes[row])}")
        inside = ((points >= low[:, None] - BORDER) & (points <= high[:, None] + BORDER)).all(-1) & labelled
        empty = some & ~inside.any(1)
        self._doubt(self._empty, empty, labels, lambda row: f"{labels.box(row)}, {_span(points[row], labelled[row])}")
        odd = some & ((labels.areas < SMALLEST_AREA * boxes[:, 2] * boxes[:, 3]) | (labels.areas > sizes.prod(1)))
        self._doubt(self._areas, odd, labels, lambda row: f"area {labels.areas[row]:g}, {labels.box(row)}")

        in_unit = (((points >= 0) & (points <= 1)).all(-1) | ~labelled).all(1)
        between = (((points > 0) & (points < 1)).any(-1) & labelled).any(1)
        unit = some & in_unit & between & ((counts > 1) | (boxes[:, 2:] <= 1).all(1)) & (sizes > 2).all(1)
        self._doubt(self._unit, unit, labels, lambda row: f"{_span(points[row], labelled[row])}")
        self._unit_people.extend((np.flatnonzero(unit) + self.people).tolist())
        self.keypoint_people += int(some.sum())
        self.people += len(boxes)

    def finish(self) -> list[int]:
        """Call this after the last people.

        Returns:
            The people, by number in the order in which they were added, whose coordinates are normalised.
        """
        findings, most = self._findings, max(1.0, MANY * self.keypoint_people)
        self._keypoints.report(findings, MANY_OUTSIDE * self._labelled)
        self._boxes.report(findings, max(1.0, MANY_BOXES_OUTSIDE * self.people))
        self._empty.report(findings, most)
        self._areas.report(findings, most)
        # If nobody has other coordinates, a single person is enough.
        every = self._unit.count == self.keypoint_people
        code = self._unit.report(findings, 0 if every else most)
        return self._unit_people.tolist() if code == "normalised_coordinates" else []

    def _doubt(self, doubt: _Doubt, rows: np.ndarray, labels: Labels, example: Any) -> None:
        found = np.flatnonzero(rows).tolist()
        doubt.count += len(found)
        for row in found[: MAX_EXAMPLES - len(doubt.examples)]:
            doubt.examples.append(f"{labels.describe(row)}: {example(row)}")


def _size(size: np.ndarray) -> str:
    return f"{size[0]:g} x {size[1]:g}"


def _span(points: np.ndarray, labelled: np.ndarray) -> str:
    low, high = points[labelled].min(0), points[labelled].max(0)
    return f"keypoints from ({low[0]:g}, {low[1]:g}) to ({high[0]:g}, {high[1]:g})"
