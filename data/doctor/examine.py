"""Examines a data set: reads the annotation file and every image of a split, and reports what is wrong.

Errors make training wrong or impossible; warnings should be inspected. ``data.findings.CHECKS`` lists all checks.
"""

import itertools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
from rich.console import Console
from rich.progress import track

from posefleet.data.coco.image_files import Fault, other_files, read_image
from posefleet.data.coco.labels import Labels
from posefleet.data.coco.reader import Reader
from posefleet.data.coco.source import Source
from posefleet.data.doctor.label_checks import LabelChecks
from posefleet.data.doctor.report import Report, Statistics
from posefleet.data.errors import DataError, NoSchema, UnclearCategory
from posefleet.data.findings import Findings
from posefleet.data.images import exif_orientation
from posefleet.data.schemas.schema import KeypointSchema

IMAGES_AT_A_TIME = 4096
"""Images that wait for a thread to read them; this bounds memory."""


def examine(
    source: Source,
    schema: KeypointSchema | None,
    *,
    category: Sequence[str] = (),
    check_images: bool = True,
    workers: int | None = None,
    progress: bool = False,
) -> Report:
    """Run all ``CHECKS`` on one split; the content of the files never raises an error.

    Records are read one by one and not kept, so a million images take a few hundred MB.

    Args:
        source: From ``find_source``.
        schema: The expected keypoints. None: those that the file names.
        category: Names of the categories that are read; empty: the only one that can be meant.
        check_images: Also read and decode every image.
        workers: Threads that read images; None: one for each core.
        progress: Show a progress bar on stderr.
    """
    try:
        reader = Reader(source.annotation_file, category=category)
        categories = reader.categories.why
        schema = schema or reader.schema()
        labels = LabelChecks(schema, reader.findings)
        with_keypoints = np.zeros(len(reader.image_ids), bool)

        def take_labels(some: Labels, places: np.ndarray) -> None:
            labels.add(some)
            with_keypoints[places[some.labelled.any(1)]] = True

        reader.read_people(schema, lambda *_: None, take_labels=take_labels)
        labels.finish()
    except DataError as error:
        findings = Findings()
        findings.add(_code(error), str(error))
        name = schema.name if schema else "no schema"
        return Report(source.annotation_file, name, "", False, tuple(findings), Statistics())
    if check_images:
        _check_images(reader, source, reader.findings, workers or os.cpu_count() or 1, progress)
    statistics = Statistics(
        images=len(reader.image_ids),
        images_with_keypoint_people=int(with_keypoints.sum()),
        people=labels.people,
        keypoint_people=labels.keypoint_people,
        people_by_keypoints=tuple(labels.by_count.tolist()),
        labelled_by_keypoint=dict(zip(schema.keypoints, labels.by_keypoint.tolist(), strict=True)),
    )
    return Report(source.annotation_file, schema.name, categories, check_images, tuple(reader.findings), statistics)


def _code(error: DataError) -> str:
    if isinstance(error, UnclearCategory):
        return "unclear_category"
    return "no_schema" if isinstance(error, NoSchema) else "unreadable_annotations"


# ------------------------------------------------------------------------------------------------------- images


def _check_images(reader: Reader, source: Source, findings: Findings, workers: int, progress: bool) -> None:
    fs, _ = fsspec.core.url_to_fs(source.image_folder)

    def check(place: int) -> Fault | None:
        width, height = reader.size(place)
        name = reader.file_name(place)
        try:
            data, fault = read_image(fs, source, {"file_name": name, "width": width, "height": height})
        except OSError as error:
            return "unreadable_image", f"{name}: {error}"
        return fault or (("exif_orientation", name) if exif_orientation(data) != 1 else None)

    with ThreadPoolExecutor(workers) as pool:
        console, waiting = Console(stderr=True), iter(np.argsort(reader.rows, kind="stable").tolist())
        groups = iter(lambda: list(itertools.islice(waiting, IMAGES_AT_A_TIME)), [])
        faults = itertools.chain.from_iterable(pool.map(check, group) for group in groups)
        shown = progress and console.is_terminal
        for fault in track(faults, "images", total=len(reader.rows), console=console, disable=not shown):
            if fault:
                findings.add(*fault)
    names = (reader.file_name(place) for place in range(len(reader.image_ids)))
    for code, found in other_files(source, names).items():
        for path in found.first:
            findings.add(code, path)
        findings.add(code, count=found.count - len(found.first))
