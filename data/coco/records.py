"""Makes and reads the record of an image: its size and people, as shards, splits and evaluation store them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from posefleet.data.coco.annotations import Annotation, area_of, people_of
from posefleet.data.errors import DataError
from posefleet.data.keypoints import KeypointSchema
from posefleet.data.structures import People

Record = dict[str, Any]


def make_record(image: Mapping[str, Any], annotations: Sequence[Annotation]) -> Record:
    """The record of one image, with COCO's keys, without what training does not read (segmentation, urls)."""
    return {
        "image_id": image["id"],
        "file_name": image["file_name"],
        "width": image["width"],
        "height": image["height"],
        "people": [make_person(annotation) for annotation in annotations],
    }


def make_person(annotation: Annotation) -> Record:
    """The entry of one person in the record of an image."""
    keypoints = annotation.get("keypoints") or []
    return {
        "id": annotation["id"],
        "keypoints": keypoints,
        "bbox": annotation["bbox"],
        "area": area_of(annotation),
        "iscrowd": int(bool(annotation.get("iscrowd", 0))),
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
    }


def encode_record(record: Record) -> bytes:
    """The bytes of a record, or of one of its people, as a shard stores them; equal records give equal bytes.

    Raises:
        ValueError: A number is not finite.
    """
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode()


def decode_record(data: bytes, schema: KeypointSchema) -> tuple[int, tuple[int, int], People]:
    """The image id, (width, height) of the original image, and its people in pixels of that image.

    Raises:
        DataError: The bytes are not a record, or its people have another number of keypoints than ``schema``.
    """
    try:
        record = json.loads(data)
        size = (record["width"], record["height"])
        return record["image_id"], size, people_of(record["people"], schema)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"not a record: {error!r} in {data[:80]!r}") from error
