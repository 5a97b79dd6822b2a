"""Writes an annotation file again with corrected images in it; everything that was not corrected stays as it is.

Label tools number annotations anew, round coordinates and leave out areas, segmentations, crowds and people without
keypoints. So a corrected person is recognised by where the keypoints are, and an annotation whose keypoints did not
change is kept as it was, byte for byte. Sharding the new file writes only the shards that hold a changed image.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from posefleet.data.boxes import overlaps
from posefleet.data.coco.annotations import is_keypoint_person
from posefleet.data.coco.file_names import ANY_FOLDER, NameRule
from posefleet.data.coco.file_schema import read_categories
from posefleet.data.coco.records import Record
from posefleet.data.errors import DataError
from posefleet.data.io.files import create
from posefleet.data.io.json_stream import read_lists
from posefleet.data.review.tasks import Labels

UNCHANGED = 0.05
"""Pixels by which a keypoint may move when a label tool converts it."""
SAME = 0.3
"""Similarity of two annotations, from 0 to 2, from which they are of one person: overlap of the boxes of their
keypoints, plus the share of keypoints in the same place."""
REPLACED = 0.5
"""Overlap from which a new person replaces a crowd or a person without keypoints."""

_NAMES = (
    NameRule(backslashes=True, url=True, prefix=ANY_FOLDER),
    NameRule(backslashes=True, url=True, upload=True, prefix=ANY_FOLDER),
)


@dataclass(slots=True)
class Changes:
    """What a correction changed."""

    reviewed: int = 0
    """Images of the corrected file."""
    images: int = 0
    """Images with a change."""
    changed: int = 0
    added: int = 0
    removed: int = 0

    def __str__(self) -> str:
        return (
            f"{self.reviewed:,} images reviewed, {self.images:,} of them changed: {self.changed:,} annotations "
            f"corrected, {self.added:,} added, {self.removed:,} removed"
        )


def apply_corrections(annotation_file: str, corrected: Labels, out: str) -> Changes:
    """Write ``annotation_file`` with the images of ``corrected`` as they are there.

    Args:
        annotation_file: Any fsspec path of a file in COCO's format.
        corrected: From :func:`posefleet.data.review.tasks.read_corrected`.
        out: The new file; any fsspec path but that of ``annotation_file``.

    Raises:
        DataError: An image of ``corrected`` is not in the file, or could be several; or the file cannot be read.
    """
    if out == annotation_file:
        raise DataError(f"{out} is the annotation file itself; give the new file another name")
    images: list[tuple[int, str]] = []
    ids: list[int] = []
    read_lists(annotation_file, {"images": lambda i: images.append((i["id"], i["file_name"]))})
    new = {image_id: corrected[name] for name, image_id in _image_ids(corrected, images).items()}
    old: dict[int, list[Record]] = {image_id: [] for image_id in new}

    def take(annotation: Record) -> None:
        ids.append(annotation["id"])
        if annotation["image_id"] in old:
            old[annotation["image_id"]].append(annotation)

    read_lists(annotation_file, {"annotations": take})
    chosen = read_categories(annotation_file).chosen
    merge = _Merge(max(ids, default=0) + 1, {"category_id": chosen[0]["id"]} if chosen else {})
    merged = {image_id: merge(image_id, old[image_id], people) for image_id, people in new.items()}

    def people_of(annotation: Record) -> list[Record]:
        """What stands in place of an annotation: all of its image in place of the first one of it."""
        if annotation["image_id"] not in new:
            return [annotation]
        return merged.pop(annotation["image_id"], [])

    with create(out) as file:
        lists: dict[str, Callable[[Record], list[Record]]] = {
            "images": _itself,
            "annotations": people_of,
            "categories": _itself,
        }
        for number, (key, change) in enumerate(lists.items()):
            file.write(f"{',' if number else '{'}\n{json.dumps(key)}: [".encode())
            writer = _Writer(file.write, change)
            read_lists(annotation_file, {key: writer})
            for rest in list(merged.values()) if key == "annotations" else ():  # of images that had no annotation
                writer.add(rest)
            file.write(b"\n]")
        file.write(b"\n}\n")
    merge.changes.reviewed = len(new)
    return merge.changes


def _itself(record: Record) -> list[Record]:
    return [record]


class _Writer:
    """Writes the elements of a json list, a line each."""

    def __init__(self, write: Callable[[bytes], object], change: Callable[[Record], list[Record]]) -> None:
        self._write, self._change = write, change
        self._separator = "\n"

    def __call__(self, record: Record) -> None:
        self.add(self._change(record))

    def add(self, records: Sequence[Record]) -> None:
        """Write some elements."""
        for record in records:
            self._write(f"{self._separator}{json.dumps(record)}".encode())
            self._separator = ",\n"


def _image_ids(corrected: Labels, images: Sequence[tuple[int, str]]) -> dict[str, int]:
    """The image id of each file name of a corrected file, however its tool writes file names."""
    as_written = {name: image_id for image_id, name in images}
    by_rule: list[dict[str, list[int]]] = []
    for rule in _NAMES:
        found: dict[str, list[int]] = {}
        for image_id, name in images:
            found.setdefault(rule(name), []).append(image_id)
        by_rule.append(found)
    ids: dict[str, int] = {}
    for name in corrected:
        candidates = [as_written[name]] if name in as_written else []
        for rule, known in zip(_NAMES, by_rule, strict=True):
            candidates = candidates or known.get(rule(name), []) or by_rule[0].get(rule(name), [])
        if len(candidates) != 1:
            what = f"the names of {len(candidates)} images" if candidates else "no image of the annotation file"
            raise DataError(f"{name!r} fits {what}; expected the file name of one")
        ids[name] = candidates[0]
    if len(set(ids.values())) < len(ids):
        twice = [name for name, image_id in ids.items() if list(ids.values()).count(image_id) > 1]
        raise DataError(f"{', '.join(map(repr, twice[:3]))} are one image of the annotation file; expected it once")
    return ids


class _Merge:
    """Puts the corrected people of an image in place of the annotated ones."""

    def __init__(self, next_id: int, category: Mapping[str, Any]) -> None:
        self.changes = Changes()
        self._next_id, self._category = next_id, category

    def __call__(self, image_id: int, old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
        new = [person for person in new if is_keypoint_person(person)]
        people = [annotation for annotation in old if is_keypoint_person(annotation)]
        pairs = _pairs(people, new)
        before = (self.changes.changed, self.changes.added, self.changes.removed)
        added = [person for row, person in enumerate(new) if row not in pairs.values()]
        result: list[Record] = []
        rows = {id(annotation): row for row, annotation in enumerate(people)}
        for annotation in old:
            row = rows.get(id(annotation))
            if row is None:
                if any(_overlap(_box(annotation), _box(person)) >= REPLACED for person in added):
                    self.changes.removed += 1
                else:
                    result.append(annotation)
            elif row not in pairs:
                self.changes.removed += 1
            else:
                corrected = _corrected(annotation, new[pairs[row]])
                self.changes.changed += corrected is not annotation
                result.append(corrected)
        for person in added:
            self.changes.added += 1
            result.append(self._new(image_id, person))
        self.changes.images += before != (self.changes.changed, self.changes.added, self.changes.removed)
        return result

    def _new(self, image_id: int, person: Record) -> Record:
        """An annotation of a person who had none. It has no area, so a share of the box is taken."""
        self._next_id += 1
        keypoints = person["keypoints"]
        count = sum(v > 0 for v in keypoints[2::3])
        own = {"id": self._next_id - 1, "image_id": image_id, **self._category, "iscrowd": 0}
        return {**own, "bbox": list(person["bbox"]), "keypoints": keypoints, "num_keypoints": count}


def _corrected(annotation: Record, person: Record) -> Record:
    """The annotation with the keypoints of the corrected person; itself if they did not change.

    Its box grows where keypoints now lie outside, and its area in proportion. Its segmentation stays.
    """
    old, new = _points(annotation), _points(person)
    seen = new[:, 2] > 0
    moved = np.abs(old[:, :2] - new[:, :2]).max(1) > UNCHANGED
    # Tools that do not tell hidden from visible write 2 for both.
    if (
        not ((old[:, 2] > 0) != seen).any()
        and not (moved & seen).any()
        and not ((old[:, 2] == 2) & (new[:, 2] == 1)).any()
    ):
        return annotation
    left, top, width, height = annotation["bbox"]
    low = np.minimum(new[seen, :2].min(0), [left, top])
    high = np.maximum(new[seen, :2].max(0), [left + width, top + height])
    wide, high_ = (high - low).tolist()
    box = [*low.tolist(), wide, high_]
    area = annotation.get("area")
    grown = {} if area is None else {"area": area * wide * high_ / max(width * height, 1e-9)}
    keypoints = np.where(seen[:, None], new, 0.0).ravel().tolist()
    return {**annotation, **grown, "bbox": box, "keypoints": keypoints, "num_keypoints": int(seen.sum())}


def _pairs(old: Sequence[Record], new: Sequence[Record]) -> dict[int, int]:
    """Row of an annotation -> row of the corrected person who is the same."""
    similar = np.zeros((len(old), len(new)))
    for i, annotation in enumerate(old):
        for j, person in enumerate(new):
            a, b = _points(annotation), _points(person)
            both = (a[:, 2] > 0) & (b[:, 2] > 0)
            same = both & (np.abs(a[:, :2] - b[:, :2]).max(1) <= UNCHANGED)
            similar[i, j] = _overlap(_tight(a), _tight(b)) + same.sum() / max((a[:, 2] > 0).sum(), 1)
    rows = zip(*linear_sum_assignment(-similar), strict=True)
    return {int(i): int(j) for i, j in rows if similar[i, j] >= SAME}


def _points(annotation: Record) -> np.ndarray:
    return np.array(annotation["keypoints"], float).reshape(-1, 3)


def _tight(points: np.ndarray) -> np.ndarray:
    known = points[points[:, 2] > 0, :2]
    return np.concatenate([known.min(0), known.max(0)])


def _box(annotation: Record) -> np.ndarray:
    left, top, width, height = annotation["bbox"]
    return np.array([left, top, left + width, top + height], float)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (4,) xyxy, each half a pixel larger: keypoints may be on one line."""
    room = np.array([-0.5, -0.5, 0.5, 0.5])
    return float(overlaps((a + room)[None], (b + room)[None])[0, 0])
