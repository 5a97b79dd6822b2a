"""Writes the images with suspects as tasks for label tools, with their labels, and reads what the tools give back.

CVAT and others read and write COCO's format. Label Studio's own JSON is the only one of its exports that keeps several
people of an image apart: a keypoint belongs to the rectangle that is its parent. Its coordinates are percent.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from posefleet.data.coco.annotations import is_keypoint_person
from posefleet.data.coco.reader import Reader
from posefleet.data.coco.records import Record
from posefleet.data.coco.split import read_coco
from posefleet.data.errors import DataError
from posefleet.data.io.files import read_json
from posefleet.data.review.suspects import Suspect
from posefleet.data.schemas.schema import KeypointSchema

HIDDEN = "hidden"
"""Label Studio's choice for a keypoint that is labelled but not visible."""
PERSON_LABEL = "instance"
"""Label Studio's label of the rectangle around the keypoints of one instance."""

Labels = dict[str, list[Record]]
"""File name -> people, with COCO's ``keypoints``, ``bbox`` and ``iscrowd``."""


def coco_tasks(
    records: Sequence[Record], suspects: Mapping[int, Sequence[Suspect]], schema: KeypointSchema, category: str
) -> dict[str, Any]:
    """The images in COCO's format; the attributes of annotations say what is doubtful, which CVAT shows.

    Args:
        records: The images that are looked at.
        suspects: By image id.
        schema: Their keypoints.
        category: Name of the category.
    """
    annotations = []
    for record in records:
        for person in record["people"]:
            own = [s for s in suspects.get(record["image_id"], ()) if s.annotation_id == person["id"]]
            doubts: dict[str, Any] = {"doubt": "; ".join(described(suspect) for suspect in own)} if own else {}
            annotations.append(
                {
                    **person,
                    "image_id": record["image_id"],
                    "category_id": 1,
                    "attributes": {"occluded": False, **doubts},
                }
            )
    edges = [[a + 1, b + 1] for a, b in schema.edges]
    return {
        "images": [
            {"id": r["image_id"], "file_name": r["file_name"], "width": r["width"], "height": r["height"]}
            for r in records
        ],
        "annotations": annotations,
        "categories": [{"id": 1, "name": category, "keypoints": list(schema.keypoints), "skeleton": edges}],
    }


def label_studio_tasks(
    records: Sequence[Record], suspects: Mapping[int, Sequence[Suspect]], schema: KeypointSchema, prefix: str
) -> list[dict[str, Any]]:
    """The images as tasks of Label Studio, whose labels are pre-annotations that are edited.

    Args:
        records: The images that are looked at.
        suspects: By image id; task ``data.doubts`` says them.
        schema: Their keypoints.
        prefix: What comes before a file name in the address of its image.
    """
    tasks: list[dict[str, Any]] = []
    for record in records:
        doubts = [described(suspect) for suspect in suspects.get(record["image_id"], ())]
        regions = [region for person in record["people"] for region in _regions(person, record, schema)]
        address = prefix + quote(record["file_name"])
        data = {"image": address, "file_name": record["file_name"], "doubts": "; ".join(doubts)}
        tasks.append(
            {
                "data": data,
                "predictions": [{"model_version": "labels before the review", "result": regions}],
            }
        )
    return tasks


def label_studio_config(schema: KeypointSchema) -> str:
    """The labelling interface of Label Studio for :func:`label_studio_tasks`."""
    labels = "\n".join(f"    <Label value={quoteattr(name)}/>" for name in schema.keypoints)
    return f"""<View>
  <Header value="$doubts"/>
  <Image name="image" value="$image" zoom="true"/>
  <RectangleLabels name="box" toName="image">
    <Label value="{PERSON_LABEL}"/>
  </RectangleLabels>
  <KeyPointLabels name="keypoint" toName="image">
{labels}
  </KeyPointLabels>
  <Choices name="visibility" toName="image" perRegion="true" whenTagName="keypoint">
    <Choice value="{HIDDEN}"/>
  </Choices>
</View>
"""


def described(suspect: Suspect) -> str:
    """A suspect in words, without its image."""
    who = "nobody's" if suspect.annotation_id is None else f"annotation {suspect.annotation_id}"
    which = f" ({', '.join(suspect.keypoints)})" if suspect.keypoints else ""
    return f"{who}: {suspect.kind}{which}, {suspect.why}"


def read_corrected(path: str, schema: KeypointSchema) -> Labels:
    """The people of every image of a file that a label tool wrote: COCO's format, or Label Studio's own JSON.

    Args:
        path: Any fsspec path of a json file.
        schema: The keypoints that it must have.

    Raises:
        DataError: It cannot be read, names other keypoints, or has people of whom it is not known who they are.
    """
    content = read_json(path)
    if content is None:
        raise DataError(f"{path}: no such file")
    if isinstance(content, list):
        return _read_label_studio(path, content, schema)
    reader = Reader(path, people=False)
    if reader.categories.chosen and (names := reader.schema().keypoints) != schema.keypoints:
        raise DataError(f"{path}: its keypoints are {', '.join(names)}; expected {', '.join(schema.keypoints)}")
    return {record["file_name"]: record["people"] for record in read_coco(path, schema).records()}


# ------------------------------------------------------------------------------------------------- Label Studio


def _regions(person: Record, record: Record, schema: KeypointSchema) -> Iterator[dict[str, Any]]:
    """The regions of one person; crowds and people without keypoints have none, so that they stay as they are."""
    if not is_keypoint_person(person):
        return
    width, height = record["width"], record["height"]
    frame: dict[str, Any] = {
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "to_name": "image",
    }
    parent = f"a{person['id']}"
    left, top, wide, high = person["bbox"]
    box = {"x": 100 * left / width, "y": 100 * top / height, "width": 100 * wide / width, "height": 100 * high / height}
    value = {**box, "rotation": 0, "rectanglelabels": [PERSON_LABEL]}
    yield {**frame, "id": parent, "from_name": "box", "type": "rectanglelabels", "value": value}
    for k, name in enumerate(schema.keypoints):
        x, y, v = person["keypoints"][3 * k : 3 * k + 3]
        if v > 0:
            place = {"x": 100 * x / width, "y": 100 * y / height, "width": 0.5}
            own = {**frame, "id": f"{parent}-{k}", "parentID": parent}
            yield {
                **own,
                "from_name": "keypoint",
                "type": "keypointlabels",
                "value": {**place, "keypointlabels": [name]},
            }
            if v == 1:
                yield {**own, "from_name": "visibility", "type": "choices", "value": {**place, "choices": [HIDDEN]}}


def _read_label_studio(path: str, tasks: Sequence[Any], schema: KeypointSchema) -> Labels:
    labels: Labels = {}
    for number, task in enumerate(tasks):
        try:
            data, annotations = task["data"], task["annotations"]
            name = data.get("file_name") or data["image"]
            results = [a["result"] for a in annotations if not a.get("was_cancelled")]
            if name in labels:
                raise ValueError(f"{name} is in two tasks; export one of them")
            if results:
                labels[name] = list(_people(results[-1], schema))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = error if isinstance(error, ValueError) else f"no usable {error}"
            raise DataError(f"{path}: task {number}: {what}; expected Label Studio's JSON export") from error
    return labels


def _people(regions: Sequence[Mapping[str, Any]], schema: KeypointSchema) -> Iterator[Record]:
    boxes: dict[str, list[float]] = {}
    points: dict[str, list[float]] = {}
    hidden = {r["id"] for r in regions if r["type"] == "choices" and HIDDEN in r["value"].get("choices", ())}
    for region in regions:
        if region["type"] == "rectanglelabels":
            sides = [("x", "width"), ("y", "height"), ("width", "width"), ("height", "height")]
            boxes[region["id"]] = [region["value"][key] * region[f"original_{of}"] / 100 for key, of in sides]
            points[region["id"]] = [0.0] * (3 * len(schema))
    for region in regions:
        if region["type"] != "keypointlabels":
            continue
        (name,), parent = region["value"]["keypointlabels"], _parent_of(region, boxes)
        if name not in schema.keypoints:
            raise ValueError(f"keypoint {name!r} is not one of {', '.join(schema.keypoints)}")
        x = region["value"]["x"] * region["original_width"] / 100
        y = region["value"]["y"] * region["original_height"] / 100
        k = 3 * schema.keypoints.index(name)
        if points[parent][k + 2]:
            raise ValueError(f"one instance has {name} twice")
        points[parent][k : k + 3] = [x, y, 1.0 if region["id"] in hidden else 2.0]
    for parent, box in boxes.items():
        yield {"keypoints": points[parent], "bbox": box, "iscrowd": 0}


def _parent_of(region: Mapping[str, Any], boxes: Mapping[str, Sequence[float]]) -> str:
    """The rectangle of a keypoint: its parent, or the only one that contains it."""
    if (parent := region.get("parentID")) in boxes:
        return str(parent)
    x = region["value"]["x"] * region["original_width"] / 100
    y = region["value"]["y"] * region["original_height"] / 100
    around = [name for name, (left, top, w, h) in boxes.items() if left <= x <= left + w and top <= y <= top + h]
    if len(around) != 1:
        raise ValueError(
            f"the keypoint at ({x:.0f}, {y:.0f}) has no parent and is in {len(around)} rectangles; "
            f"draw it inside the rectangle of its instance alone, or drag it onto that in the list of regions"
        )
    return around[0]


def to_json(content: Any) -> bytes:
    """JSON as files hold it."""
    return json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n"
