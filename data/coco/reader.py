"""Reads COCO annotation files record by record: the one door of the doctor, sharding, evaluation, prediction, training.

Every record is checked in the same way, whoever reads it. ``findings.CHECKS`` lists the checks. A file with errors is
refused, or the records that have them are left out and listed. Records are not kept: an annotation file may be larger
than memory. The file is read twice, because COCO's lists its categories, which say who is a person, at its end.
"""

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from posefleet.data.coco.annotations import (
    Annotation,
    annotation_record_fault,
    image_record_fault,
    is_integer,
    is_whole_body,
    is_whole_body_schema,
    join_parts,
    require_lists,
)
from posefleet.data.coco.file_schema import (
    PERSON,
    Categories,
    category_record_fault,
    choose_categories,
    described,
    names_differ,
    schema_of,
)
from posefleet.data.coco.labels import Labels, Plausibility, number_faults
from posefleet.data.coco.records import outline_of
from posefleet.data.errors import DataError
from posefleet.data.findings import Findings
from posefleet.data.io.json_stream import read_lists
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import load_schema, shipped_names

PEOPLE_AT_A_TIME = 1024
"""People whose numbers are checked together."""
MOST_IDS = 10
"""Ids of records that are left out which a sentence names."""

_CONSEQUENCES = ("no_images", "no_keypoint_people")
"""Errors that others may be the reason for."""

Lists = str | Path | Mapping[str, Any]
"""An annotation file as any fsspec path, or its content."""
TakePerson = Callable[[int, Annotation, str | None], None]
"""Takes the place of the image among ``Reader.image_ids``, the annotation of a person, and the outline of a crowd or of
a person without keypoints, see ``records.outline_of``."""


@dataclass(slots=True)
class LeftOut:
    """The records of an annotation file that are not read because of their errors."""

    images: dict[str, list[int | None]] = field(default_factory=dict)
    """Ids of images by code of ``findings.CHECKS``; None where the record has no usable id."""
    annotations: dict[str, list[int | None]] = field(default_factory=dict)
    """Ids of annotations, as above. Those of an image that is left out have its code."""

    def __bool__(self) -> bool:
        return bool(self.images or self.annotations)

    @property
    def count(self) -> int:
        """Number of records."""
        return sum(len(ids) for part in (self.images, self.annotations) for ids in part.values())

    def as_dict(self) -> dict[str, dict[str, list[int | None]]]:
        """Ids by code, of ``images`` and of ``annotations``; empty if nothing is left out."""
        return {kind: ids for kind, ids in (("images", self.images), ("annotations", self.annotations)) if ids}


def left_out_sentences(left_out: Mapping[str, Mapping[str, Sequence[int | None]]]) -> list[str]:
    """What is left out, in a sentence for each kind of error; ``left_out`` is that of :meth:`LeftOut.as_dict`."""
    sentences = []
    for kind, by_code in left_out.items():
        for code, ids in by_code.items():
            shown = ", ".join("no id" if number is None else str(number) for number in ids[:MOST_IDS])
            more = f" and {len(ids) - MOST_IDS:,} more" if len(ids) > MOST_IDS else ""
            noun = kind if len(ids) > 1 else kind.removesuffix("s")
            sentences.append(f"{len(ids):,} {noun} left out, {code}: {shown}{more}")
    return sentences


class Reader:
    """One annotation file, whose images and categories are read when it is made, and whose people later.

    Args:
        annotations: The file, or its content.
        category: Names of the categories that are read; empty: see ``file_schema.choose_categories``.
        take_image: Called with each record of an image that is in order. ``rows`` says later which of them count.
        people: Whether the file must have annotations.

    Raises:
        DataError: The file cannot be read, or has no such lists.
    """

    def __init__(
        self,
        annotations: Lists,
        *,
        category: Sequence[str] = (),
        take_image: Callable[[Mapping[str, Any]], None] | None = None,
        people: bool = True,
    ) -> None:
        self.file = "the annotations" if isinstance(annotations, Mapping) else str(annotations)
        """The file, for messages."""
        self.findings = Findings()
        self.keypoint_people = 1 - people
        """Keypoint people without errors, known after :meth:`read_people`."""
        self.left_out = LeftOut()
        """The records with errors; complete after :meth:`read_people`."""
        self.image_ids = np.zeros(0, np.int64)
        """(I,) int64, ascending: the images without those that are left out."""
        self.sizes = np.zeros((0, 2), np.int64)
        """(I, 2) int64, their width and height."""
        self.rows = np.zeros(0, np.int64)
        """(I,) the number of each of ``image_ids`` among the records that ``take_image`` got."""
        self.bad_segmentations = np.zeros(0, np.int64)
        """(I,) int64, crowds and people without keypoints of each image whose segmentation cannot be used."""
        self._lists = annotations
        self._seen, self._take_image = 0, take_image
        self._ids, self._widths, self._heights = array("q"), array("q"), array("q")
        self._names, self._name_ends, self._name_marks = bytearray(), array("q", [0]), array("q")
        categories: list[Any] = []
        found = self._read({"images": self._add_image, "categories": categories.append})
        require_lists(self.file, found, *("images", "annotations")[: 1 + people])
        self._dropped_images = dict.fromkeys(self.left_out.images.get("bad_image_record", ()), "bad_image_record")
        self._sort_images()
        for record in categories:
            if fault := category_record_fault(record):
                self.findings.add("bad_category_record", fault)
        ids = Counter(record["id"] for record in categories if not category_record_fault(record))
        for number in [number for number, count in ids.items() if count > 1]:
            self.findings.add("bad_category_record", f"category {number}: {ids[number]} categories have this id")
        self._categories, self._wanted = categories, category

    @cached_property
    def categories(self) -> Categories:
        """Which categories are read, and why.

        Raises:
            UnclearCategory: Several can be meant, or there is none of a wanted name.
        """
        return choose_categories(self._categories, self._wanted, self.file)

    # ---------------------------------------------------------------------------------------------------- images

    def size(self, place: int) -> tuple[int, int]:
        """(width, height) of the image ``image_ids[place]``."""
        width, height = self.sizes[place].tolist()
        return width, height

    def file_name(self, place: int) -> str:
        """File name of the image ``image_ids[place]``."""
        return self._name(int(self.rows[place]))

    def _add_image(self, image: Any) -> None:
        self._seen += 1
        if fault := image_record_fault(image):
            self.findings.add("bad_image_record", fault)
            number = image.get("id") if isinstance(image, dict) else None
            self.left_out.images.setdefault("bad_image_record", []).append(number if is_integer(number) else None)
            return
        name = image["file_name"]
        self._ids.append(image["id"])
        self._widths.append(image["width"])
        self._heights.append(image["height"])
        self._names += name.encode(errors="surrogatepass")
        self._name_ends.append(len(self._names))
        self._name_marks.append(hash(name))
        if self._take_image:
            self._take_image(image)

    def _sort_images(self) -> None:
        """Find the ids and file names that come twice, and sort the rest by id."""
        if not self._seen:
            self.findings.add("no_images")
        ids = np.array(self._ids, np.int64)
        different, first, counts = np.unique(ids, return_index=True, return_counts=True)
        for row, before in repeats(ids):
            self.findings.add("duplicate_image_id", f"{self._what(row)} and {self._name(before)}")
        for row, _ in repeats(np.array(self._name_marks, np.int64)):
            self.findings.add("duplicate_file_name", self._what(row))
        if twice := different[counts > 1].tolist():
            self.left_out.images["duplicate_image_id"] = np.repeat(twice, counts[counts > 1]).tolist()
            self._dropped_images |= dict.fromkeys(twice, "duplicate_image_id")
        self.image_ids, self.rows = different[counts == 1], first[counts == 1]
        self.sizes = np.stack([np.array(self._widths, np.int64), np.array(self._heights, np.int64)], 1)[self.rows]
        self._sorted_ids = array("q", self.image_ids.tobytes())

    def _what(self, row: int) -> str:
        return f"image {self._ids[row]} ({self._name(row)})"

    def _name(self, row: int) -> str:
        return self._names[self._name_ends[row] : self._name_ends[row + 1]].decode(errors="surrogatepass")

    # ---------------------------------------------------------------------------------------------------- people

    def schema(self) -> KeypointSchema:
        """The keypoints that the file describes, for the setting ``auto``.

        Raises:
            NoSchema: Its categories list no usable names of keypoints.
        """
        return schema_of(self.categories, self.file)

    def read_people(
        self,
        schema: KeypointSchema | None,
        take: TakePerson,
        *,
        take_labels: Callable[[Labels, np.ndarray], None] | None = None,
    ) -> list[int]:
        """Read and check all annotations, and hand on those that have no error.

        Args:
            schema: The expected keypoints. None: as many as the first person has.
            take: Called with each of them, in the order of the file.
            take_labels: Called with the numbers of some of them together, before ``take``, and with the (N,) places of
                their images among ``image_ids``.

        Returns:
            The calls of ``take``, counted from 0, that must be undone: what is wrong with them only the whole file
            shows. They ascend.
        """
        self.bad_segmentations = np.zeros(len(self.image_ids), np.int64)
        people = _People(self, schema, take, take_labels)
        self._read({"annotations": people.add})
        return people.finish()

    def check(self, *, allow_errors: bool) -> None:
        """Refuse the file if it has errors.

        Args:
            allow_errors: Only because of errors that do not belong to single records, see ``findings.Check.allowed``.

        Raises:
            DataError: It is refused; the message names the errors, with examples.
        """
        errors = sorted(self.findings.errors, key=lambda error: error.code in _CONSEQUENCES)
        listed = "; ".join(map(str, errors))
        for error in errors:
            if not error.check.allowed and (error.code not in _CONSEQUENCES or len(errors) == 1):
                meaning = error.check.meaning.removesuffix(".")
                raise DataError(f"{self.file}: {error.examples[0] if error.examples else meaning}")
        if any(not error.check.allowed for error in errors):
            raise DataError(f"{self.file}: {listed}")
        if errors and allow_errors and not self.keypoint_people:
            raise DataError(
                f"{self.file}: without the records that have errors nobody has a labelled keypoint: {listed}"
            )
        if errors and not allow_errors:
            raise DataError(
                f"{self.file}: {listed}. Correct the file, or leave these records out with --allow-errors "
                "(for training: of posefleet shard); posefleet doctor says more"
            )

    def find(self, image_id: int) -> int | None:
        """Place of an image among ``image_ids``; None if it is not there."""
        place = bisect_left(self._sorted_ids, image_id)
        return place if place < len(self._sorted_ids) and self._sorted_ids[place] == image_id else None

    def image_fault(self, image_id: int) -> str:
        """Code of the error because of which an image is left out; empty if the file has no such image."""
        return self._dropped_images.get(image_id, "")

    def _read(self, takers: Mapping[str, Callable[[Any], None]]) -> set[str]:
        if not isinstance(self._lists, Mapping):
            return read_lists(self.file, takers)
        found = {key for key, values in self._lists.items() if isinstance(values, list)}
        for key in takers.keys() & found:
            for value in self._lists[key]:
                takers[key](value)
        return found


class _People:
    """Checks annotations: their fields one by one, their numbers in groups, which is faster."""

    def __init__(
        self,
        reader: Reader,
        schema: KeypointSchema | None,
        take: TakePerson,
        take_labels: Callable[[Labels, np.ndarray], None] | None,
    ) -> None:
        self._reader, self._findings, self._left_out = reader, reader.findings, reader.left_out.annotations
        self._schema = schema
        self._keypoints = len(schema) if schema else 0
        self._joined = schema is not None and is_whole_body_schema(schema)
        self._take, self._take_labels = take, take_labels
        self._plausibility = Plausibility(self._findings, schema)
        self._chosen, self._known = reader.categories.ids, reader.categories.known
        self._ids, self._image_ids = array("q"), array("q")
        self._other: Counter[int] = Counter()
        self._with_people = np.zeros(len(reader.image_ids), bool)
        self._waiting: list[Annotation] = []
        self._places: list[int] = []
        self._taken_ids = array("q")
        if schema and (text := names_differ(reader.file, reader.categories, schema)):
            self._findings.add("other_keypoints", text)

    def add(self, annotation: Any) -> None:
        """Check the fields of a record; a person's numbers wait until a group is full."""
        if fault := annotation_record_fault(annotation):
            number = annotation.get("id") if isinstance(annotation, dict) else None
            self._leave_out("bad_annotation_record", number if is_integer(number) else None, fault)
            return
        number, image_id = annotation["id"], annotation["image_id"]
        self._ids.append(number)
        self._image_ids.append(image_id)
        place = self._reader.find(image_id)
        if place is None:
            if code := self._reader.image_fault(image_id):
                self._left_out.setdefault(code, []).append(number)
            else:
                self._leave_out("unknown_image", number, f"annotation {number}: image_id {image_id}")
        elif self._is_chosen(annotation):
            self._add_person(annotation, place)

    def _is_chosen(self, annotation: Annotation) -> bool:
        category = annotation.get("category_id")
        if not self._known or category in self._chosen or (category is None and len(self._known) == 1):
            return True
        if category in self._known:
            self._other[category] += 1
        else:
            number = annotation["id"]
            what = f"annotation {number} of image {annotation['image_id']}: category_id {category}"
            self._leave_out("unknown_category", number, what.replace("category_id None", "no category_id"))
        return False

    def _add_person(self, annotation: Annotation, place: int) -> None:
        what = f"annotation {annotation['id']} of image {annotation['image_id']}"
        if self._joined and is_whole_body(annotation):
            try:
                annotation = join_parts(annotation)
            except DataError as error:
                self._leave_out("bad_annotation_record", annotation["id"], str(error))
                return
        elif "face_kpts" in annotation:
            self._findings.add("whole_body_parts")
        keypoints = annotation.get("keypoints")
        if keypoints:
            if self._schema is None and not self._keypoints:
                self._flush()
                self._keypoints = len(keypoints) // 3
            if len(keypoints) != 3 * self._keypoints:
                self._leave_out("wrong_keypoint_count", annotation["id"], f"{what} {self._count_text(len(keypoints))}")
                return
        self._waiting.append(annotation)
        self._places.append(place)
        if len(self._waiting) >= PEOPLE_AT_A_TIME:
            self._flush()

    def _count_text(self, numbers: int) -> str:
        if not self._schema:
            return f"has {numbers} numbers of keypoints, others have {3 * self._keypoints}"
        if numbers == 2 * self._keypoints:
            return f"has {numbers} numbers for {self._keypoints} keypoints; expected x, y and visibility of each"
        what = f"has {numbers / 3:g} keypoints, {self._schema.name} has {self._keypoints}"
        names = [category.get("keypoints") for category in self._reader.categories.chosen]
        if any(isinstance(listed, list) and len(listed) == self._keypoints for listed in names):
            return f"{what}, as its category"
        fitting = [name for name in shipped_names() if 3 * len(load_schema(name)) == numbers]
        advice = f"schema {' or '.join(fitting)} would fit" if fitting else "no shipped schema has as many"
        return f"{what}; {advice}"

    def _flush(self) -> None:
        """Check the numbers of the people who wait, and hand on those without errors."""
        if not self._waiting:
            return
        people, places, reader = self._waiting, self._places, self._reader
        self._waiting, self._places = [], []
        labels = Labels.of(people, reader.sizes[places], self._keypoints)
        kept = np.ones(len(people), bool)
        for row, code, example in number_faults(labels, self._schema):
            self._findings.add(code, example)
            if kept[row]:
                self._left_out.setdefault(code, []).append(labels.annotation_ids[row])
            kept[row] = False
        if not kept.all():
            labels, rows = labels.select(kept), np.flatnonzero(kept).tolist()
            people, places = [people[row] for row in rows], [places[row] for row in rows]
        self._plausibility.add(labels)
        self._with_people[places] = True
        if self._take_labels:
            self._take_labels(labels, np.array(places, np.int64))
        labelled = np.asarray(labels.labelled.any(1))
        given = np.array([-1 if a.get("num_keypoints") is None else a["num_keypoints"] for a in people], np.int64)
        marked = np.count_nonzero(labels.keypoints[..., 2] > 0, 1)
        findings = self._findings
        for row in np.flatnonzero((given >= 0) & (given != marked)).tolist():
            findings.add("wrong_num_keypoints", f"{labels.describe(row)}: says {given[row]}, has {marked[row]}")
        for row in np.flatnonzero(((labels.boxes[:, 2:].min(1) <= 0) | (labels.areas <= 0)) & ~labelled).tolist():
            what = f"{labels.describe(row)}: {labels.box(row)}, area {labels.areas[row]:g}"
            findings.add("bad_box_unlabelled", what)
        findings.add("no_area", count=sum(annotation.get("area") is None for annotation in people))
        findings.add("crowd", count=int(labels.crowd.sum()))
        findings.add("unlabelled", count=int((~labelled & ~labels.crowd).sum()))
        self._taken_ids.extend(labels.annotation_ids)
        for row, (annotation, place, has_keypoints) in enumerate(zip(people, places, labelled.tolist(), strict=True)):
            outline = None
            if not has_keypoints:
                outline = self._outline(annotation, place)
            elif not isinstance(annotation.get("segmentation"), list | dict | None):
                findings.add("bad_segmentation", f"{labels.describe(row)}: {annotation['segmentation']!r:.60}")
            self._take(place, annotation, outline)

    def _outline(self, annotation: Annotation, place: int) -> str | None:
        """The outline of a crowd or a person without keypoints, which is checked."""
        outline, fault = outline_of(annotation, self._reader.size(place))
        if fault:
            what = f"annotation {annotation['id']} of image {annotation['image_id']}"
            self._findings.add("bad_segmentation", f"{what}: {fault}")
            self._reader.bad_segmentations[place] += 1
        elif outline is None:
            self._findings.add("no_segmentation")
        return outline

    def finish(self) -> list[int]:
        """Call this after the last annotation: runs the checks that need all of them; see ``Reader.read_people``."""
        self._flush()
        findings = self._findings
        undone = self._plausibility.finish()
        for row, _ in repeats(np.array(self._ids, np.int64)):
            findings.add("duplicate_annotation_id", f"annotation {self._ids[row]} of image {self._image_ids[row]}")
        twice = {row for row, _ in repeats(np.array(self._taken_ids, np.int64))} - set(undone)
        self._left_out_later("normalised_coordinates", undone)
        self._left_out_later("duplicate_annotation_id", sorted(twice))
        if not self._plausibility.keypoint_people:
            images = len(self._reader.image_ids)
            findings.add("no_keypoint_people", f"not one person with a labelled keypoint among {images:,} images")
        self._reader.keypoint_people = self._plausibility.keypoint_people - len(undone)
        self._report_other_categories()
        findings.add("images_without_annotations", count=int((~self._with_people).sum()))
        return sorted({*undone, *twice})

    def _left_out_later(self, code: str, taken: Sequence[int]) -> None:
        if taken:
            self._left_out.setdefault(code, []).extend(self._taken_ids[number] for number in taken)

    def _report_other_categories(self) -> None:
        for category in self._reader.categories.others:
            if count := self._other[category["id"]]:
                person = category.get("name") == PERSON
                example = f"{described([category])}: {count:,}"
                self._findings.add("people_not_read" if person else "other_category", example, count)

    def _leave_out(self, code: str, number: int | None, example: str) -> None:
        self._findings.add(code, example)
        self._left_out.setdefault(code, []).append(number)


def repeats(values: np.ndarray) -> list[tuple[int, int]]:
    """(index, first index of the same value) for each of ``values`` (N,) that came before; indices ascend."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    before = first[which]
    places = np.flatnonzero(before < np.arange(len(values)))
    return list(zip(places.tolist(), before[places].tolist(), strict=True))


def read_file_names(annotation_file: str) -> dict[int, str]:
    """The file names of the images by id, in the order of their ids; the file needs no annotations (COCO's test images
    have none).

    Raises:
        DataError: The file cannot be read, or an image has an error.
    """
    reader = Reader(annotation_file, people=False)
    reader.check(allow_errors=False)
    return {number: reader.file_name(place) for place, number in enumerate(reader.image_ids.tolist())}
