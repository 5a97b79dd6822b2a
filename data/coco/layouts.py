"""Finds the annotation files of a folder, in the layouts of COCO, OCHuman and CrowdPose and of label tools.

annotations/person_keypoints_SPLIT.json, SPLIT.json, crowdpose_SPLIT.json, ochuman_coco_format_SPLIT_range_*.json
    in the folder itself, in annotations/ or in json/: COCO, OCHuman, CrowdPose, CVAT (its split is ``default``)
SPLIT/_annotations.coco.json: Roboflow, whose splits are train, valid and test
result.json, labels.json, dataset.json, ...: a single json file: Label Studio, FiftyOne, labelme2coco, VIA, which
    have no splits
"""

import re
from typing import Any

from posefleet.data.errors import DataError
from posefleet.data.io.files import as_pattern

ROBOFLOW = "_annotations.coco.json"

_NAMED = re.compile(
    r"person_keypoints_(.+)\.json|crowdpose_(.+)\.json|ochuman_coco_format_(.+)_range_.+\.json"
    r"|((?:train|valid|val|test|trainval)\d*)\.json"
)
_FOLDERS = ("annotations/", "json/", "")
_HEAD = 1 << 16  # bytes in which the first key of an annotation file is expected
_MOST_SHOWN = 5


def split_of(annotation_file: str) -> str:
    """The split in the path of an annotation file; empty if the path names none."""
    folder, _, name = annotation_file.rpartition("/")
    if name == ROBOFLOW:
        return folder.rpartition("/")[2]
    match = _NAMED.fullmatch(name)
    return next(filter(None, match.groups())) if match else ""


def named_splits(fs: Any, folder: str) -> dict[str, list[str]]:
    """The annotation files in ``folder`` whose paths name a split, by split; sorted.

    Args:
        fs: The fsspec file system of ``folder``.
        folder: Path in ``fs``, without a slash at the end.
    """
    files = [file for place in _FOLDERS for file in fs.glob(f"{as_pattern(folder)}/{place}*.json")]
    files += fs.glob(f"{as_pattern(folder)}/*/{ROBOFLOW}")
    found: dict[str, list[str]] = {}
    for file in files:
        if split := split_of(file):
            found.setdefault(split, []).append(file)
    return dict(sorted(found.items()))


def find_annotation_file(fs: Any, folder: str, split: str) -> str:
    """The annotation file of a split of ``folder``; arguments as for :func:`named_splits`.

    Args:
        split: Empty: the only one that is there.

    Raises:
        DataError: There is none, or more than one; the message names them.
    """
    named = named_splits(fs, folder)
    if split in named:
        files = named[split]
    elif split:
        raise DataError(
            f"{folder}: no annotation file of split {split!r}; looked for annotations/person_keypoints_{split}.json, "
            f"{split}/{ROBOFLOW} and the names of CrowdPose and OCHuman; {_present(fs, folder)}"
        )
    elif len(named) > 1:
        raise DataError(f"{folder}: has the splits {', '.join(named)}; name one with --split")
    else:
        files = next(iter(named.values())) if named else _unnamed(fs, folder)
    if len(files) == 1:
        return files[0]
    if files:
        what = f"split {split!r}" if split else "the annotations"
        raise DataError(f"{folder}: {what} could be any of {', '.join(sorted(files))}; name the file itself")
    raise DataError(f"{folder}: no annotation file; {_present(fs, folder)}")


def has_annotations(fs: Any, folder: str) -> bool:
    """Whether ``folder`` has annotation files; arguments as for :func:`named_splits`."""
    return bool(named_splits(fs, folder) or _unnamed(fs, folder))


def _unnamed(fs: Any, folder: str) -> list[str]:
    """The json files of ``folder`` that begin as an annotation file does."""
    files = [file for place in _FOLDERS for file in fs.glob(f"{as_pattern(folder)}/{place}*.json")]
    return [file for file in files if _begins_as_annotations(fs.cat_file(file, 0, _HEAD))]


def _begins_as_annotations(head: bytes) -> bool:
    keys = (b'"images"', b'"annotations"', b'"categories"')
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and any(key in head for key in keys)


def _above(fs: Any, folder: str) -> str:
    """Advice for who gave the image folder of a split in place of the data set."""
    above, _, name = folder.rstrip("/").rpartition("/")
    annotated = fs.glob(f"{as_pattern(above)}/annotations/*{as_pattern(name)}*.json")
    return f"; {above} has annotations of these images: give that folder, and --split {name}" if annotated else ""


def _present(fs: Any, folder: str) -> str:
    found = [file for place in ("*.json", "*/*.json") for file in fs.glob(f"{as_pattern(folder)}/{place}")]
    files = sorted(file.removeprefix(f"{folder}/") for file in found)
    if not files:
        yolo = [file.rpartition("/")[2] for file in (*fs.glob(f"{folder}/*.yaml"), *fs.glob(f"{folder}/*.yml"))]
        convert = f"; if {yolo[0]} is YOLO's, convert it: posefleet convert {folder}" if yolo else ""
        return f"json files there: none{convert}{_above(fs, folder)}"
    more = f", and {len(files) - _MOST_SHOWN} more" if len(files) > _MOST_SHOWN else ""
    return f"json files there: {', '.join(files[:_MOST_SHOWN])}{more}; name one of them in place of the folder"
