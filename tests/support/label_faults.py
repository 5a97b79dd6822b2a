"""Puts known faults into the annotations of a data set, for tests and benches of what finds them."""

import copy
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from posefleet.data.review.suspects import KINDS, Kind, Suspect
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses

LEAST_LABELLED = 8
"""Labelled keypoints of a person who gets a fault."""


class Fault(NamedTuple):
    """A fault that was put in."""

    kind: Kind
    image_id: int
    annotation_id: int  # of the annotation that is wrong, or is gone
    keypoints: tuple[str, ...]  # those that are wrong; empty: all
    points: np.ndarray  # (K, 3) of the person who is missed or second in the annotation, or as it was


def with_faults(
    content: dict[str, Any], schema: KeypointSchema, share: float, seed: int, kinds: Sequence[Kind] = tuple(KINDS)
) -> tuple[dict[str, Any], list[Fault]]:
    """The content of an annotation file with faults of each kind in ``share`` of the people, nobody with two."""
    rng, content = random.Random(seed), copy.deepcopy(content)
    size = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    people = [a for a in content["annotations"] if not a["iscrowd"] and a["num_keypoints"] >= LEAST_LABELLED]
    rng.shuffle(people)
    count = max(1, round(share * len(people)))
    of_image: dict[int, list[dict[str, Any]]] = {}
    for person in people:
        of_image.setdefault(person["image_id"], []).append(person)
    faults: list[Fault] = []
    used: set[int] = set()
    removed: set[int] = set()

    def free(person: dict[str, Any]) -> bool:
        return person["id"] not in used

    for kind in kinds:
        done = 0
        for person in people:
            if done == count:
                break
            if not free(person):
                continue
            before = np.array(person["keypoints"], float).reshape(-1, 3)
            names: tuple[str, ...] = ()
            if kind == "swapped":
                person["keypoints"] = before[list(schema.flip_index)].ravel().tolist()
            elif kind == "displaced":
                names = (_displace(person, before, schema, size[person["image_id"]], rng),)
            elif kind == "missed":
                removed.add(person["id"])
            elif kind == "flag":
                names = _unflag(person, before, schema, rng)
            else:
                others = [p for p in of_image[person["image_id"]] if p is not person and free(p)]
                if not others:
                    continue
                second = rng.choice(others)
                used.add(second["id"])
                removed.add(second["id"])
                before = np.array(second["keypoints"], float).reshape(-1, 3)
                names = _merge(person, second, schema)
            used.add(person["id"])
            faults.append(Fault(kind, person["image_id"], person["id"], names, before))
            done += 1
    content["annotations"] = [a for a in content["annotations"] if a["id"] not in removed]
    return content, faults


def _displace(
    person: dict[str, Any], points: np.ndarray, schema: KeypointSchema, size: tuple[int, int], rng: random.Random
) -> str:
    """Move one labelled keypoint by a third to two thirds of the box's diagonal, inside the image."""
    k = rng.choice(np.flatnonzero(points[:, 2] > 0).tolist())
    diagonal = float(np.hypot(*person["bbox"][2:]))
    for _ in range(100):
        angle, away = rng.uniform(0, 2 * np.pi), rng.uniform(1 / 3, 2 / 3) * diagonal
        x, y = points[k, 0] + away * np.cos(angle), points[k, 1] + away * np.sin(angle)
        if 0 <= x <= size[0] and 0 <= y <= size[1]:
            break
    moved = points.copy()
    moved[k, :2] = np.clip([x, y], 0, size)
    person["keypoints"] = moved.ravel().tolist()
    return schema.keypoints[k]


def _unflag(person: dict[str, Any], points: np.ndarray, schema: KeypointSchema, rng: random.Random) -> tuple[str, ...]:
    """Make a person a crowd, or one of the visible keypoints not labelled."""
    visible = np.flatnonzero(points[:, 2] == 2).tolist()
    if rng.random() < 0.5 or not visible:
        person["iscrowd"] = 1
        return ()
    k = rng.choice(visible)
    changed = points.copy()
    changed[k] = 0
    person["keypoints"] = changed.ravel().tolist()
    person["num_keypoints"] = int((changed[:, 2] > 0).sum())
    return (schema.keypoints[k],)


def _merge(person: dict[str, Any], second: dict[str, Any], schema: KeypointSchema) -> tuple[str, ...]:
    """Give a person the second half of the keypoints, in the order of the schema, of another."""
    half = len(schema) // 2
    person["keypoints"] = person["keypoints"][: 3 * half] + second["keypoints"][3 * half :]
    person["num_keypoints"] = sum(v > 0 for v in person["keypoints"][2::3])
    a, b = person["bbox"], second["bbox"]
    left, top = min(a[0], b[0]), min(a[1], b[1])
    right, bottom = max(a[0] + a[2], b[0] + b[2]), max(a[1] + a[3], b[1] + b[3])
    person["bbox"], person["area"] = [left, top, right - left, bottom - top], person["area"] + second["area"]
    return schema.keypoints[half:]


def found_by(suspect: Suspect, faults: Sequence[Fault], poses: Poses, schema: KeypointSchema) -> Fault | None:
    """The fault that a suspect names, of whatever kind; None if it is wrong.

    It is named by its annotation and, if one keypoint is wrong, by that one; a missed person by a pose of OKS 0.5.
    """
    for fault in faults:
        if fault.image_id != suspect.image_id:
            continue
        if fault.annotation_id == suspect.annotation_id:
            if suspect.kind == fault.kind == "merged":  # either half may be the first
                return fault
            if not suspect.keypoints or not fault.keypoints or set(suspect.keypoints) & set(fault.keypoints):
                return fault
        elif suspect.kind == "missed" and fault.kind in ("missed", "merged"):
            known = fault.points[:, 2] > 0
            points = fault.points[known, :2]
            scale = 2 * float((points.max(0) - points.min(0)).prod()) * 0.53
            d2 = ((poses.keypoints[suspect.pose].numpy()[known] - points) ** 2).sum(1)
            if np.exp(-d2 / scale / (2 * np.array(schema.sigmas)[known]) ** 2).mean() >= 0.5:
                return fault
    return None
