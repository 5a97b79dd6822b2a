"""Makes and reads the record of an image: its size and people, as shards, splits and evaluation store them.

Crowds and people without keypoints have the ``segmentation`` that losses ignore, as COCO's compressed run lengths.
Records that earlier versions wrote have none.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from posefleet.data.coco.annotations import Annotation, are_numbers, area_of, is_keypoint_person, people_of
from posefleet.data.coco.segmentations import encode_segmentation
from posefleet.data.errors import DataError
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import People

Record = dict[str, Any]


def make_record(image: Mapping[str, Any], annotations: Sequence[Annotation]) -> Record:
    """The record of one image, with COCO's keys, without what training does not read (urls, most segmentations).

    Segmentations that cannot be used are left out. ``crowdIndex``, by which CrowdPose's evaluation divides images, is
    there if the image has a number for it.
    """
    size = image["width"], image["height"]
    index = image.get("crowdIndex")
    crowd = {"crowdIndex": index} if index is not None and are_numbers([index]) and math.isfinite(index) else {}
    return {
        "image_id": image["id"],
        "file_name": image["file_name"],
        "width": image["width"],
        "height": image["height"],
        **crowd,
        "people": [make_person(annotation, outline_of(annotation, size)[0], size) for annotation in annotations],
    }


def make_person(annotation: Annotation, outline: str | None, size: tuple[int, int]) -> Record:
    """The entry of one person in the record of an image.

    Args:
        annotation: COCO's.
        outline: From :func:`outline_of`.
        size: (width, height) of the image.
    """
    keypoints = annotation.get("keypoints") or []
    person = {
        "id": annotation["id"],
        "keypoints": keypoints,
        "bbox": annotation["bbox"],
        "area": area_of(annotation),
        "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
    }
    if outline is not None:
        person["segmentation"] = {"size": [size[1], size[0]], "counts": outline}
    return person


def outline_of(annotation: Annotation, size: tuple[int, int]) -> tuple[str | None, str]:
    """The segmentation of a crowd or of a person without keypoints.

    Args:
        annotation: COCO's.
        size: (width, height) of the image.

    Returns:
        Compressed run lengths, None for keypoint people and where there is no usable segmentation; and what is wrong
        with the segmentation, empty if nothing is.
    """
    if is_keypoint_person(annotation):
        return None, ""
    try:
        return encode_segmentation(annotation.get("segmentation"), size), ""
    except DataError as error:
        return None, str(error)


def encode_record(record: Record) -> bytes:
    """The bytes of a record, or of one of its people, as a shard stores them; equal records give equal bytes.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def decode_record(data: bytes, schema: KeypointSchema) -> tuple[int, tuple[int, int], People, tuple[str | None, ...]]:
    """The image id, (width, height) of the original image, its people in pixels of that image, and their outlines.

    Raises:
        DataError: The bytes are not a record, or its people have another number of keypoints than ``schema``.
    """
    try:
        record = json.loads(data)
        size = (record["width"], record["height"])
        return record["image_id"], size, people_of(record["people"], schema), outlines_in(record)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"not a record: {error!r} in {data[:80]!r}") from error


def outlines_in(record: Record) -> tuple[str | None, ...]:
    """The stored segmentation of each person of a record, see ``Sample.outlines``.

    Raises:
        DataError: The run lengths are no text.
    """
    found = tuple(person["segmentation"]["counts"] if "segmentation" in person else None for person in record["people"])
    for outline in found:
        if not isinstance(outline, str | None):
            raise DataError(f"a record has a segmentation whose counts are a {type(outline).__name__}, expected a text")
    return found if any(outline is not None for outline in found) else ()


def count_people(record: Record) -> dict[str, int]:
    """Numbers of one image: itself, its people by kind, and the segmentations of those without keypoints."""
    people = record["people"]
    keypoint_people = sum(map(is_keypoint_person, people))
    crowd = sum(bool(person["iscrowd"]) for person in people)
    return {
        "images": 1,
        "people": len(people),
        "keypoint_people": keypoint_people,
        "crowd": crowd,
        "unlabelled": len(people) - keypoint_people - crowd,
        "segmentations": sum("segmentation" in person for person in people),
    }
