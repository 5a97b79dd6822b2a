"""The annotated people and the predicted poses of a whole data set as flat arrays: what evaluation works on.

Everything is float64 and in pixels of the original images, as COCO's own evaluation has it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from posefleet.data.coco import Annotation, area_of, load_json, person_category_ids
from posefleet.data.errors import DataError
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import Poses


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
    """(P,) bool, a region that covers a group."""
    num_keypoints: np.ndarray
    """(P,) int64 as annotated: COCO ignores a person who says 0, whatever the keypoints say."""

    @property
    def ignored(self) -> np.ndarray:
        """(P,) bool: crowds and people without labelled keypoints, who count neither way."""
        ignored: np.ndarray = self.crowd | (self.num_keypoints == 0)
        return ignored

    @classmethod
    def from_coco(cls, source: str | Path | Mapping[str, Any]) -> Self:
        """Read COCO annotations, from a json file (any fsspec path) or already loaded.

        Raises:
            DataError: The source lacks what evaluation needs, or its people differ in their number of keypoints.
        """
        content = load_json(str(source)) if isinstance(source, str | Path) else source
        people: dict[int, list[Annotation]] = {image["id"]: [] for image in content["images"]}
        categories = person_category_ids(content.get("categories", []))
        for annotation in content["annotations"]:
            if annotation.get("category_id", 1) in categories and annotation["image_id"] in people:
                people[annotation["image_id"]].append(annotation)
        crowd_index = {image["id"]: image["crowdIndex"] for image in content["images"] if "crowdIndex" in image}
        images = ((i["id"], (i.get("width", 0), i.get("height", 0)), people[i["id"]]) for i in content["images"])
        return cls.from_records(images, crowd_index=crowd_index)

    @classmethod
    def from_records(
        cls,
        records: Iterable[tuple[int, tuple[int, int], Sequence[Annotation]]],
        *,
        crowd_index: Mapping[int, float] | None = None,
    ) -> Self:
        """Pack images with their people as shards keep them.

        Args:
            records: (image id, (width, height), annotations) of every image, in any order; the annotations have
                COCO's keys ``keypoints``, ``bbox``, ``area``, ``iscrowd``, ``num_keypoints``.
            crowd_index: CrowdPose's ``crowdIndex`` by image id.

        Raises:
            DataError: An image comes twice, or people differ in their number of keypoints.
        """
        images = sorted(records, key=lambda record: record[0])
        ids = [record[0] for record in images]
        twice = [one for one, other in pairwise(ids) if one == other]
        if twice:
            raise DataError(f"image {twice[0]} is in the ground truth twice: its people would count twice")
        people = [annotation for _, _, annotations in images for annotation in annotations]
        keypoints = _keypoints(people)
        crowd_index = crowd_index or {}
        return cls(
            np.array(ids, np.int64),
            np.array([size for _, size, _ in images], np.float64).reshape(-1, 2),
            np.array([crowd_index.get(image_id, np.nan) for image_id in ids], np.float64),
            np.repeat(np.arange(len(images)), [len(annotations) for _, _, annotations in images]),
            keypoints[..., :2],
            keypoints[..., 2],
            np.array([person["bbox"] for person in people], np.float64).reshape(-1, 4),
            np.array([area_of(person) for person in people], np.float64),
            np.array([bool(person.get("iscrowd", 0)) for person in people], bool),
            _num_keypoints(people, keypoints),
        )

    def select(self, image_ids: Iterable[int]) -> Self:
        """The same with these images only.

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


@dataclass(frozen=True, slots=True)
class PoseTable:
    """The best poses of every image, image after image and best first."""

    image: np.ndarray
    """(N,) int64, each pose's image as a row of the ground truth's ``image_ids``; ascending."""
    keypoints: np.ndarray
    """(N, K, 2) float64 xy."""
    scores: np.ndarray
    """(N,) float64."""

    @classmethod
    def pack(cls, predictions: Mapping[int, Poses], truth: GroundTruth, schema: KeypointSchema, max_poses: int) -> Self:
        """The ``max_poses`` best poses of each image of ``truth``; equal scores keep their order.

        Raises:
            DataError: A pose has another number of keypoints than ``schema``, or is not finite.
        """
        given = [(row, predictions[i]) for row, i in enumerate(truth.image_ids.tolist()) if i in predictions]
        given = [(row, poses) for row, poses in given if len(poses)]
        for row, poses in given:
            if poses.keypoints.shape[1] != len(schema):
                raise DataError(
                    f"image {truth.image_ids[row]}: poses have {poses.keypoints.shape[1]} keypoints, "
                    f"{schema.name} has {len(schema)}"
                )
        if not given:
            return cls(np.zeros(0, np.int64), np.zeros((0, len(schema), 2)), np.zeros(0))
        image = np.repeat([row for row, _ in given], [len(poses) for _, poses in given])
        keypoints = torch.cat([poses.keypoints.detach().cpu() for _, poses in given]).double().numpy()
        scores = torch.cat([poses.scores.detach().cpu() for _, poses in given]).double().numpy()
        finite = np.isfinite(keypoints).all((1, 2)) & np.isfinite(scores)
        if not finite.all():
            culprit = truth.image_ids[image[~finite][0]]
            raise DataError(f"image {culprit}: a predicted keypoint or score is not finite; COCO scores all keypoints")
        order = np.lexsort((-scores, image))
        image = image[order]
        rank = np.arange(len(image)) - np.searchsorted(image, image)
        order = order[rank < max_poses]
        return cls(image[rank < max_poses], keypoints[order], scores[order])


def _keypoints(people: Sequence[Annotation]) -> np.ndarray:
    """(P, K, 3) float64 x, y, v; a person without the key has no labelled keypoint."""
    lengths = {len(person["keypoints"]) for person in people if person.get("keypoints")}
    if len(lengths) > 1 or any(length % 3 for length in lengths):
        raise DataError(
            f"people have {' or '.join(map(str, sorted(lengths)))} numbers in 'keypoints'; "
            "expected x, y, v of the same keypoints for everybody"
        )
    length = max(lengths, default=0)
    nothing = [0] * length
    rows = np.array([person.get("keypoints") or nothing for person in people], np.float64)
    return rows.reshape(len(people), length // 3, 3)


def _num_keypoints(people: Sequence[Annotation], keypoints: np.ndarray) -> np.ndarray:
    counted = (keypoints[..., 2] > 0).sum(1).tolist()
    annotated = [person.get("num_keypoints", count) for person, count in zip(people, counted, strict=True)]
    return np.array(annotated, np.int64)
