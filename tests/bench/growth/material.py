"""Data sets of any size that cost little to make: annotations as large as COCO's, pictures where pictures matter."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from posefleet.data.coco.records import Record, make_record
from posefleet.data.images import encode_jpeg
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards.layout import Manifest, write_manifest, write_shard
from posefleet.data.shards.plan import shard_name
from posefleet.data.structures import Poses

SPLIT = "train2017"
PEOPLE = (2, 1, 3, 0, 4, 1, 2, 5, 1, 3)
"""In images, in turns: 2.2 in the mean, as in COCO's train2017 (262,465 in 118,287 images)."""
LABELLED = 0.57
"""Share of them with keypoints (149,813 in train2017)."""
WIDTH, HEIGHT = 640, 480
PER_SHARD = 1000
VARIANTS = 997
"""Different people that data sets are made of."""


def write_coco(root: Path, images: int) -> None:
    """A split in COCO's layout: about 2 KB of json an image, as train2017 has, and files of 100 to 220 KB.

    The files are holes: they have a size and no content.
    """
    folder, file = root / SPLIT, root / "annotations" / f"person_keypoints_{SPLIT}.json"
    folder.mkdir(parents=True)
    file.parent.mkdir()
    people = [_person_json(number) for number in range(VARIANTS)]
    with file.open("w") as out:
        out.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        for number in range(images):
            image = _image(number)
            image |= {"license": 3, "coco_url": f"http://images.example.org/{SPLIT}/{image['file_name']}"}
            image |= {"date_captured": "2013-11-14 11:18:45", "flickr_url": f"http://farm9.example.org/{number}_z.jpg"}
            out.write(", " * (number > 0) + json.dumps(image))
        out.write('], "annotations": [')
        for number, image_id in enumerate(_owners(images)):
            head = f'{{"id": {number + 1}, "image_id": {image_id}, "category_id": 1, '
            out.write(", " * (number > 0) + head + people[number % VARIANTS])
        out.write('], "categories": [{"id": 1, "name": "person", "supercategory": "person"}]}')
    for number in range(images):
        descriptor = os.open(folder / _image(number)["file_name"], os.O_CREAT | os.O_WRONLY)
        os.truncate(descriptor, 100_000 + number * 7919 % 120_000)
        os.close(descriptor)


def write_shards(root: Path, samples: int) -> None:
    """Shards of ``PER_SHARD`` tiny pictures that all are the same file under several names."""
    first = min(samples, PER_SHARD)
    image = encode_jpeg(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
    records = records_of(first)
    info = write_shard(str(root), shard_name(0), ((f"{r['image_id']:012d}", image, _as_small(r)) for r in records))
    count = -(-samples // PER_SHARD)
    for number in range(1, count):
        for suffix in ("tar", "json"):
            os.link(root / f"{shard_name(0)}.{suffix}", root / f"{shard_name(number)}.{suffix}")
    shards = tuple(
        type(info)(shard_name(number), info.samples, info.labelled, info.bytes, info.sha256) for number in range(count)
    )
    write_manifest(str(root), Manifest(1, SPLIT, COCO17, "0" * 64, shards, {}, ()))


def records_of(images: int) -> Iterator[Record]:
    """The records of images, one after the other, as a shard gives them."""
    people = [json.loads("{" + _person_json(number)) for number in range(VARIANTS)]
    number = 0
    for index in range(images):
        annotations = []
        for _ in range(PEOPLE[index % len(PEOPLE)]):
            annotations.append({"id": number + 1, **people[number % VARIANTS]})
            number += 1
        yield make_record(_image(index), annotations)


def poses_of(images: int, per_image: int) -> Mapping[int, Poses]:
    """Poses near the people of :func:`records_of`, and others that fit nobody, ``per_image`` in each image."""
    rng = np.random.default_rng(0)
    scores = torch.linspace(0.9, 0.1, per_image)
    found = {}
    for record in records_of(images):
        points = rng.uniform(0, HEIGHT, (per_image, len(COCO17), 2))
        for row, person in enumerate(record["people"][:per_image]):
            if any(person["keypoints"]):
                points[row] = np.reshape(person["keypoints"], (-1, 3))[:, :2] + rng.normal(0, 4, (len(COCO17), 2))
        keypoints = torch.from_numpy(points.astype(np.float32))
        found[record["image_id"]] = Poses(keypoints, torch.ones(keypoints.shape[:2]), scores)
    return found


def _image(number: int) -> dict[str, Any]:
    return {"id": number + 1, "file_name": f"{number + 1:012d}.jpg", "height": HEIGHT, "width": WIDTH}


def _as_small(record: Record) -> Record:
    """For a picture of a tenth of the size, which no segmentation fits."""
    people = [{key: value for key, value in person.items() if key != "segmentation"} for person in record["people"]]
    return {**record, "width": WIDTH // 10, "height": HEIGHT // 10, "people": people}


def _owners(images: int) -> Iterator[int]:
    """The image id of each annotation, in an order as mixed as COCO's."""
    step = next(step for step in (104_729, 104_723, 104_717) if images % step)
    for place in range(images):
        index = place * step % images
        yield from [index + 1] * PEOPLE[index % len(PEOPLE)]


def _person_json(number: int) -> str:
    """An annotation without its ids and its first bracket."""
    rng = np.random.default_rng(number)
    left, top, width, height = rng.uniform(5, 150), rng.uniform(5, 80), rng.uniform(60, 400), rng.uniform(100, 380)
    points = np.stack([left + width * rng.random(17), top + height * rng.random(17)], 1).round().astype(int)
    visible = rng.integers(0, 3, 17) if rng.random() < LABELLED else np.zeros(17, int)
    keypoints = np.column_stack([points * (visible > 0)[:, None], visible]).ravel().tolist()
    angle, radius = np.linspace(0, 2 * np.pi, 25), rng.uniform(0.3, 0.5, 25)
    outline = np.stack(
        [left + width * (0.5 + radius * np.cos(angle)), top + height * (0.5 + radius * np.sin(angle))], 1
    )
    person = {
        "bbox": [round(value, 2) for value in (left, top, width, height)],
        "area": round(0.6 * width * height, 4),
        "iscrowd": 0,
        "num_keypoints": int((visible > 0).sum()),
        "keypoints": keypoints,
        "segmentation": [outline.round(2).ravel().tolist()],
    }
    return json.dumps(person).removeprefix("{")
