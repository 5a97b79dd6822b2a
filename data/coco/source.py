"""Finds the annotation file and the image folder of one split of a COCO data set."""

import re
from dataclasses import dataclass
from typing import Any

import fsspec

from posefleet.data.errors import DataError
from posefleet.data.io.files import absolute, path_inside

_ANNOTATION_FILE = re.compile(
    r"person_keypoints_(.+)\.json|crowdpose_(.+)\.json|ochuman_coco_format_(.+)_range_.+\.json"
    r"|((?:train|val|test|trainval)\d*)\.json"
)


@dataclass(frozen=True)
class Source:
    """The annotation file of a split and the folder of its images, as fsspec paths."""

    annotation_file: str
    image_folder: str
    split: str


def find_source(source: str, split: str, images: str | None = None) -> Source:
    """Find the annotation file and the image folder of ``split``.

    Args:
        source: A folder in the layout of COCO, OCHuman or CrowdPose, or the annotation file itself.
        split: ``train2017``, ``val``, ...; part of the file names.
        images: The image folder; None: the first usual place that exists.

    Raises:
        DataError: There is no annotation file or image folder; the message lists the searched places.
    """
    fs, path = fsspec.core.url_to_fs(source)
    if not fs.exists(path):
        raise DataError(f"{source}: no such file or folder")
    if fs.isfile(path):
        annotation_file, base = path, path.rpartition("/")[0]
        roots = [base, base.rpartition("/")[0]]
    else:
        base = path.rstrip("/")
        annotation_file, roots = _find_annotation_file(fs, base, split), [base]
    if images is None:
        year_free = split.rstrip("0123456789")
        names = (split, f"images/{split}", year_free, f"images/{year_free}", "images")
        folders = [f"{root}/{name}" for root in roots for name in names if name]
        images = next((fs.unstrip_protocol(folder) for folder in folders if fs.isdir(folder)), None)
        if images is None:
            raise DataError(f"{source}: no image folder; looked for {', '.join(folders)}; name it with --images")
    elif not _is_folder(images):
        raise DataError(f"{images}: no such image folder")
    return Source(fs.unstrip_protocol(annotation_file), absolute(images), split)


def find_splits(source: str) -> list[str]:
    """The splits whose annotation files lie in a folder, or the split of one annotation file; sorted."""
    fs, path = fsspec.core.url_to_fs(source)
    if fs.isfile(path):
        files = [path]
    else:
        files = [file for name in ("annotations/", "json/", "") for file in fs.glob(f"{path.rstrip('/')}/{name}*.json")]
    matches = (_ANNOTATION_FILE.fullmatch(file.rpartition("/")[2]) for file in files)
    return sorted({next(filter(None, match.groups())) for match in matches if match})


def image_path(source: Source, file_name: str) -> str:
    """The path of an image of ``source``.

    Raises:
        DataError: The name leads out of the image folder, or is no file name.
    """
    return path_inside(source.image_folder, file_name)


def _is_folder(path: str) -> bool:
    fs, path_in_fs = fsspec.core.url_to_fs(path)
    return bool(fs.isdir(path_in_fs))


def _find_annotation_file(fs: Any, base: str, split: str) -> str:
    names = (f"person_keypoints_{split}.json", f"crowdpose_{split}.json", f"{split}.json")
    candidates = [f"{base}/{folder}{name}" for folder in ("annotations/", "json/", "") for name in names]
    for candidate in candidates:
        if fs.isfile(candidate):
            return candidate
    ochuman = f"ochuman_coco_format_{split}_range_*.json"
    found = sorted(hit for folder in ("annotations/", "") for hit in fs.glob(f"{base}/{folder}{ochuman}"))
    if len(found) == 1:
        return str(found[0])
    if found:
        raise DataError(f"{base}: split {split!r} could be any of {', '.join(found)}; name the file itself")
    json_files = [*fs.glob(f"{base}/*.json"), *fs.glob(f"{base}/*/*.json")]
    present = sorted(file.removeprefix(base + "/") for file in json_files)[:5]
    raise DataError(
        f"{base}: no annotation file of split {split!r}; looked for {', '.join(candidates[:2])}, {ochuman}; "
        f"json files there: {', '.join(present) or 'none'}"
    )
