"""Files of predictions: a part for each chunk, then tables and COCO results made of all parts.

A part is a Parquet file with one row for each image or frame of a video; a row holds its poses as a list. The parts
become

    images.parquet     one row for each image or frame, also where no pose was found
    poses.parquet      one row for each pose, each keypoint in three columns; in videos with the number of the person
    results.json       the poses of the images (not of videos) as COCO keypoint results
    bad_images.json    what could not be predicted, and why

Names of files that are not UTF-8 are written as :func:`~posefleet.data.io.files.printable` spells them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from posefleet.data.coco.results import write_results
from posefleet.data.errors import DataError
from posefleet.data.io.files import create, printable
from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.structures import Poses
from posefleet.platform.prediction.tracker import UNTRACKED

IMAGE_COLUMNS = pa.schema(
    [
        ("image_id", pa.int64()),
        ("path", pa.string()),
        ("frame", pa.int32()),
        ("seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ]
)
"""Columns that describe an image or frame in every table; frame and seconds are null for an image."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The poses of an image or of a frame of a video, or the reason why it could not be predicted."""

    image_id: int
    path: str
    """``InputImage.name``."""
    frame: int | None = None
    """Number of the frame, from 0; None for an image."""
    seconds: float | None = None
    """Time of the frame; None for an image."""
    size: tuple[int, int] | None = None
    """(width, height); None where it could not be predicted."""
    poses: Poses | None = None
    """Keypoints in pixels of the image; None where it could not be predicted."""
    tracks: np.ndarray | None = None
    """(N,) int32 numbers of the people of a video, ``UNTRACKED`` for none; None for an image, or without tracking."""
    reason: str | None = None
    """Why it could not be predicted; None where it could."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Numbers of what the tables hold."""

    images: int = 0
    frames: int = 0
    poses: int = 0
    with_nobody: int = 0
    """Images and frames without a pose."""
    bad: int = 0
    """Files and frames that could not be predicted."""

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in Counts.__slots__})


# ---------------------------------------------------------------------------------------------------- parts


def write_part(path: str, rows: Sequence[ImageResult], schema: KeypointSchema) -> None:
    """Write a part; the file appears whole or not at all."""
    none = np.zeros((0, 1 + 3 * len(schema)), np.float32)
    vectors = [none if row.poses is None else _vectors(row.poses) for row in rows]
    offsets = np.cumsum([0, *map(len, vectors)]).astype(np.int32)
    flat = np.concatenate([none, *vectors])
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])
    images = [
        {
            "image_id": row.image_id,
            "path": printable(row.path),
            "frame": row.frame,
            "seconds": row.seconds,
            "width": row.size and row.size[0],
            "height": row.size and row.size[1],
            "reason": row.reason and printable(row.reason),
        }
        for row in rows
    ]
    table = pa.Table.from_pylist(images, IMAGE_COLUMNS.append(pa.field("reason", pa.string())))
    table = table.append_column("poses", pa.ListArray.from_arrays(offsets, fixed))
    tracks = [None if row.tracks is None else row.tracks.tolist() for row in rows]
    table = table.append_column("tracks", pa.array(tracks, pa.list_(pa.int32())))
    with create(path) as file:
        pq.write_table(table, file)


def join_parts(path: str, parts: Sequence[str]) -> None:
    """Join parts into one, with at most 1024 rows in memory."""
    with ExitStack() as stack:
        file = stack.enter_context(create(path))
        writer: pq.ParquetWriter | None = None
        for batch in _batches(parts):
            writer = writer or stack.enter_context(pq.ParquetWriter(file, batch.schema))
            writer.write_batch(batch)


def read_part(path: str, schema: KeypointSchema) -> list[ImageResult]:
    """Read the rows of a part.

    Raises:
        DataError: The part is damaged.
    """
    return [row for batch in _batches([path]) for row in _rows(batch, schema)]


def _batches(parts: Iterable[str]) -> Iterator[pa.RecordBatch]:
    for part in parts:
        fs, path = fsspec.core.url_to_fs(part)
        fs.invalidate_cache()  # a worker may have written it after this process listed the bucket
        try:
            with fs.open(path, "rb") as file:
                yield from pq.ParquetFile(file).iter_batches(1024)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise DataError(f"{part}: damaged: {error}; delete it and run the same command again") from None


def _rows(batch: pa.RecordBatch, schema: KeypointSchema) -> Iterator[ImageResult]:
    ends = np.cumsum(pc.list_value_length(batch["poses"]).to_numpy()).tolist()
    vectors, start = _flat(batch, schema), 0
    for image, end in zip(batch.drop_columns(["poses"]).to_pylist(), ends, strict=True):
        size, tracks = (image.pop("width"), image.pop("height")), image.pop("tracks", None)
        predicted = image["reason"] is None
        yield ImageResult(
            **image,
            size=size if predicted else None,
            poses=_poses(vectors[start:end]) if predicted else None,
            tracks=None if tracks is None else np.array(tracks, np.int32),
        )
        start = end


def _vectors(poses: Poses) -> np.ndarray:
    """(N, 1 + 3K) float32: score, then x, y and score of each keypoint."""
    triples = torch.cat([poses.keypoints, poses.keypoint_scores[..., None]], 2).flatten(1)
    return torch.cat([poses.scores[:, None], triples], 1).float().numpy()


def _poses(vectors: np.ndarray) -> Poses:
    triples = torch.from_numpy(_triples(vectors).copy())
    return Poses(triples[..., :2], triples[..., 2], torch.from_numpy(vectors[:, 0].copy()))


def _triples(vectors: np.ndarray) -> np.ndarray:
    """(N, K, 3): x, y and score of each keypoint."""
    return vectors[:, 1:].reshape(len(vectors), vectors.shape[1] // 3, 3)


def _flat(batch: pa.RecordBatch, schema: KeypointSchema) -> np.ndarray:
    return np.asarray(batch["poses"].flatten().flatten().to_numpy()).reshape(-1, 1 + 3 * len(schema))


# ---------------------------------------------------------------------------------------------------- tables


def write_tables(output: str, parts: Sequence[str], schema: KeypointSchema) -> Counts:
    """Write the four files into the folder ``output``, with at most 1024 rows in memory.

    Raises:
        DataError: A part is damaged.
    """
    total = Counts()
    bad: list[dict[str, str]] = []
    with ExitStack() as stack:
        writers = [
            stack.enter_context(pq.ParquetWriter(stack.enter_context(create(f"{output}/{name}.parquet")), columns))
            for name, columns in (("images", _image_columns()), ("poses", _pose_columns(schema)))
        ]
        for batch in _batches(parts):
            predicted = batch.filter(pc.is_null(batch["reason"]))
            for writer, table in zip(writers, (_image_table(predicted), _pose_table(predicted, schema)), strict=True):
                writer.write_table(table)
            for row in batch.filter(pc.is_valid(batch["reason"])).to_pylist():
                bad.append({"path": row["path"], "reason": row["reason"]})
            total += _count(predicted)
    with create(f"{output}/bad_images.json") as file:
        file.write(json.dumps(bad, indent=1).encode())
    images = (row for batch in _batches(parts) for row in _rows(batch, schema) if row.frame is None)
    write_results(f"{output}/results.json", ((row.image_id, row.poses) for row in images if row.poses is not None))
    return total + Counts(bad=len(bad))


def _image_columns() -> pa.Schema:
    return IMAGE_COLUMNS.append(pa.field("poses", pa.int32()))


def _pose_columns(schema: KeypointSchema) -> pa.Schema:
    own = [
        ("person", pa.int32()),
        ("track", pa.int32()),
        *((name, pa.float32()) for name in ("score", "x1", "y1", "x2", "y2")),
    ]
    keypoints = [(f"{name}_{value}", pa.float32()) for name in schema.keypoints for value in ("x", "y", "score")]
    columns = [*IMAGE_COLUMNS, *(pa.field(*column) for column in own + keypoints)]
    return pa.schema(columns, metadata={"posefleet.schema": json.dumps(schema.as_dict())})


def _image_table(batch: pa.RecordBatch) -> pa.Table:
    counts = pc.list_value_length(batch["poses"]).cast(pa.int32())
    columns = [batch[name] for name in IMAGE_COLUMNS.names]
    return pa.Table.from_arrays([*columns, counts], schema=_image_columns())


def _pose_table(batch: pa.RecordBatch, schema: KeypointSchema) -> pa.Table:
    images = pc.list_parent_indices(batch["poses"])
    columns = [batch[name].take(images) for name in IMAGE_COLUMNS.names]
    lengths = pc.list_value_length(batch["poses"]).to_numpy()
    person = np.concatenate([np.zeros(0, np.int32), *(np.arange(n, dtype=np.int32) for n in lengths)])
    vectors = _flat(batch, schema)
    points = _triples(vectors)[..., :2]
    boxes = np.concatenate([points.min(1), points.max(1)], 1) if len(points) else np.zeros((0, 4), np.float32)
    numbers = np.concatenate([vectors[:, :1], boxes, vectors[:, 1:]], 1)
    arrays = [
        *columns,
        pa.array(person),
        _tracks(batch, lengths),
        *(pa.array(np.ascontiguousarray(column)) for column in numbers.T),
    ]
    return pa.Table.from_arrays(arrays, schema=_pose_columns(schema))


def _tracks(batch: pa.RecordBatch, lengths: np.ndarray) -> pa.Array:
    """The number of the person that each pose belongs to; null where it belongs to none."""
    known = batch["tracks"].to_pylist() if "tracks" in batch.schema.names else [None] * len(batch)  # earlier versions
    rows = zip(known, lengths.tolist(), strict=True)
    numbers = [number for tracks, length in rows for number in (tracks or [UNTRACKED] * length)]
    return pa.array([None if number == UNTRACKED else number for number in numbers], pa.int32())


def _count(batch: pa.RecordBatch) -> Counts:
    lengths = pc.list_value_length(batch["poses"]).to_numpy()
    frames = len(batch) - batch["frame"].null_count
    return Counts(
        images=len(batch) - frames,
        frames=frames,
        poses=int(lengths.sum()),
        with_nobody=int((lengths == 0).sum()),
    )
