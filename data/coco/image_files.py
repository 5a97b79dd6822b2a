"""Reads and checks the image files of a split: the same checks in the doctor, in sharding and in evaluation."""

import os
import stat
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import fsspec
import numpy as np
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.source import Source, image_path
from posefleet.data.errors import DataError, TooCostly
from posefleet.data.images import IMAGE_ENDINGS, TURNED_ORIENTATIONS, exif_orientation, verify_image
from posefleet.data.io.files import path_inside, printable

Fault = tuple[str, str]
"""Code of ``findings.CHECKS``, and details that name the file."""


MOST_NAMED = 5
"""Other files of each kind that are named."""


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


@dataclass(slots=True)
class OtherFiles:
    """Files of one kind in an image folder that are none of its images."""

    count: int = 0
    first: list[str] = field(default_factory=list)
    """Paths of the first by alphabet, at most ``MOST_NAMED``."""

    def add(self, path: str) -> None:
        """Count one more."""
        self.count += 1
        insort(self.first, path)
        del self.first[MOST_NAMED:]


def other_files(source: Source, names: Iterable[str]) -> dict[str, OtherFiles]:
    """The files of the image folder that are none of the images ``names``, by code of ``findings.CHECKS``.

    Eight bytes an image are kept in memory. Remote folders are not listed, as that takes many requests.
    """
    found: dict[str, OtherFiles] = {}
    fs, folder = fsspec.core.url_to_fs(source.image_folder)
    if not isinstance(fs, LocalFileSystem):
        return found
    marks = np.sort(np.fromiter((hash(os.path.normpath(source.names(name))) for name in names), np.int64))
    annotations = source.annotation_file.removeprefix("file://")
    for entry in _files_in(folder):
        path = os.path.relpath(entry.path, folder)
        place = np.searchsorted(marks, hash(path))
        if (place == len(marks) or marks[place] != hash(path)) and entry.path != annotations:
            is_image = os.path.splitext(path)[1].lower() in IMAGE_ENDINGS and not entry.name.startswith(".")
            found.setdefault("unlisted_image" if is_image else "other_file", OtherFiles()).add(printable(path))
    return found


def _files_in(folder: str) -> Iterator["os.DirEntry[str]"]:
    """The files of a folder and of all folders in it, as the disk lists them; links to folders are not followed."""
    waiting = [folder]
    while waiting:
        with suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_dir():
                    yield entry


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
