"""Finds what is wrong with a data set before training does.

    python -m posefleet.data.doctor /data/coco --split val2017

reads the annotation file and every image of a split and says what it found: errors make training wrong or
impossible, warnings are worth a look. ``symptoms.py`` lists what it knows.
"""

import argparse
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
from rich.console import Console
from rich.progress import track

from posefleet.data.coco import (
    AREA_OF_BOX,
    TURNED_ORIENTATIONS,
    Source,
    are_numbers,
    category_records,
    exif_orientation,
    find_source,
    find_splits,
    image_path,
    is_integer,
    load_json,
    person_category_ids,
    verify_image,
)
from posefleet.data.errors import DataError
from posefleet.data.keypoints import KeypointSchema, load_schema
from posefleet.data.symptoms import Finding, Findings, Report, Statistics, write_reports

BORDER = 1.0
"""Pixels that a keypoint or box may lie outside its image; COCO's own annotations reach the border."""
MANY_OUTSIDE = 0.01
"""From this share of labelled keypoints outside their image on, it is no slip but the wrong coordinates."""
CONSTANT_SHARE, CONSTANT_COUNT = 0.05, 5
"""A keypoint is suspicious when this share of its labels, and this many, are one and the same point."""
DUPLICATE_KEYPOINTS = 3
"""People with fewer labelled keypoints may well agree by chance."""

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Labels:
    """The keypoints of all people of a file that have them in full."""

    annotation_ids: list[Any]
    image_ids: list[Any]
    sizes: np.ndarray  # (N, 2) width, height of their images
    keypoints: np.ndarray  # (N, K, 3) x, y, v
    crowd: np.ndarray  # (N,) bool

    @property
    def labelled(self) -> np.ndarray:
        """(N, K) bool; nothing of a crowd is labelled."""
        mask: np.ndarray = (self.keypoints[..., 2] > 0) & ~self.crowd[:, None]
        return mask


def examine(
    source: Source,
    schema: KeypointSchema,
    *,
    check_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Look for every fault of ``SYMPTOMS`` in one split; never raises for what is in the files.

    Args:
        source: See ``find_source``.
        schema: What the keypoints should be.
        check_images: Also read and decode every image.
        workers: Threads that read images; as many as there are cores when not given.
        progress: Show a progress bar on stderr.
    """
    findings, statistics = Findings(), Statistics()
    try:
        content = load_json(source.annotation_file)
        images, annotations = (_list(content, key, source) for key in ("images", "annotations"))
    except DataError as error:
        findings.add("unreadable_annotations", str(error))
        return Report(source.annotation_file, schema.name, False, tuple(findings), statistics)
    by_id = _check_image_records(images, findings)
    labels = _check_annotations(annotations, by_id, category_records(content), schema, findings)
    _check_keypoints(labels, schema, findings)
    if check_images:
        _check_images(list(by_id.values()), source, findings, workers or os.cpu_count() or 1, progress)
    statistics = _statistics(by_id, labels, schema, findings)
    return Report(source.annotation_file, schema.name, check_images, tuple(findings), statistics)


def _list(content: Json, key: str, source: Source) -> list[Any]:
    if not isinstance(content.get(key), list):
        raise DataError(f"{source.annotation_file}: no list {key!r}; this is not a COCO annotation file")
    return list(content[key])


# ------------------------------------------------------------------------------------------------------- the json


def _check_image_records(images: list[Any], findings: Findings) -> dict[int, Json]:
    by_id: dict[int, Json] = {}
    names: set[str] = set()
    if not images:
        findings.add("no_images")
    for image in images:
        if not _is_image_record(image):
            findings.add("bad_image_record", str(image)[:100])
            continue
        what = f"image {image['id']} ({image['file_name']})"
        if image["id"] in by_id:
            findings.add("duplicate_image_id", f"{what} and {by_id[image['id']]['file_name']}")
        if image["file_name"] in names:
            findings.add("duplicate_file_name", what)
        names.add(image["file_name"])
        by_id.setdefault(image["id"], image)
    return by_id


def _is_image_record(image: Any) -> bool:
    return (
        isinstance(image, dict)
        and is_integer(image.get("id"))
        and isinstance(image.get("file_name"), str)
        and all(is_integer(image.get(side)) and image[side] > 0 for side in ("width", "height"))
    )


def _check_annotations(
    annotations: list[Any],
    images: Mapping[int, Json],
    categories: list[Any],
    schema: KeypointSchema,
    findings: Findings,
) -> _Labels:
    known, people = {c["id"] for c in categories}, person_category_ids(categories)
    seen: set[int] = set()
    good: list[Json] = []
    for annotation in annotations:
        if not isinstance(annotation, dict) or not (is_integer(annotation.get("id")) and "image_id" in annotation):
            findings.add("bad_annotation_record", str(annotation)[:100])
            continue
        what = f"annotation {annotation['id']} of image {annotation['image_id']}"
        category = annotation.get("category_id", 1)
        if annotation["id"] in seen:
            findings.add("duplicate_annotation_id", what)
        seen.add(annotation["id"])
        if not is_integer(annotation["image_id"]) or annotation["image_id"] not in images:
            findings.add("unknown_image", what)
        elif not is_integer(category) or (known and category not in known):
            findings.add("unknown_category", f"{what}: category {category}")
        elif category not in people:
            findings.add("other_category", f"{what}: category {category}")
        elif _is_person(annotation, images[annotation["image_id"]], schema, what, findings):
            good.append(annotation)
    return _labels(good, images, schema)


def _is_person(annotation: Json, image: Json, schema: KeypointSchema, what: str, findings: Findings) -> bool:
    """Check box, area and the shape of the keypoints; whether their values can be looked at."""
    box, area = annotation.get("bbox"), annotation.get("area")
    keypoints = annotation.get("keypoints") or []
    if not (
        are_numbers(box) and len(box) == 4 and are_numbers([0 if area is None else area]) and are_numbers(keypoints)
    ):
        findings.add("bad_annotation_record", f"{what}: bbox {box}, area {area}, keypoints {keypoints}"[:100])
        return False
    if keypoints and len(keypoints) != 3 * len(schema):
        findings.add("wrong_keypoint_count", f"{what}: {len(keypoints) / 3:g}, {schema.name} has {len(schema)}")
        return False
    if not all(map(math.isfinite, [*box, area or 0.0, *keypoints])):
        findings.add("not_finite", what)
        return False
    x, y, width, height = box
    crowd, labelled = bool(annotation.get("iscrowd", 0)), sum(v > 0 for v in keypoints[2::3])
    if area is None:
        findings.add("no_area")
        area = AREA_OF_BOX * width * height
    if crowd:
        findings.add("crowd")
    elif not labelled:
        findings.add("unlabelled")
    if min(width, height, area) <= 0:
        code = ("bad_box" if min(width, height) <= 0 else "bad_area") if labelled else "bad_box_unlabelled"
        findings.add(code, f"{what}: bbox {box}, area {area}")
    elif min(x, y) < -BORDER or x + width > image["width"] + BORDER or y + height > image["height"] + BORDER:
        findings.add("box_outside", f"{what}: bbox {box}, image {image['width']} x {image['height']}")
    if annotation.get("num_keypoints", labelled) != labelled:
        findings.add("wrong_num_keypoints", f"{what}: says {annotation['num_keypoints']}, has {labelled}")
    return True


def _labels(annotations: list[Json], images: Mapping[int, Json], schema: KeypointSchema) -> _Labels:
    nothing = [0] * (3 * len(schema))
    sizes = [(images[a["image_id"]]["width"], images[a["image_id"]]["height"]) for a in annotations]
    keypoints = [a.get("keypoints") or nothing for a in annotations]
    return _Labels(
        [a["id"] for a in annotations],
        [a["image_id"] for a in annotations],
        np.array(sizes, float).reshape(-1, 2),
        np.array(keypoints, float).reshape(-1, len(schema), 3),
        np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool),
    )


# ------------------------------------------------------------------------------------------------------- keypoints


def _check_keypoints(labels: _Labels, schema: KeypointSchema, findings: Findings) -> None:
    labelled = labels.labelled
    if not labelled.any():
        findings.add("no_keypoint_people")
        return
    wrong = ~np.isin(labels.keypoints[..., 2], (0, 1, 2))
    for row, k in np.argwhere(wrong).tolist():
        where = f"annotation {labels.annotation_ids[row]}: {schema.keypoints[k]}"
        findings.add("bad_visibility", f"{where} has visibility {labels.keypoints[row, k, 2]:g}")
    _check_inside(labels, schema, findings)
    _check_duplicates(labels, findings)
    for row in np.flatnonzero(_swapped(labels.keypoints * labelled[..., None], schema)).tolist():
        findings.add("left_right_swapped", _who(labels, row))
    for k, name in enumerate(schema.keypoints):
        points = labels.keypoints[labelled[:, k], k, :2]
        if not len(points):
            findings.add("never_labelled", name)
            continue
        places, counts = np.unique(points, axis=0, return_counts=True)
        top = counts.argmax()
        if counts[top] >= max(CONSTANT_COUNT, CONSTANT_SHARE * len(points)):
            x, y = places[top].tolist()
            findings.add("constant_keypoint", f"{name}: ({x:g}, {y:g}) in {counts[top]} of {len(points)} people")


def _check_inside(labels: _Labels, schema: KeypointSchema, findings: Findings) -> None:
    points, sizes = labels.keypoints[..., :2], labels.sizes[:, None]
    outside = ((points < -BORDER) | (points > sizes + BORDER)).any(-1) & labels.labelled
    many = outside.sum() > MANY_OUTSIDE * labels.labelled.sum()
    for row, k in np.argwhere(outside).tolist():
        (x, y), (width, height) = points[row, k].tolist(), labels.sizes[row].tolist()
        where = f"{schema.keypoints[k]} at ({x:g}, {y:g}), image {width:g} x {height:g}"
        findings.add("many_keypoints_outside" if many else "keypoint_outside", f"{_who(labels, row)}: {where}")


def _check_duplicates(labels: _Labels, findings: Findings) -> None:
    first: dict[tuple[Any, bytes], int] = {}
    for row in np.flatnonzero(labels.labelled.sum(1) >= DUPLICATE_KEYPOINTS).tolist():
        key = (labels.image_ids[row], labels.keypoints[row].tobytes())
        if key in first:
            findings.add("duplicate_person", f"{_who(labels, row)} and {labels.annotation_ids[first[key]]}")
        first.setdefault(key, row)


def _swapped(keypoints: np.ndarray, schema: KeypointSchema) -> np.ndarray:
    """Which people have left and right swapped, as far as one can tell from where their keypoints lie.

    Who shows the face to the camera, upright, has the left eye at the right in the image, and so the left shoulder
    and hip, unless the body is turned. So it is a swap when face and shoulders are both the wrong way round, or
    when the face is right and shoulders and hips are both wrong.

    Args:
        keypoints: (N, K, 3) x, y, v; v is 0 where not labelled.

    Returns:
        (N,) bool.
    """
    needed = ("nose", "left_eye", "right_eye", "left_shoulder", "right_shoulder", "left_hip", "right_hip")
    if not set(needed) <= set(schema.keypoints):
        return np.zeros(len(keypoints), bool)
    nose, left_eye, right_eye, *body = (keypoints[:, schema.keypoints.index(name)] for name in needed)
    left_shoulder, right_shoulder, left_hip, right_hip = body
    x, y, v = np.moveaxis(np.where(keypoints[..., 2:] > 0, keypoints, np.nan), 2, 0)
    some = (v > 0).sum(1) > 1
    size = np.zeros(len(keypoints))
    size[some] = np.hypot(np.nanmax(x[some], 1) - np.nanmin(x[some], 1), np.nanmax(y[some], 1) - np.nanmin(y[some], 1))

    def order(left: np.ndarray, right: np.ndarray, margin: np.ndarray | float) -> np.ndarray:
        """+1 where left lies clearly at the right in the image, as in a frontal view, -1 the other way, else 0."""
        distance = left[:, 0] - right[:, 0]
        clear = (np.abs(distance) > margin) & (left[:, 2] > 0) & (right[:, 2] > 0)
        return np.where(clear, np.sign(distance), 0.0)

    eyes = order(left_eye, right_eye, 2.0)
    shoulders = order(left_shoulder, right_shoulder, 0.15 * size)
    hips = order(left_hip, right_hip, 0.1 * size)
    face = (nose[:, 2] == 2) & (left_eye[:, 2] == 2) & (right_eye[:, 2] == 2)
    face &= (nose[:, 0] - left_eye[:, 0]) * (nose[:, 0] - right_eye[:, 0]) < 0  # the nose between the eyes
    upright = np.maximum(left_eye[:, 1], right_eye[:, 1]) < np.minimum(left_shoulder[:, 1], right_shoulder[:, 1])
    whole = (eyes < 0) & (shoulders < 0) & (hips <= 0)
    body_only = (eyes > 0) & (shoulders < 0) & (hips < 0)
    swapped: np.ndarray = face & upright & (whole | body_only)
    return swapped


def _who(labels: _Labels, row: int) -> str:
    return f"annotation {labels.annotation_ids[row]} of image {labels.image_ids[row]}"


def _statistics(images: Mapping[int, Json], labels: _Labels, schema: KeypointSchema, findings: Findings) -> Statistics:
    labelled = labels.labelled
    keypoint_people = labelled.any(1)
    with_keypoints = {labels.image_ids[row] for row in np.flatnonzero(keypoint_people).tolist()}
    empty = images.keys() - set(labels.image_ids)
    findings.add("images_without_annotations", count=len(empty))
    by_count = Counter(labelled[~labels.crowd].sum(1).tolist())
    return Statistics(
        images=len(images),
        images_with_keypoint_people=len(with_keypoints),
        people=len(labels.annotation_ids),
        keypoint_people=int(keypoint_people.sum()),
        people_by_keypoints=tuple(by_count[n] for n in range(len(schema) + 1)),
        labelled_by_keypoint=dict(zip(schema.keypoints, labelled.sum(0).tolist(), strict=True)),
    )


# ------------------------------------------------------------------------------------------------------- images


def image_fault(data: bytes, record: Mapping[str, Any]) -> tuple[str, str] | None:
    """What is wrong with an image file, as (code, what exactly), or None; ``record`` is its entry in the json."""
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


def _check_images(images: list[Json], source: Source, findings: Findings, workers: int, progress: bool) -> None:
    fs, _ = fsspec.core.url_to_fs(source.image_folder)

    def look(image: Json) -> tuple[str, str] | None:
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
        faults: Iterable[tuple[str, str] | None] = pool.map(look, images)
        console = Console(stderr=True)
        shown = progress and console.is_terminal
        for fault in track(faults, "images", total=len(images), console=console, disable=not shown):
            if fault:
                findings.add(*fault)


# ------------------------------------------------------------------------------------------------------- command


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0 when there are no errors, 1 when there are, 2 when there is nothing to examine."""
    parser = argparse.ArgumentParser(prog="python -m posefleet.data.doctor", description=__doc__.split("\n")[0])
    parser.add_argument("path", help="data set folder in COCO layout, or an annotation file")
    parser.add_argument("--split", help="train2017, val2017, ...; all that are there when not given")
    parser.add_argument("--images", help="image folder, where it is not at its usual place")
    parser.add_argument("--schema", default="coco17", help="keypoint schema (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="also write the report here")
    parser.add_argument("--workers", type=int, help="threads that read images (default: one a core)")
    options = parser.parse_args(arguments)
    try:
        schema = load_schema(options.schema)
        splits = [options.split] if options.split else find_splits(options.path) or ["train2017"]
        sources = [find_source(options.path, split, options.images) for split in splits]
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    reports = [examine(source, schema, workers=options.workers, progress=True) for source in sources]
    sys.stdout.write("\n".join(report.as_text() for report in reports))
    if options.json:
        write_reports(options.json, reports)
    return 1 if any(report.errors for report in reports) else 0


__all__ = ["Finding", "Report", "examine", "image_fault"]

if __name__ == "__main__":
    sys.exit(main())
