"""Finds the annotation file and the image folder of one split of a data set, and the files that its names mean."""

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.file_names import AS_WRITTEN, Fit, NameRule, fit_rule, sample_names
from posefleet.data.coco.layouts import find_annotation_file, named_splits, split_of
from posefleet.data.errors import DataError
from posefleet.data.io.files import absolute, path_inside

SAMPLE, REMOTE_SAMPLE = 1000, 8
"""File names that are looked for on a disk, and in a remote store. If one is missing, many more are."""

MOST_NAMES = 100_000
"""File names that are looked for to find out how a label tool writes them."""


_SPLIT = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Source:
    """The annotation file of a split and the folder of its images, as fsspec paths."""

    annotation_file: str
    image_folder: str
    split: str
    """Name of the split; empty where the layout has none."""
    names: NameRule = AS_WRITTEN
    """How the file names in the annotation file lead to files of the image folder."""

    def __str__(self) -> str:
        """What was found, in one line, for people."""
        changed = f"; file names: {self.names}" if self.names != AS_WRITTEN else ""
        return f"annotations {_short(self.annotation_file)}, images in {_short(self.image_folder)}{changed}"


def find_source(source: str, split: str, images: str | None = None) -> Source:
    """Find the annotation file and the image folder of ``split``, in any of the layouts of ``layouts``.

    The image folder is the one in which the most file names of the annotations lead to files.

    Args:
        source: A folder, or the annotation file itself.
        split: ``train2017``, ``val``, ...; empty: the only one of the folder, or the one that the file's path names.
        images: The image folder; None: the usual place that has the images.

    Raises:
        DataError: There is no annotation file or image folder (the message lists the searched places), or there are
            two that fit equally well (it names both).
    """
    fs, path = fsspec.core.url_to_fs(source)
    if not fs.exists(path):
        folder, named = parse_place(source) or ("", "")
        known = folder and fs.exists(folder)
        hint = f"; for split {named} of {folder}, write {folder} --split {named}" if known else ""
        raise DataError(f"{source}: no such file or folder{hint}")
    path = path.rstrip("/")
    if fs.isfile(path):
        base = path.rpartition("/")[0]
        annotation_file, roots = path, [base, base.rpartition("/")[0]]
    else:
        annotation_file = find_annotation_file(fs, path, split)
        roots = [path, annotation_file.rpartition("/")[0]]
    split = split or split_of(annotation_file)
    address = str(fs.unstrip_protocol(annotation_file))
    if images is not None:
        if not _is_folder(images):
            raise DataError(f"{images}: no such image folder")
        images = absolute(images)
        image_fs, folder = fsspec.core.url_to_fs(images)
        (fit,) = _fits(address, image_fs, [folder])
        return Source(address, images, split, fit.rule)
    usual, other = _candidates(roots, split or annotation_file.rpartition("/")[2].removesuffix(".json"))
    existing = [folder for folder in usual + other if fs.isdir(folder)]
    fits = _fits(address, fs, existing)
    if any(fit.found for fit in fits):
        folder, rule = _best(fs, source, dict(zip(existing, fits, strict=True)))
    elif existing and (existing[0] in usual or not sample_names(address, 1)):
        folder, rule = existing[0], AS_WRITTEN  # whoever reads the file says that images or their files are missing
    else:
        raise DataError(f"{source}: no image folder; looked for {', '.join(usual + other)}; name it with --images")
    return Source(address, str(fs.unstrip_protocol(folder)), split, rule)


def parse_place(place: str) -> tuple[str, str] | None:
    """Folder (or annotation file) and split of ``FOLDER@SPLIT``; None if ``place`` is no such text, or is a path."""
    folder, at, split = place.rstrip("/").rpartition("@")
    if not (at and folder and _SPLIT.fullmatch(split)):
        return None
    fs, path = fsspec.core.url_to_fs(place)
    return None if fs.exists(path) else (folder, split)


def find_splits(source: str) -> list[str]:
    """The splits of a folder, or the split of one annotation file; sorted. None where the layout has no splits."""
    fs, path = fsspec.core.url_to_fs(source)
    if fs.isfile(path):
        return [split_of(path)] if split_of(path) else []
    return list(named_splits(fs, path.rstrip("/")))


def image_path(source: Source, file_name: str) -> str:
    """The path of an image of ``source``.

    Raises:
        DataError: The name leads out of the image folder, or is no file name.
    """
    return path_inside(source.image_folder, source.names(file_name))


def _is_folder(path: str) -> bool:
    fs, path_in_fs = fsspec.core.url_to_fs(path)
    return bool(fs.isdir(path_in_fs))


def _candidates(roots: Iterable[str], split: str) -> tuple[list[str], list[str]]:
    """Where the images of a split may be: the usual places of data sets, and those of single label tools."""
    year_free = split.rstrip("0123456789")
    names = (split, f"images/{split}", year_free, f"images/{year_free}", "images")
    roots = [root for root in dict.fromkeys(roots) if root]
    usual = [f"{root}/{name}" for root in roots for name in names if name.strip("/")]
    other = [f"{root}{name}" for root in roots for name in ("/data", "")]
    return list(dict.fromkeys(usual)), [folder for folder in dict.fromkeys(other) if folder not in usual]


def _fits(annotation_file: str, fs: Any, folders: Sequence[str]) -> list[Fit]:
    """How the names of the annotations fit each of ``folders``."""
    local = isinstance(fs, LocalFileSystem)
    sample = sample_names(annotation_file, SAMPLE if local else REMOTE_SAMPLE)
    exists: list[Callable[[str], bool]] = [partial(_is_file, fs, folder) for folder in folders]
    as_written = [{name: name for name in sample if look(name)} for look in exists]
    if any(len(found) == len(sample) for found in as_written):
        return [Fit(AS_WRITTEN, found) for found in as_written]
    names = sample_names(annotation_file, MOST_NAMES)
    if not local:
        exists = [_listed(fs, folder) for folder in folders]
    return [fit_rule(names, look) for look in exists]


def _best(fs: Any, source: str, fits: Mapping[str, Fit]) -> tuple[str, NameRule]:
    """The folder that has the most images, and its rule; where two have the same files, that with the plainer rule."""
    most = max(len(fit.found) for fit in fits.values())
    best = [(folder, fit) for folder, fit in fits.items() if len(fit.found) == most]
    (folder, fit), *others = sorted(best, key=lambda pair: pair[1].rule.changes)  # sorting is stable
    name, path = next(iter(fit.found.items()))
    for other, its in others:
        if not _same(fs, f"{folder}/{path}", f"{other}/{its.found.get(name, name)}"):
            raise DataError(
                f"{source}: the images could be those in {folder} or those in {other}: both have {most:,} of the file "
                "names; name the folder with --images"
            )
    return folder, fit.rule


def _same(fs: Any, first: str, second: str) -> bool:
    """Whether two paths are one file; on a disk also through links."""
    linked = isinstance(fs, LocalFileSystem) and os.path.exists(second)
    return first == second or (linked and os.path.samefile(first, second))


def _is_file(fs: Any, folder: str, name: str) -> bool:
    try:
        path = path_inside(folder, name)
        return os.path.isfile(path) if isinstance(fs, LocalFileSystem) else bool(fs.isfile(path))
    except DataError:
        return False


def _listed(fs: Any, folder: str) -> Callable[[str], bool]:
    files = set(fs.find(folder))
    return lambda name: f"{folder}/{name}" in files


def _short(path: str) -> str:
    return path.removeprefix("file://")
