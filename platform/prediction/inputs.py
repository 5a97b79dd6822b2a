"""What is to be predicted: the images and videos of a folder, a pattern, a COCO annotation file or shards, listed."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.annotations import read_file_names
from posefleet.data.coco.source import find_source
from posefleet.data.errors import DataError
from posefleet.data.io.files import path_inside
from posefleet.data.io.tars import BLOCK, list_members, member_name
from posefleet.data.loading.shard_dataset import RETRY_PAUSES
from posefleet.data.shards.layout import MANIFEST, read_manifest, read_members, read_records

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
TAR_ENDING = ".tar"


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image or a video."""

    name: str
    """Its file's path inside the folder of the input; of an image in a tar, the tar's path and its name in that."""
    image_id: int
    """COCO's, where the input has ids; else 1, 2, ... in the order of names."""
    size: int = -1
    """Bytes; -1: not known, the whole file."""
    tar: str = ""
    """The file in the folder that holds the image's bytes from ``start`` on; empty: the image is a file itself."""
    start: int = 0

    @property
    def is_video(self) -> bool:
        """By its ending."""
        return not self.tar and _ending(self.name) in VIDEO_ENDINGS


@dataclass(frozen=True, slots=True)
class InputImages:
    """A listed input; equal inputs are listed equally."""

    folder: str
    """fsspec path that names are relative to."""
    listed: tuple[InputImage, ...]

    @property
    def fingerprint(self) -> str:
        """sha256 over names, ids and sizes."""
        sha256 = hashlib.sha256()
        for picture in self.listed:
            sha256.update(f"{picture.image_id} {picture.size} {picture.name}\n".encode())
        return sha256.hexdigest()


def list_pictures(source: str, *, split: str = "", images: str = "", ignore: str = "") -> InputImages:
    """List an input.

    Args:
        source: Any fsspec path: a folder, which is searched to the bottom for ``IMAGE_ENDINGS`` and ``VIDEO_ENDINGS``;
            a pattern such as ``photos/**/*.jpg``; one file; a COCO annotation file (it may be without annotations); a
            folder of shards; a tar of images, as WebDataset has them, or a pattern of such tars.
        split: ``source`` is a data set in COCO's layout, and this split of it is meant.
        images: Folder of the images of an annotation file, where it is not at its usual place.
        ignore: A folder that may lie in the input and is none of it, such as that of the output.

    Raises:
        DataError: There is nothing to predict; says where it was looked for. Or a tar holds what a tar of images has
            no business to hold.
    """
    fs, path = fsspec.core.url_to_fs(source)
    path = path.rstrip("/")
    fs.invalidate_cache()
    if split or _ending(path) == ".json":
        return _of_annotations(source, split, images)
    if images:
        raise DataError(f"{images}: an image folder goes with an annotation file or a split, and {source} is neither")
    endings: tuple[str, ...] = IMAGE_ENDINGS + VIDEO_ENDINGS
    if fs.isfile(path):
        folder, files = path.rpartition("/")[0], {path: fs.info(path)}
    elif fs.isdir(path):
        if fs.isfile(f"{path}/{MANIFEST}"):
            return _of_shards(source.rstrip("/"))
        folder, files = path, fs.find(path, detail=True)
    elif has_magic(path):
        endings += (TAR_ENDING,)
        folder, files = _plain_part(path), fs.glob(path, detail=True)
    else:
        raise DataError(f"{source}: no such file or folder")
    unwanted = fsspec.core.url_to_fs(ignore)[1].rstrip("/") + "/" if ignore else "\0"
    names = {
        file.removeprefix(f"{folder}/"): int(entry["size"])
        for file, entry in files.items()
        if entry["type"] == "file" and not file.startswith(unwanted) and (file == path or _is_wanted(file, endings))
    }
    found = [picture for name in sorted(names) for picture in _of_file(fs, folder, name, names[name])]
    if not found:
        raise DataError(
            f"{source}: no image and no video among {len(files)} files; looked for names that end in "
            f"{', '.join(IMAGE_ENDINGS + VIDEO_ENDINGS)}; tars are looked into if they are named, as in 'FOLDER/*.tar'"
        )
    listed = (replace(picture, image_id=number) for number, picture in enumerate(found, 1))
    return InputImages(str(fs.unstrip_protocol(folder)), tuple(listed))


def read_input(fs: Any, folder: str, picture: InputImage) -> bytes:
    """The bytes of an image.

    Args:
        fs: fsspec's file system of ``folder``.

    Raises:
        DataError: There is no such file, or it may not be read.
        OSError: The storage does not answer, not even later.
    """
    path = path_inside(folder, picture.tar or picture.name)
    start, end = (picture.start - BLOCK, picture.start + picture.size) if picture.tar else (None, None)
    for pause in (*(() if isinstance(fs, LocalFileSystem) else RETRY_PAUSES), None):
        try:
            data: bytes = fs.cat_file(path, start=start, end=end)
            return _content(data, picture) if picture.tar else data
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            reason = "not to be read by us" if isinstance(error, PermissionError) else "no such file"
            raise DataError(f"{picture.name}: {reason}") from None
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError


def _content(data: bytes, picture: InputImage) -> bytes:
    """Of a member of a tar, without its header."""
    try:
        member_name(data[:BLOCK], picture.size)
    except DataError as error:
        raise DataError(f"{picture.name}: {error}") from None
    return data[BLOCK:]


def chunks(pictures: Sequence[InputImage], size: int) -> list[list[InputImage]]:
    """The pictures in order, in runs of at most ``size`` images; a video is a run of its own."""
    found: list[list[InputImage]] = []
    for picture in pictures:
        alone = picture.is_video or not found or found[-1][0].is_video or len(found[-1]) == size
        if alone:
            found.append([])
        found[-1].append(picture)
    return found


def _of_annotations(source: str, split: str, images: str) -> InputImages:
    found = find_source(source, split, images or None)
    names = read_file_names(found.annotation_file)
    if not names:
        raise DataError(f"{found.annotation_file}: lists no image")
    return InputImages(found.image_folder, tuple(InputImage(names[i], i) for i in sorted(names)))


def _of_file(fs: Any, folder: str, name: str, size: int) -> list[InputImage]:
    """The file itself, or the images in it if it is a tar; their ids come later."""
    if _ending(name) != TAR_ENDING:
        return [InputImage(name, 0, size)]
    with fs.open(f"{folder}/{name}", "rb") as file:
        members = list_members(file, f"{folder}/{name}")
    return [
        InputImage(f"{name}/{member.name}", 0, member.size, name, member.start)
        for member in members
        if _is_wanted(member.name, IMAGE_ENDINGS)
    ]


def _of_shards(root: str) -> InputImages:
    fs, path = fsspec.core.url_to_fs(root)
    listed = []
    for shard in read_manifest(root).shards:
        tar, members = f"{shard.name}.tar", read_members(root, shard.name)
        records = read_records(fs, f"{path}/{tar}", members)
        for record, (start, size) in zip(records, members[:, :2].tolist(), strict=True):
            listed.append(InputImage(record["file_name"], record["image_id"], size, tar, start))
    if not listed:
        raise DataError(f"{root}: the shards hold no image")
    return InputImages(str(fs.unstrip_protocol(path)), tuple(listed))


def _plain_part(pattern: str) -> str:
    """The folders of a pattern before the first of its ``* ? [``."""
    folders = pattern.split("/")
    return "/".join(folders[: next(n for n, folder in enumerate(folders) if has_magic(folder))])


def _is_wanted(path: str, endings: Sequence[str]) -> bool:
    return _ending(path) in endings and not path.rpartition("/")[2].startswith(".")


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
