"""Packs the annotated people and the predicted poses of a whole data set into flat arrays for evaluation.

Coordinates are float64 pixels of the original images, as in COCO's own evaluation.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from posefleet.data.coco.annotations import Annotation, area_of
from posefleet.data.coco.reader import Reader
from posefleet.data.errors import DataError, NoSchema
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses

PEOPLE_AT_A_TIME = 1024
"""Annotations that are converted to arrays together."""


@dataclass(frozen=True, slots=True)
class GroundTruth:
    """The people of a data set, image after image. Build it with :meth:`from_coco` or :meth:`from_records`."""

    image_ids: np.ndarray
    """(I,) int64, ascending; images without people included."""
    sizes: np.ndarray
    """(I, 2) float64, width and height."""
    crowd_index: np.ndarray
    """(I,) float64, CrowdPose's ``crowdIndex``; NaN where the image has none."""
    image: np.ndarray
    """(P,) int64, each person's image as a row of ``image_ids``; ascending."""
    keypoints: np.ndarray
    """(P, K, 2) float64 xy."""
    visibility: np.ndarray
    """(P, K) float64, 0 where the keypoint is not labelled."""
    corners_and_sizes: np.ndarray
    """(P, 4) float64, COCO's ``bbox``: left, top, width, height."""
    areas: np.ndarray
    """(P,) float64, square pixels; ``AREA_OF_BOX`` of the box where the annotation has none."""
    crowd: np.ndarray
    """(P,) bool, True for a region that covers a group."""
    num_keypoints: np.ndarray
    """(P,) int64 as annotated: COCO ignores a person with 0 here, whatever ``visibility`` is."""

    @property
    def ignored(self) -> np.ndarray:
        """(P,) bool: crowds and people without labelled keypoints, who count neither way."""
        ignored: np.ndarray = self.crowd | (self.num_keypoints == 0)
        return ignored

    @classmethod
    def from_coco(
        cls,
        source: str | Path | Mapping[str, Any],
        schema: KeypointSchema | None = None,
        *,
        category: Sequence[str] = (),
        allow_errors: bool = False,
    ) -> Self:
        """Read COCO annotations, from a json file (any fsspec path) or already loaded.

        Args:
            source: The file, or its content.
            schema: Keypoints of the annotations. None: those that the file names; if it names none, as many as the
                first person has.
            category: Names of the categories that are read; empty: the only one that can be meant.
            allow_errors: Leave out the records that have errors, instead of refusing the file.

        Raises:
            DataError: The file cannot be read, has no keypoint person, or has records with errors; people with
                different numbers of keypoints are an error.
        """
        crowd_index: dict[int, float] = {}

        def take_image(image: Mapping[str, Any]) -> None:
            if image.get("crowdIndex") is not None:
                crowd_index[image["id"]] = image["crowdIndex"]

        reader = Reader(source, category=category, take_image=take_image)
        with suppress(NoSchema):
            schema = schema or reader.schema()
        taken: list[tuple[int, Annotation]] = []
        undone = set(reader.read_people(schema, lambda place, person, _: taken.append((place, person))))
        reader.check(allow_errors=allow_errors)
        people: list[list[Annotation]] = [[] for _ in reader.image_ids]
        for number, (place, person) in enumerate(taken):
            if number not in undone:
                people[place].append(_counted(person))
        sizes: list[tuple[int, int]] = [(width, height) for width, height in reader.sizes.tolist()]
        images = zip(reader.image_ids.tolist(), sizes, people, strict=True)
        return cls.from_records(images, crowd_index=crowd_index)

    @classmethod
    def from_records(
        cls,
        records: Iterable[tuple[int, tuple[int, int], Sequence[Annotation]]],
        *,
        crowd_index: Mapping[int, float] | None = None,
    ) -> Self:
        """Pack images with their people as shards store them.

        Args:
            records: (image id, (width, height), annotations) of every image, in any order; the annotations have
                COCO's keys ``keypoints``, ``bbox``, ``area``, ``iscrowd``, ``num_keypoints``.
            crowd_index: CrowdPose's ``crowdIndex`` by image id; it is looked up after the last record.

        Raises:
            DataError: An image comes twice, or people differ in their number of keypoints.
        """
        ids, sizes, counts, people = array("q"), array("d"), array("q"), _People()
        for image_id, size, annotations in records:
            ids.append(image_id)
            sizes.extend(size)
            counts.append(len(annotations))
            people.add(annotations)
        image_ids = np.array(ids, np.int64)
        order = np.argsort(image_ids, kind="stable")
        image_ids = image_ids[order]
        check_unique(image_ids)
        crowd_index = crowd_index or {}
        image = np.repeat(np.argsort(order), np.array(counts, np.int64))  # the new row of each person's image
        sorted_before = bool((image[1:] >= image[:-1]).all())
        by_image: Any = slice(None) if sorted_before else np.argsort(image, kind="stable")  # a slice copies nothing
        keypoints = people.keypoints()[by_image]
        return cls(
            image_ids,
            np.array(sizes, np.float64).reshape(-1, 2)[order],
            np.array([crowd_index.get(image_id, np.nan) for image_id in image_ids.tolist()], np.float64),
            image[by_image],
            keypoints[..., :2],
            keypoints[..., 2],
            people.boxes()[by_image],
            people.areas()[by_image],
            people.crowd()[by_image],
            people.num_keypoints()[by_image],
        )

    def part(self, rows: slice) -> Self:
        """The consecutive images in ``rows``; people are views, not copies."""
        start, stop, _ = rows.indices(len(self.image_ids))
        people = slice(*np.searchsorted(self.image, (start, stop)).tolist())
        return type(self)(
            self.image_ids[rows],
            self.sizes[rows],
            self.crowd_index[rows],
            self.image[people] - start,
            self.keypoints[people],
            self.visibility[people],
            self.corners_and_sizes[people],
            self.areas[people],
            self.crowd[people],
            self.num_keypoints[people],
        )

    def select(self, image_ids: Iterable[int]) -> Self:
        """The images with these ids, and their people.

        Raises:
            DataError: An image is not in the ground truth.
        """
        wanted = np.unique(np.fromiter(image_ids, np.int64))
        rows = np.searchsorted(self.image_ids, wanted)
        found = self.image_ids[np.minimum(rows, len(self.image_ids) - 1)] == wanted if len(self.image_ids) else rows < 0
        if not found.all():
            missing = wanted[~found]
            raise DataError(f"{len(missing)} images are not in the ground truth, such as {missing[:5].tolist()}")
        new_row = np.full(len(self.image_ids), -1)
        new_row[rows] = np.arange(len(wanted))
        kept = new_row[self.image] >= 0
        return type(self)(
            wanted,
            self.sizes[rows],
            self.crowd_index[rows],
            new_row[self.image[kept]],
            self.keypoints[kept],
            self.visibility[kept],
            self.corners_and_sizes[kept],
            self.areas[kept],
            self.crowd[kept],
            self.num_keypoints[kept],
        )


def check_unique(image_ids: np.ndarray) -> None:
    """Raise ``DataError`` unless (I,) ids of evaluated images, ascending, are all different."""
    twice = image_ids[1:][image_ids[1:] == image_ids[:-1]]
    if len(twice):
        raise DataError(f"image {twice[0]} is in the ground truth twice: its people would count twice")


@dataclass(frozen=True, slots=True)
class PoseTable:
    """The best poses of every image, image after image and best first."""

    image: np.ndarray
    """(N,) int64, each pose's image as a row of the ground truth's ``image_ids``; ascending."""
    keypoints: np.ndarray
    """(N, K, 2) float64 xy."""
    scores: np.ndarray
    """(N,) float64."""
    areas: np.ndarray
    """(N,) float64, square pixels of the tight box of the keypoints, by which COCO's areas medium and large leave out
    poses."""

    def part(self, rows: slice) -> Self:
        """The poses of the consecutive images in ``rows``."""
        poses = slice(*np.searchsorted(self.image, (rows.start, rows.stop)).tolist())
        return type(self)(self.image[poses] - rows.start, self.keypoints[poses], self.scores[poses], self.areas[poses])

    def among(self, chosen: np.ndarray) -> Self:
        """The poses of the images where ``chosen`` (I,) bool is True."""
        kept = chosen[self.image]
        image = np.cumsum(chosen)[self.image[kept]] - 1
        return type(self)(image, self.keypoints[kept], self.scores[kept], self.areas[kept])

    @classmethod
    def pack(
        cls, predictions: Mapping[int, Poses], ground_truth: GroundTruth, schema: KeypointSchema, max_poses: int
    ) -> Self:
        """The ``max_poses`` best poses of each image of ``ground_truth``; equal scores keep their order.

        Raises:
            DataError: A pose has another number of keypoints than ``schema``, or is not finite.
        """
        given = [(row, predictions[i]) for row, i in enumerate(ground_truth.image_ids.tolist()) if i in predictions]
        given = [(row, poses) for row, poses in given if len(poses)]
        for row, poses in given:
            if poses.keypoints.shape[1] != len(schema):
                raise DataError(
                    f"image {ground_truth.image_ids[row]}: poses have {poses.keypoints.shape[1]} keypoints, "
                    f"{schema.name} has {len(schema)}"
                )
        if not given:
            return cls(np.zeros(0, np.int64), np.zeros((0, len(schema), 2)), np.zeros(0), np.zeros(0))
        image = np.repeat([row for row, _ in given], [len(poses) for _, poses in given])
        keypoints = torch.cat([poses.keypoints.detach().cpu() for _, poses in given]).double().numpy()
        scores = torch.cat([poses.scores.detach().cpu() for _, poses in given]).double().numpy()
        finite = np.isfinite(keypoints).all((1, 2)) & np.isfinite(scores)
        if not finite.all():
            culprit = ground_truth.image_ids[image[~finite][0]]
            raise DataError(f"image {culprit}: a predicted keypoint or score is not finite; COCO scores all keypoints")
        order = np.lexsort((-scores, image))
        image = image[order]
        rank = np.arange(len(image)) - np.searchsorted(image, image)
        order = order[rank < max_poses]
        keypoints = keypoints[order]
        return cls(image[rank < max_poses], keypoints, scores[order], np.ptp(keypoints, axis=1).prod(1))


def _counted(person: Annotation) -> Annotation:
    """The annotation with the number of its labelled keypoints, which the file may have wrong."""
    return {**person, "num_keypoints": sum(v > 0 for v in (person.get("keypoints") or ())[2::3])}


class _People:
    """Collects annotations as numbers, some at a time: an annotation of seventeen keypoints is fifty Python objects."""

    def __init__(self) -> None:
        self._waiting: list[Annotation] = []
        self._count = 0
        self._lengths: set[int] = set()
        self._keypoints, self._boxes, self._areas = array("d"), array("d"), array("d")
        self._crowd, self._num_keypoints = array("b"), array("q")

    def add(self, people: Iterable[Annotation]) -> None:
        """Add some people.

        Raises:
            DataError: They differ in their number of keypoints.
        """
        self._waiting.extend(people)
        if len(self._waiting) >= PEOPLE_AT_A_TIME:
            self._pack()

    def keypoints(self) -> np.ndarray:
        """(P, K, 3) float64 x, y, v; a person without the key has no labelled keypoint."""
        self._pack()
        return np.asarray(self._keypoints).reshape(self._count, self._length // 3, 3)

    def boxes(self) -> np.ndarray:
        """(P, 4) float64."""
        return np.asarray(self._boxes).reshape(-1, 4)

    def areas(self) -> np.ndarray:
        """(P,) float64."""
        return np.asarray(self._areas)

    def crowd(self) -> np.ndarray:
        """(P,) bool."""
        return np.asarray(self._crowd).astype(bool)

    def num_keypoints(self) -> np.ndarray:
        """(P,) int64 as annotated; the number of labelled keypoints where the annotation has none."""
        return np.asarray(self._num_keypoints)

    @property
    def _length(self) -> int:
        return max(self._lengths, default=0)

    def _pack(self) -> None:
        people, self._waiting = self._waiting, []
        unknown = not self._length
        self._lengths |= {len(person["keypoints"]) for person in people if person.get("keypoints")}
        if len(self._lengths) > 1 or self._length % 3:
            raise DataError(
                f"people have {' or '.join(map(str, sorted(self._lengths)))} numbers in 'keypoints'; "
                "expected x, y, v of the same keypoints for everybody"
            )
        if unknown:  # nobody before this had keypoints, so their rows were empty
            self._keypoints.frombytes(bytes(8 * self._count * self._length))
        nothing = [0] * self._length
        keypoints = np.array([person.get("keypoints") or nothing for person in people], np.float64)
        counted = (keypoints.reshape(len(people), self._length // 3, 3)[..., 2] > 0).sum(1).tolist()
        self._keypoints.frombytes(keypoints.tobytes())
        self._num_keypoints.extend(p.get("num_keypoints", n) for p, n in zip(people, counted, strict=True))
        self._count += len(people)
        for person in people:
            self._boxes.extend(person["bbox"])
            self._areas.append(area_of(person))
            self._crowd.append(bool(person.get("iscrowd", 0)))
