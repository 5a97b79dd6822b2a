"""Data sets of rendered people or animals, written in COCO's layout.

``OUT/annotations/person_keypoints_{split}.json`` and ``OUT/{split}/{id:012d}.jpg``.
"""

import json
import multiprocessing
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from posefleet.data.images import encode_jpeg
from posefleet.data.io.files import write_file
from posefleet.data.synthetic.scenes import FIGURES, Annotation, FigureKind, SceneConfig, render_scene

ImageInfo = dict[str, Any]
"""COCO's entry of one image: ``id``, ``file_name``, ``width``, ``height``."""


def write_dataset(
    out: Path,
    split: str,
    count: int,
    config: SceneConfig | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Render ``count`` images and their annotations in COCO's layout.

    Image i of a split and seed is always the same file, whatever ``workers`` and ``count``. The json is written last
    and whole; running again reproduces every byte. Images of an earlier, larger run are then removed.

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
    write_image = partial(_write_image, folder, config, (seed, zlib.crc32(split.encode())))
    written = _map(write_image, range(1, count + 1), workers)
    images: list[ImageInfo] = []
    annotations: list[Annotation] = []
    for image, people in track(written, "rendering", count, console=Console(stderr=True)) if progress else written:
        images.append(image)
        for annotation in people:
            annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **annotation})
    document = {
        "info": {
            "description": f"posefleet synthetic figures: {config.figure}",
            "split": split,
            "seed": seed,
            "scene": asdict(config),
        },
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [category_of(config.figure)],
    }
    write_file(str(path), json.dumps(document, separators=(",", ":")).encode())
    _remove_others(folder, {image["file_name"] for image in images})
    return path


def category_of(figure: FigureKind) -> dict[str, Any]:
    """The category of people or animals in COCO's form; its skeleton counts keypoints from 1."""
    schema = FIGURES[figure].schema
    return {
        "id": 1,
        "name": figure,
        "supercategory": figure,
        "keypoints": list(schema.keypoints),
        "skeleton": [[a + 1, b + 1] for a, b in schema.edges],
    }


def _write_image(
    folder: Path, config: SceneConfig, seed: tuple[int, ...], number: int
) -> tuple[ImageInfo, list[Annotation]]:
    """Render and write image ``number``."""
    image, annotations = render_scene(config, (*seed, number))
    name = f"{number:012d}.jpg"
    write_file(str(folder / name), encode_jpeg(image, config.jpeg_quality))
    return {"id": number, "file_name": name, "width": image.shape[1], "height": image.shape[0]}, annotations


def _remove_others(folder: Path, listed: set[str]) -> None:
    """Delete images of a larger data set that was here before; files with other names stay."""
    for path in folder.glob("[0-9]" * 12 + ".jpg"):
        if path.name not in listed:
            path.unlink()


def _map(function: Callable[[int], Any], numbers: range, workers: int) -> Iterator[Any]:
    """Results in order, from this process or from ``workers`` others."""
    if workers == 1:
        yield from map(function, numbers)
        return
    # Spawned, not forked: forking a process with threads (Ray, torch) can deadlock.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(function, numbers, chunksize=16)
