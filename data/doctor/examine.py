"""Examines a data set: reads the annotation file and every image of a split, and reports what is wrong.

Errors make training wrong or impossible; warnings should be inspected. ``findings.CHECKS`` lists all checks.
"""

import itertools
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import fsspec
import numpy as np
from rich.console import Console
from rich.progress import track

from posefleet.data.coco.annotations import (
    area_of,
    has_numbers,
    is_category,
    is_integer,
    person_category_ids,
    require_lists,
)
from posefleet.data.coco.file_schema import names_differ, read_file_schema
from posefleet.data.coco.records import outline_of
from posefleet.data.coco.source import Source, image_path
from posefleet.data.doctor.findings import Findings, Report, Statistics
from posefleet.data.doctor.label_checks import BORDER, LabelChecks, Labels, repeats
from posefleet.data.errors import DataError, NoSchema
from posefleet.data.images import TURNED_ORIENTATIONS, exif_orientation, verify_image
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.schema import KeypointSchema

Json = dict[str, Any]

PEOPLE_AT_A_TIME = 1024
"""People whose keypoints are checked together."""
IMAGES_AT_A_TIME = 4096
"""Images that wait for a thread to read them; this bounds memory."""


def examine(
    source: Source,
    schema: KeypointSchema | None,
    *,
    check_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Run all ``CHECKS`` on one split; the content of the files never raises an error.

    Records are read one by one and not kept, so a million images take a few hundred MB. The file is read twice, because
    COCO's lists its categories after the annotations.

    Args:
        source: From ``find_source``.
        schema: The expected keypoints. None: those that the file names.
        check_images: Also read and decode every image.
        workers: Threads that read images; None: one for each core.
        progress: Show a progress bar on stderr.
    """
    findings = Findings()
    images, categories = _Images(findings), list[Any]()
    try:
        schema = schema or read_file_schema(source.annotation_file)
        annotations = _Annotations(images, categories, schema, findings)
        takers = {"images": images.add, "categories": categories.append}
        lists = read_lists(source.annotation_file, takers)
        require_lists(source.annotation_file, lists, "images", "annotations")
        images.finish()
        if text := names_differ(source.annotation_file, categories, schema):
            findings.add("other_keypoints", text)
        read_lists(source.annotation_file, {"annotations": annotations.add})
        annotations.finish()
    except DataError as error:
        findings = Findings()
        findings.add("no_schema" if isinstance(error, NoSchema) else "unreadable_annotations", str(error))
        name = schema.name if schema else "no schema"
        return Report(source.annotation_file, name, False, tuple(findings), Statistics())
    if check_images:
        _check_images(images, source, findings, workers or os.cpu_count() or 1, progress)
    labels = annotations.labels
    statistics = Statistics(
        images=len(images.rows),
        images_with_keypoint_people=int(images.with_keypoints.sum()),
        people=labels.people,
        keypoint_people=labels.keypoint_people,
        people_by_keypoints=tuple(labels.by_count.tolist()),
        labelled_by_keypoint=dict(zip(schema.keypoints, labels.by_keypoint.tolist(), strict=True)),
    )
    return Report(source.annotation_file, schema.name, check_images, tuple(findings), statistics)


# ------------------------------------------------------------------------------------------------------- the json


class _Images:
    """Checks the image records of a file, and keeps them as arrays: ids and sizes, and all names in one array."""

    def __init__(self, findings: Findings) -> None:
        self.rows = np.zeros(0, np.int64)
        """(I,) rows of the images with a good record, in the order of their ids; of equal ids only the first."""
        self.with_people = np.zeros(0, bool)
        """(I,) whether somebody is annotated in the image."""
        self.with_keypoints = np.zeros(0, bool)
        """(I,) whether a keypoint person is annotated in the image."""
        self._findings = findings
        self._seen = 0
        self._ids, self._widths, self._heights = array("q"), array("q"), array("q")
        self._names, self._name_ends, self._name_marks = bytearray(), array("q", [0]), array("q")
        self._sorted_ids = array("q")

    def add(self, image: Any) -> None:
        """Check a record and keep its numbers."""
        self._seen += 1
        if not _is_image_record(image):
            self._findings.add("bad_image_record", str(image)[:100])
            return
        name = image["file_name"]
        self._ids.append(image["id"])
        self._widths.append(image["width"])
        self._heights.append(image["height"])
        self._names += name.encode(errors="surrogatepass")
        self._name_ends.append(len(self._names))
        self._name_marks.append(hash(name))

    def finish(self) -> None:
        """Call this after the last image: finds ids and file names that come twice."""
        if not self._seen:
            self._findings.add("no_images")
        ids = np.array(self._ids, np.int64)
        for row, first in repeats(ids):
            self._findings.add("duplicate_image_id", f"{self._what(row)} and {self._name(first)}")
        for row, _ in repeats(np.array(self._name_marks, np.int64)):
            self._findings.add("duplicate_file_name", self._what(row))
        different, self.rows = np.unique(ids, return_index=True)
        self._sorted_ids = array("q", different.tobytes())
        self.with_people, self.with_keypoints = np.zeros((2, len(self.rows)), bool)

    def find(self, image_id: Any) -> int | None:
        """Index of an image in ``rows``; None if there is no such image."""
        if not is_integer(image_id):
            return None
        place = bisect_left(self._sorted_ids, image_id)
        return place if place < len(self._sorted_ids) and self._sorted_ids[place] == image_id else None

    def size(self, place: int) -> tuple[int, int]:
        """Width and height of the image ``rows[place]``."""
        row = int(self.rows[place])
        return self._widths[row], self._heights[row]

    def __iter__(self) -> Iterator[Json]:
        """File name, width and height of the images of ``rows``, in the order of the file."""
        for row in np.sort(self.rows).tolist():
            yield {"file_name": self._name(row), "width": self._widths[row], "height": self._heights[row]}

    def _what(self, row: int) -> str:
        return f"image {self._ids[row]} ({self._name(row)})"

    def _name(self, row: int) -> str:
        return self._names[self._name_ends[row] : self._name_ends[row + 1]].decode(errors="surrogatepass")


def _is_image_record(image: Any) -> bool:
    return (
        isinstance(image, dict)
        and is_integer(image.get("id"))
        and isinstance(image.get("file_name"), str)
        and all(is_integer(image.get(side)) and image[side] > 0 for side in ("width", "height"))
    )


class _Annotations:
    """Checks the annotations of a file one by one, and their keypoints in groups, which is faster."""

    def __init__(self, images: _Images, categories: list[Any], schema: KeypointSchema, findings: Findings) -> None:
        self.labels = LabelChecks(schema, findings)
        self._images = images
        self._categories = categories
        self._schema = schema
        self._findings = findings
        self._ids, self._image_ids = array("q"), array("q")
        self._waiting: list[Json] = []
        self._places: list[int] = []  # for each waiting person, the index of the image in ``rows``

    def add(self, annotation: Any) -> None:
        """Check a record; a person's keypoints wait until a group is full."""
        findings = self._findings
        if not isinstance(annotation, dict) or not (is_integer(annotation.get("id")) and "image_id" in annotation):
            findings.add("bad_annotation_record", str(annotation)[:100])
            return
        image_id, category = annotation["image_id"], annotation.get("category_id", 1)
        what = f"annotation {annotation['id']} of image {image_id}"
        self._ids.append(annotation["id"])
        self._image_ids.append(image_id if is_integer(image_id) else -1)
        place = self._images.find(image_id)
        if place is None:
            findings.add("unknown_image", what)
        elif not is_integer(category) or (self._known and category not in self._known):
            findings.add("unknown_category", f"{what}: category {category}")
        elif category not in self._people:
            findings.add("other_category", f"{what}: category {category}")
        elif _is_person(annotation, self._images.size(place), self._schema, what, findings):
            self._waiting.append(annotation)
            self._places.append(place)
            if len(self._waiting) == PEOPLE_AT_A_TIME:
                self._check_keypoints()

    def finish(self) -> None:
        """Call this after the last annotation: finds ids that come twice, and runs the checks that need all people."""
        self._check_keypoints()
        for row, _ in repeats(np.array(self._ids, np.int64)):
            what = f"annotation {self._ids[row]} of image {self._image_ids[row]}"
            self._findings.add("duplicate_annotation_id", what)
        self.labels.finish()
        self._findings.add("images_without_annotations", count=int((~self._images.with_people).sum()))

    @cached_property
    def _known(self) -> set[int]:
        return {category["id"] for category in self._categories if is_category(category)}

    @cached_property
    def _people(self) -> set[int]:
        return person_category_ids([category for category in self._categories if is_category(category)])

    def _check_keypoints(self) -> None:
        labels = Labels.of(self._waiting, list(map(self._images.size, self._places)), self._schema)
        places = np.array(self._places, np.int64)
        self._images.with_people[places] = True
        self._images.with_keypoints[places[labels.labelled.any(1)]] = True
        self.labels.add(labels)
        self._waiting, self._places = [], []


def _is_person(annotation: Json, size: tuple[int, int], schema: KeypointSchema, what: str, findings: Findings) -> bool:
    """Check box, area and number of keypoints; returns whether the values of the keypoints can be checked."""
    box, area = annotation.get("bbox"), annotation.get("area")
    keypoints = annotation.get("keypoints") or []
    if not has_numbers(annotation):
        findings.add("bad_annotation_record", f"{what}: bbox {box}, area {area}, keypoints {keypoints}"[:100])
        return False
    if keypoints and len(keypoints) != 3 * len(schema):
        findings.add("wrong_keypoint_count", f"{what}: {len(keypoints) / 3:g}, {schema.name} has {len(schema)}")
        return False
    x, y, width, height = annotation["bbox"]
    if not all(map(math.isfinite, [x, y, width, height, area or 0.0, *keypoints])):
        findings.add("not_finite", what)
        return False
    crowd, labelled = bool(annotation.get("iscrowd", 0)), sum(v > 0 for v in keypoints[2::3])
    if area is None:
        findings.add("no_area")
        area = area_of(annotation)
    if crowd or not labelled:
        findings.add("crowd" if crowd else "unlabelled")
        outline, fault = outline_of(annotation, size)
        if fault:
            findings.add("bad_segmentation", f"{what}: {fault}")
        elif outline is None:
            findings.add("no_segmentation")
    if min(width, height, area) <= 0:
        code = ("bad_box" if min(width, height) <= 0 else "bad_area") if labelled else "bad_box_unlabelled"
        findings.add(code, f"{what}: bbox {box}, area {area}")
    elif min(x, y) < -BORDER or x + width > size[0] + BORDER or y + height > size[1] + BORDER:
        findings.add("box_outside", f"{what}: bbox {box}, image {size[0]} x {size[1]}")
    if annotation.get("num_keypoints", labelled) != labelled:
        findings.add("wrong_num_keypoints", f"{what}: says {annotation['num_keypoints']}, has {labelled}")
    return True


# ------------------------------------------------------------------------------------------------------- images


def image_fault(data: bytes, record: Mapping[str, Any]) -> tuple[str, str] | None:
    """The fault of an image file as (code of ``CHECKS``, details), or None; ``record`` is its entry in the json."""
    try:
        width, height = verify_image(data, record["file_name"])
    except DataError as error:
        return "corrupt_image", str(error)
    expected = (record["width"], record["height"])
    if (width, height) == expected:
        return None
    sizes = f"{record['file_name']}: {width} x {height}, the json says {expected[0]} x {expected[1]}"
    if (height, width) == expected and exif_orientation(data) in TURNED_ORIENTATIONS:
        return "exif_mismatch", f"{sizes}; EXIF turns it"
    return "size_mismatch", sizes


def _check_images(images: _Images, source: Source, findings: Findings, workers: int, progress: bool) -> None:
    fs, _ = fsspec.core.url_to_fs(source.image_folder)

    def check(image: Json) -> tuple[str, str] | None:
        name = image["file_name"]
        try:
            data = fs.cat_file(image_path(source, name))
        except FileNotFoundError:
            return "missing_image", name
        except (OSError, ValueError) as error:
            return "corrupt_image", f"{name}: cannot be read: {error}"
        fault = image_fault(data, image)
        return fault or (("exif_orientation", name) if exif_orientation(data) != 1 else None)

    with ThreadPoolExecutor(workers) as pool:
        console, waiting = Console(stderr=True), iter(images)
        groups = iter(lambda: list(itertools.islice(waiting, IMAGES_AT_A_TIME)), [])
        faults = itertools.chain.from_iterable(pool.map(check, group) for group in groups)
        shown = progress and console.is_terminal
        for fault in track(faults, "images", total=len(images.rows), console=console, disable=not shown):
            if fault:
                findings.add(*fault)
