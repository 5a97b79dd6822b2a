"""Lists the images and videos to predict, of a folder, pattern, COCO annotation file, shards or tars; reads them."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem

from posefleet.data.coco.file_schema import read_keypoint_names
from posefleet.data.coco.reader import read_file_names
from posefleet.data.coco.source import find_source, parse_place
from posefleet.data.errors import DataError
from posefleet.data.images import IMAGE_ENDINGS
from posefleet.data.io.files import path_inside
from posefleet.data.io.ranges import RETRY_PAUSES
from posefleet.data.io.tars import BLOCK, list_members, member_name
from posefleet.data.shards.layout import MANIFEST, read_manifest, read_members, read_records

VIDEO_ENDINGS = (".mp4", ".mov", ".avi", ".mkv", ".webm")
TAR_ENDING = ".tar"


@dataclass(frozen=True, slots=True)
class InputImage:
    """An image or a video."""

    name: str
    """Path of its file relative to the input's folder; for an image in a tar: path of the tar, "/", name in the tar."""
    image_id: int
    """COCO's image id where the input has ids; else 1, 2, ... in the order of names."""
    size: int = -1
    """Bytes of the file, or of the member of a tar; -1: not known, read the whole file."""
    tar: str = ""
    """Path of the tar that holds the image, relative to the input's folder; empty: the image is a file of its own."""
    start: int = 0
    """Byte of the tar where the image's content starts."""

    @property
    def is_video(self) -> bool:
        """Whether the ending of its name is one of ``VIDEO_ENDINGS``."""
        return not self.tar and _ending(self.name) in VIDEO_ENDINGS


@dataclass(frozen=True, slots=True)
class InputImages:
    """All images and videos of an input, in an order that depends on the input alone."""

    folder: str
    """fsspec path that the names are relative to."""
    listed: tuple[InputImage, ...]
    other: tuple[str, ...] = ()
    """Files of the input's folder that are neither, named as images are."""
    keypoints: tuple[str, ...] = ()
    """Names of the keypoints that the input is annotated with; empty where it is not, or does not say."""
    about: str = ""
    """What was found, for people; empty for inputs that are what they are named."""

    @property
    def fingerprint(self) -> str:
        """sha256, as hexadecimal digits, over ids, sizes and names."""
        sha256 = hashlib.sha256()
        for image in self.listed:
            sha256.update(f"{image.image_id} {image.size} {image.name}\n".encode(errors="surrogateescape"))
        return sha256.hexdigest()


def list_images(
    source: str, *, split: str = "", images: str = "", category: Sequence[str] = (), ignore: str = ""
) -> InputImages:
    """List the images and videos of an input.

    Args:
        source: Any fsspec path: a folder, searched with all folders in it for ``IMAGE_ENDINGS`` and ``VIDEO_ENDINGS``;
            a pattern such as ``photos/**/*.jpg``; one file; a COCO annotation file (with or without annotations); a
            folder of shards; ``FOLDER@SPLIT``; a tar of images in WebDataset's form, or a pattern of such tars.
        split: If given, ``source`` is a data set in COCO's layout or that of a label tool, and this split is listed.
        images: Image folder of an annotation file, where it is not at its usual place.
        category: Categories of an annotation file whose keypoints are meant, where they have different ones.
        ignore: Folder whose files are not listed, such as an output folder inside the input.

    Raises:
        DataError: There is nothing to predict (the message lists what was searched), or a tar is damaged or holds
            members that are not regular files.
    """
    if not split and (place := parse_place(source)):
        source, split = place
    fs, path = fsspec.core.url_to_fs(source)
    path = path.rstrip("/")
    fs.invalidate_cache()
    if split or _ending(path) == ".json":
        return _of_annotations(source, split, images, category)
    if category:
        raise DataError(f"--category goes with an annotation file or a split, and {source} is neither")
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
        folder, files = _folder_of_pattern(path), fs.glob(path, detail=True)
    else:
        raise DataError(f"{source}: no such file or folder")
    ignored = fsspec.core.url_to_fs(ignore)[1].rstrip("/") + "/" if ignore else "\0"
    sizes = {
        file.removeprefix(f"{folder}/"): int(entry["size"])
        for file, entry in files.items()
        if entry["type"] == "file" and not file.startswith(ignored)
    }
    names = [name for name in sorted(sizes) if f"{folder}/{name}" == path or _is_wanted(name, endings)]
    other = tuple(sorted(sizes.keys() - set(names)))
    found = [image for name in names for image in _of_file(fs, folder, name, sizes[name])]
    if not found:
        raise DataError(
            f"{source}: no image and no video among {len(files)} files; searched for names that end in "
            f"{', '.join(IMAGE_ENDINGS + VIDEO_ENDINGS)}; to read tars, name them: 'FOLDER/*.tar'"
        )
    listed = (replace(image, image_id=number) for number, image in enumerate(found, 1))
    return InputImages(str(fs.unstrip_protocol(folder)), tuple(listed), other)


def why_left_out(name: str) -> str:
    """The reason why a file of a folder is no input, from its name."""
    if name.rpartition("/")[2].startswith("."):
        return "its name begins with a dot"
    if _ending(name) == TAR_ENDING:
        return "images in a tar are read if the tar is named: --input 'FOLDER/*.tar'"
    what = f"ends in {_ending(name)}" if _ending(name) else "has no ending"
    return f"no image and no video, by its name, which {what}"


def read_input(fs: Any, folder: str, image: InputImage) -> bytes:
    """Read the bytes of an image; on remote storage try again after each of ``RETRY_PAUSES``.

    Args:
        fs: fsspec file system of ``folder``.
        folder: fsspec path of the input's folder.
        image: An image; not a video.

    Raises:
        DataError: The file does not exist or may not be read, or the tar has changed since it was listed.
        OSError: The storage did not answer, not even to the last try.
    """
    path = path_inside(folder, image.tar or image.name)
    start, end = (image.start - BLOCK, image.start + image.size) if image.tar else (None, None)
    for pause in (*(() if isinstance(fs, LocalFileSystem) else RETRY_PAUSES), None):
        try:
            data: bytes = fs.cat_file(path, start=start, end=end)
            return _member_content(data, image) if image.tar else data
        except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
            reason = "no permission to read it" if isinstance(error, PermissionError) else "no such file"
            raise DataError(f"{image.name}: {reason}") from None
        except OSError:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError


def _member_content(data: bytes, image: InputImage) -> bytes:
    """Content of a tar member, whose header block is checked and removed."""
    try:
        member_name(data[:BLOCK], image.size)
    except DataError as error:
        raise DataError(f"{image.name}: {error}") from None
    return data[BLOCK:]


def split_into_chunks(images: Sequence[InputImage], size: int) -> list[list[InputImage]]:
    """Cut the images, in order, into chunks of at most ``size``; each video is a chunk of its own."""
    chunks: list[list[InputImage]] = []
    for image in images:
        if image.is_video or not chunks or chunks[-1][0].is_video or len(chunks[-1]) == size:
            chunks.append([])
        chunks[-1].append(image)
    return chunks


def _of_annotations(source: str, split: str, images: str, category: Sequence[str]) -> InputImages:
    found = find_source(source, split, images or None)
    names = read_file_names(found.annotation_file)
    if not names:
        raise DataError(f"{found.annotation_file}: lists no image")
    keypoints = read_keypoint_names(found.annotation_file, category)
    listed = tuple(InputImage(found.names(names[i]), i) for i in sorted(names))
    return InputImages(found.image_folder, listed, keypoints=keypoints, about=str(found))


def _of_file(fs: Any, folder: str, name: str, size: int) -> list[InputImage]:
    """The file itself, or the images in it if it is a tar; all with image id 0, to be numbered by the caller."""
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
    manifest = read_manifest(root)
    for shard in manifest.shards:
        tar, members = f"{shard.name}.tar", read_members(root, shard.name)
        records = read_records(fs, f"{path}/{tar}", members)
        for record, (start, size) in zip(records, members[:, :2].tolist(), strict=True):
            listed.append(InputImage(record["file_name"], record["image_id"], size, tar, start))
    if not listed:
        raise DataError(f"{root}: the shards hold no image")
    return InputImages(str(fs.unstrip_protocol(path)), tuple(listed), keypoints=manifest.schema.keypoints)


def _folder_of_pattern(pattern: str) -> str:
    """The leading folders of a pattern that have no ``*``, ``?`` or ``[`` in them."""
    folders = pattern.split("/")
    return "/".join(folders[: next(n for n, folder in enumerate(folders) if has_magic(folder))])


def _is_wanted(path: str, endings: Sequence[str]) -> bool:
    return _ending(path) in endings and not path.rpartition("/")[2].startswith(".")


def _ending(path: str) -> str:
    return PurePosixPath(path).suffix.lower()
