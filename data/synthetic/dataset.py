"""Data sets of rendered people, written in COCO's layout.

``OUT/annotations/person_keypoints_{split}.json`` and ``OUT/{split}/{id:012d}.jpg``.
"""

import json
import multiprocessing
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from posefleet.data.images import encode_jpeg
from posefleet.data.keypoints import COCO17
from posefleet.data.synthetic.scenes import Annotation, SceneConfig, render_scene


def write_dataset(
    out: Path,
    split: str,
    count: int,
    config: SceneConfig | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Render ``count`` pictures and their annotations in COCO's layout.

    Picture i of a split and seed is always the same file, whatever ``workers`` and ``count``. The json appears last
    and whole; running again reproduces every byte. Pictures of an earlier, larger run are removed after that.

    Args:
        out: Root of the data set, made when missing.
        split: Name of the image folder and of the json, such as train2017; it is part of the seed, so splits differ.
        workers: Processes; 1 renders in this one.
        progress: Show a bar on stderr.

    Returns:
        Path of the annotations.

    Raises:
        ValueError: ``count`` or ``workers`` is not positive.
    """
    if count < 1 or workers < 1:
        raise ValueError(f"count {count} and workers {workers} must be at least 1")
    config = config or SceneConfig()
    folder, path = out / split, out / "annotations" / f"person_keypoints_{split}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    render = partial(_write_picture, folder, config, (seed, zlib.crc32(split.encode())))
    images: list[dict[str, Any]] = []
    annotations: list[Annotation] = []
    with _mapped(render, range(1, count + 1), workers) as pictures:
        shown = track(pictures, "rendering", count, console=Console(stderr=True)) if progress else pictures
        for image, people in shown:
            images.append(image)
            for annotation in people:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
    info = {"description": "posefleet synthetic people", "split": split, "seed": seed, "scene": asdict(config)}
    document = {
        "info": info,
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [person_category()],
    }
    _write_whole(path, json.dumps(document, separators=(",", ":")).encode())
    _remove_others(folder, {image["file_name"] for image in images})
    return path


def person_category() -> dict[str, Any]:
    """COCO's person category; its skeleton counts keypoints from 1."""
    return {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(COCO17.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in COCO17.edges],
    }


def _write_picture(
    folder: Path, config: SceneConfig, seed: tuple[int, ...], number: int
) -> tuple[dict[str, Any], list[Annotation]]:
    image, annotations = render_scene(config, (*seed, number))
    name = f"{number:012d}.jpg"
    _write_whole(folder / name, encode_jpeg(image, config.jpeg_quality))
    return {"id": number, "file_name": name, "width": image.shape[1], "height": image.shape[0]}, annotations


def _write_whole(path: Path, data: bytes) -> None:
    """A file that is either absent, old or complete."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.replace(path)


def _remove_others(folder: Path, listed: set[str]) -> None:
    """Delete the pictures of a larger data set that was here before, and nothing that is not named like ours."""
    for path in folder.glob("[0-9]" * 12 + ".jpg"):
        if path.name not in listed:
            path.unlink()


@contextmanager
def _mapped(function: Any, numbers: Iterable[int], workers: int) -> Iterator[Iterable[Any]]:
    """Results in order, from this process or from ``workers`` others."""
    if workers == 1:
        yield map(function, numbers)
        return
    # Spawned, not forked: forking a process with threads (Ray, torch) can deadlock.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool.map(function, numbers, chunksize=16)
