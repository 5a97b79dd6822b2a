"""Reads and checks the image files of a split: the same checks in the doctor, in sharding and in evaluation."""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.source import Source, image_path
from posefleet.data.errors import DataError, TooCostly
from posefleet.data.images import IMAGE_ENDINGS, TURNED_ORIENTATIONS, exif_orientation, verify_image
from posefleet.data.io.files import path_inside, printable

Fault = tuple[str, str]
"""Code of ``findings.CHECKS``, and details that name the file."""


def read_image(fs: Any, source: Source, record: Mapping[str, Any]) -> tuple[bytes, Fault | None]:
    """The bytes of an image file, and what is wrong with it.

    Args:
        fs: fsspec file system of ``source.image_folder``.
        source: Data set.
        record: The entry of the image in the json.

    Raises:
        OSError: A remote store did not answer.
    """
    name = record["file_name"]
    try:
        path = image_path(source, name)
    except DataError as error:
        return b"", ("image_outside_folder", str(error))
    try:
        data: bytes = fs.cat_file(path)
    except (FileNotFoundError, NotADirectoryError):
        return b"", ("missing_image", f"{name}: no such file in {source.image_folder}")
    except OSError as error:
        if isinstance(fs, LocalFileSystem) or isinstance(error, PermissionError | IsADirectoryError):
            return b"", ("unreadable_image", f"{name}: {error.strerror or error}")
        raise
    return data, image_fault(data, record)


def image_fault(data: bytes, record: Mapping[str, Any]) -> Fault | None:
    """What is wrong with the content of an image file; None if nothing is. ``record`` is its entry in the json."""
    try:
        width, height = verify_image(data, record["file_name"])
    except TooCostly as error:
        return "costly_image", str(error)
    except DataError as error:
        return "corrupt_image", str(error)
    expected = (record["width"], record["height"])
    if (width, height) == expected:
        return None
    sizes = f"{record['file_name']}: {width} x {height}, the json says {expected[0]} x {expected[1]}"
    if (height, width) == expected and exif_orientation(data) in TURNED_ORIENTATIONS:
        return "exif_mismatch", f"{sizes}; EXIF turns it"
    return "size_mismatch", sizes


def other_files(source: Source, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The files of the image folder that are none of the images ``names``: code of ``findings.CHECKS``, and path.

    Remote folders are not listed, as that takes a request for every thousand files.
    """
    fs, folder = fsspec.core.url_to_fs(source.image_folder)
    if not isinstance(fs, LocalFileSystem):
        return
    listed = {os.path.normpath(source.names(name)) for name in names}
    annotations = source.annotation_file.removeprefix("file://")
    for place, _, files in os.walk(folder):
        for file in sorted(files):
            path = os.path.relpath(os.path.join(place, file), folder)
            if path not in listed and os.path.join(place, file) != annotations:
                is_image = os.path.splitext(file)[1].lower() in IMAGE_ENDINGS and not file.startswith(".")
                yield "unlisted_image" if is_image else "other_file", printable(path)


def file_sizes(source: Source) -> Callable[[str], int]:
    """A function from the name of an image file to its bytes; -1 if there is no such file in the image folder."""
    fs, folder = fsspec.core.url_to_fs(source.image_folder)
    if isinstance(fs, LocalFileSystem):
        return lambda name: _local_size(folder, source.names(name))
    folder = folder.rstrip("/")
    fs.invalidate_cache(folder)
    files = fs.find(folder, detail=True)  # one listing: a request for each image would take hours
    listed = {path.removeprefix(folder + "/"): int(entry["size"]) for path, entry in files.items()}
    return lambda name: listed.get(source.names(name), -1)


def _local_size(folder: str, name: str) -> int:
    try:
        found = os.stat(path_inside(folder, name))
    except (OSError, DataError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
