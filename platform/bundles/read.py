"""Reads a bundle, which may come from anybody: every member is bounded and checked before it is used."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec

from posefleet.data.coco.annotations import are_numbers, is_integer
from posefleet.data.errors import DataError
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.io.files import PIECE
from posefleet.data.io.tars import Member, list_members
from posefleet.data.schemas.schema import KeypointSchema, SchemaError
from posefleet.data.structures import Detections, Poses
from posefleet.platform.bundles.layout import (
    BOXES,
    COUNTS,
    DATA,
    ENVIRONMENT,
    EXPERIMENT,
    FORMAT,
    MANIFEST,
    METRICS,
    MOST_SMALL,
    OPTIONAL,
    PREDICTIONS,
    REQUIRED,
    RUN,
    SAMPLE,
    SCHEMA,
    SMALL,
    TRUTH,
    VERSION,
    BundleError,
    Claims,
    printable,
)
from posefleet.platform.bundles.poses import read_boxes, read_poses
from posefleet.platform.bundles.truth import read_truth
from posefleet.platform.checkpoints.format import WEIGHTS, FileRecord, shortened

MOST_POSES = 10_000
"""Maximum poses of an image that are scored."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The content of a bundle, of the right types and sizes; whether it is true is not checked."""

    name: str
    """Name of the file, without its folder."""
    members: dict[str, FileRecord]
    """Size and SHA-256 of every member, as the manifest has them."""
    damaged: list[str]
    """Members of another size or SHA-256."""
    experiment: dict[str, Any]
    schema: KeypointSchema
    data: dict[str, Any]
    """``name`` and ``fingerprint``, texts."""
    environment: dict[str, Any]
    run: dict[str, Any]
    """``method`` and ``weights_sha256``, texts; ``step``, an integer."""
    claims: Claims
    max_detections: int
    predictions: dict[int, Poses]
    boxes: dict[int, Detections] | None
    truth: GroundTruth | None
    weights: Path | None
    """File of the weights, for the reader of safetensors; None if the bundle has none, or damaged ones."""


def read_bundle(path: str, folder: Path) -> Bundle:
    """Read a bundle.

    Args:
        path: Any fsspec path.
        folder: Empty folder to which large members are copied, under names of the layout.

    Raises:
        BundleError: The file is no bundle of this version, or a member is missing, unknown, too large or damaged. The
            message is one sentence that names file and member.
    """
    try:
        with fsspec.open(path, "rb") as file:
            return _read(file, path, folder)
    except FileNotFoundError:
        raise BundleError(f"{path}: no such file") from None
    except (DataError, SchemaError) as error:
        raise BundleError(printable(" ".join(str(error).replace(f"{folder}/", "").split()))) from None


def _read(file: IO[bytes], path: str, folder: Path) -> Bundle:
    name = path.rpartition("/")[2]
    found = {member.name: member for member in list_members(file, path)}
    members = _read_manifest(file, found, path)
    damaged = []
    for member in found.values():
        if member.name in members and _copy(file, member, folder) != members[member.name]:
            damaged.append(member.name)
    small = {each: _read_object(folder / each, f"{name}: {each}") for each in SMALL if each != MANIFEST}
    schema = KeypointSchema.from_dict(small[SCHEMA], where=f"{name}: {SCHEMA}")
    predictions = read_poses(folder / PREDICTIONS, len(schema), f"{name}: {PREDICTIONS}")
    truth = read_truth(folder / TRUTH, schema, f"{name}: {TRUTH}") if TRUTH in members else None
    return Bundle(
        name=name,
        members=members,
        damaged=sorted(damaged),
        experiment=small[EXPERIMENT],
        schema=schema,
        data=_typed(small[DATA], f"{name}: {DATA}", {"name": str, "fingerprint": str}),
        environment=small[ENVIRONMENT],
        run=_typed(small[RUN], f"{name}: {RUN}", {"method": str, "step": int, "weights_sha256": str}),
        claims=_claims(small[METRICS], f"{name}: {METRICS}"),
        max_detections=_max_detections(small[EXPERIMENT], f"{name}: {EXPERIMENT}"),
        predictions=predictions,
        boxes=read_boxes(folder / BOXES, f"{name}: {BOXES}") if BOXES in members else None,
        truth=truth,
        weights=folder / WEIGHTS if WEIGHTS in members and WEIGHTS not in damaged else None,
    )


def _read_manifest(file: IO[bytes], found: dict[str, Member], path: str) -> dict[str, FileRecord]:
    """The records of all members but the manifest, which are exactly those of the tar."""
    if MANIFEST not in found:
        raise BundleError(f"{path} is no bundle: it has no {MANIFEST}")
    for name in SMALL:
        if name in found and found[name].size > MOST_SMALL:
            raise BundleError(f"{path}: {name} has {found[name].size:,} bytes, and {MOST_SMALL:,} are allowed")
    file.seek(found[MANIFEST].start)
    content = _parse(file.read(found[MANIFEST].size), f"{path}: {MANIFEST}")
    if content.get("format") != FORMAT:
        raise BundleError(f"{path} is no bundle: {MANIFEST} has the format {shortened(content.get('format'))}")
    if content.get("version") != VERSION or isinstance(content.get("version"), bool):
        raise BundleError(
            f"{path} is a bundle of version {shortened(content.get('version'))}, this code reads {VERSION}; check it "
            "with the posefleet that made it"
        )
    listed = content.get("members")
    if not isinstance(listed, dict) or not all(map(_is_record, listed.values())):
        raise BundleError(f"{path}: {MANIFEST} is damaged: expected members, each with bytes and sha256")
    there = found.keys() - {MANIFEST}
    if missing := (set(REQUIRED) - {MANIFEST} | listed.keys()) - there:
        raise BundleError(f"{path}: no member {_named(missing)}")
    unknown = {each for each in there if each not in REQUIRED + OPTIONAL and not SAMPLE.fullmatch(each)}
    if unknown := unknown | there - listed.keys():
        raise BundleError(f"{path}: member {_named(unknown)} does not belong to a bundle, or is not in {MANIFEST}")
    return dict(listed)


def _named(names: Iterable[str]) -> str:
    return repr(min(names))[:80]


def _is_record(record: Any) -> bool:
    return (
        isinstance(record, dict)
        and record.keys() == {"bytes", "sha256"}
        and is_integer(record["bytes"])
        and isinstance(record["sha256"], str)
    )


def _copy(file: IO[bytes], member: Member, folder: Path) -> FileRecord:
    """Copy a member that is read later; returns its size and SHA-256."""
    sha256 = hashlib.sha256()
    file.seek(member.start)
    target = None if SAMPLE.fullmatch(member.name) else (folder / member.name).open("wb")
    try:
        for start in range(0, member.size, PIECE):
            data = file.read(min(PIECE, member.size - start))
            sha256.update(data)
            if target:
                target.write(data)
    finally:
        if target:
            target.close()
    return {"bytes": member.size, "sha256": sha256.hexdigest()}


def _read_object(path: Path, what: str) -> dict[str, Any]:
    return _parse(path.read_bytes(), what)


def _parse(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in some bytes: keys come once, and numbers are finite."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) != len(content := dict(pairs)):
            raise ValueError("a key comes twice")
        return content

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    try:
        content = json.loads(data, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{what} is damaged JSON: {' '.join(str(error).split())[:120]}") from None
    if not isinstance(content, dict):
        raise BundleError(f"{what}: expected a JSON object, found a {type(content).__name__}")
    return content


def _typed(content: dict[str, Any], what: str, kinds: dict[str, type]) -> dict[str, Any]:
    for key, kind in kinds.items():
        value = content.get(key)
        if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and not is_integer(value)):
            raise BundleError(f"{what}: {key} is {shortened(value)}, expected {kind.__name__}")
    return content


def _claims(content: dict[str, Any], what: str) -> Claims:
    def numbers(key: str) -> dict[str, float]:
        found = content.get(key)
        if not isinstance(found, dict):
            raise BundleError(f"{what}: {key} is {shortened(found)}, expected numbers by name")
        for name, value in found.items():
            if value is not None and not (are_numbers([value]) and math.isfinite(value)):
                raise BundleError(f"{what}: {key}: {name[:60]!r} is {shortened(value)}, expected a number or null")
        return {name: math.nan if value is None else float(value) for name, value in found.items()}

    evaluation, record, counts = numbers("evaluation"), numbers("record"), content.get("counts")
    if "AP" not in evaluation:
        raise BundleError(f"{what}: evaluation has no AP")
    if not isinstance(counts, dict) or counts.keys() != set(COUNTS) or not all(map(is_integer, counts.values())):
        raise BundleError(f"{what}: counts is {shortened(counts)}, expected the integers {', '.join(COUNTS)}")
    rule = _typed(content, what, {"score_rule": str})["score_rule"]
    return Claims(evaluation=evaluation, counts=counts, record=record, score_rule=rule)


def _max_detections(experiment: dict[str, Any], what: str) -> int:
    settings = experiment.get("evaluate")
    value = settings.get("max_detections") if isinstance(settings, dict) else None
    if not is_integer(value) or not 1 <= value <= MOST_POSES:
        raise BundleError(f"{what}: evaluate.max_detections is {shortened(value)}, expected 1 to {MOST_POSES:,}")
    return value
