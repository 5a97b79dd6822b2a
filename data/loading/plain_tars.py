"""Reads anybody's WebDataset tars by position, in the same seeded, endless order as our shards, and resumes exactly.

A sample is what WebDataset takes for one: consecutive files of a tar whose names are equal up to the first dot of their
last part. ``a/0001.jpg`` and ``a/0001.cls.json`` are the members ``jpg`` and ``cls.json`` of the sample ``a/0001``. The
tars must not be compressed. They are indexed once, which reads their headers alone; :class:`PlainTars` then takes a
sample out of the middle of a tar. Positions are those of :mod:`posefleet.data.loading.shard_dataset`.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import fsspec
import numpy as np
from fsspec.core import has_magic

from posefleet.data.errors import DataError
from posefleet.data.io.files import read_json, write_file
from posefleet.data.io.ranges import RangeError, fetch_ranges
from posefleet.data.io.tars import list_members, whole_blocks
from posefleet.data.loading.order import Order

READERS = 16
"""Tars that are indexed at the same time."""

VERSION = 1
"""Of the file that keeps an index."""

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]+)")
"""Key and member of a file name; files that do not match, such as hidden ones, are left out."""

Members = Mapping[str, Any]
"""``__key__`` -> name of the sample; ``jpg``, ``json``, ``cls.json``, ... -> bytes of that file."""

T = TypeVar("T")


def as_read(sample: Members, rng: np.random.Generator) -> Any:
    """The sample as it is read; what :class:`PlainTars` gives without a ``decode``."""
    return sample


class PlainTars(Generic[T]):
    """The samples of tars by position: a map-style data set for ``torch.utils.data.DataLoader``, with
    :func:`posefleet.data.loading.order.step_positions` as its ``batch_sampler``.

    Epoch e of N samples covers positions [eN, (e + 1)N), each sample once. What is at a position, and the random
    numbers for it, depend on the tars, the seed and the position alone, so any number of ranks and loader processes see
    the same. It pickles as its index.

    Args:
        tars: A folder, a pattern such as ``s3://bucket/train-*.tar``, or the paths of the tars; any fsspec paths of one
            store. The order of the list counts; a folder or pattern is sorted.
        decode: Called with each sample and a generator that depends on seed and position; its result is the item.
        seed: Of the order. None: the stored order.
        window: Samples that are shuffled together, see :class:`posefleet.data.loading.order.Order`.
        index: A file, any fsspec path, that keeps the index, so that later starts do not read the headers again. It is
            written where it is missing, or where a tar has another size or time. Empty: no file.

    Raises:
        DataError: There are no tars, one is damaged or compressed, or they have no samples.
    """

    def __init__(
        self,
        tars: str | Sequence[str],
        *,
        decode: Callable[[Members, np.random.Generator], T] = as_read,
        seed: int | None = 0,
        window: int = 8192,
        index: str = "",
    ) -> None:
        self._fs, self._paths = _listed(tars)
        self._decode = decode
        self._bounds = _indexed(self._fs, self._paths, index)
        counts = [len(bounds) for bounds in self._bounds]
        if not sum(counts):
            raise DataError(f"{tars}: no samples in {len(self._paths)} tars; a sample is files named KEY.jpg, KEY.json")
        self.order = Order(counts, seed, window)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.order.samples

    def __getitem__(self, position: int) -> T:
        """The decoded sample at a position."""
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[T]:
        """The decoded samples at ``positions``, in one request to the store.

        Raises:
            DataError: A sample cannot be read. What ``decode`` raises is passed on.
        """
        found = zip(*self.order.locate(positions), strict=True)
        ranges = [(self._paths[tar], *map(int, self._bounds[tar][sample])) for tar, sample in found]
        try:
            contents = fetch_ranges(self._fs, ranges)
        except RangeError as error:
            raise DataError(f"{error.path}: {error}") from error.__cause__
        samples = (_sample(content, *part) for content, part in zip(contents, ranges, strict=True))
        return [self._decode(s, self.order.augmentation_rng(p)) for s, p in zip(samples, positions, strict=True)]


def _listed(tars: str | Sequence[str]) -> tuple[Any, list[str]]:
    """The file system of the tars, and their paths in it."""
    fs, path = fsspec.core.url_to_fs(tars if isinstance(tars, str) else tars[0] if tars else "")
    fs.invalidate_cache()
    if not isinstance(tars, str):
        paths = [str(fs._strip_protocol(tar)) for tar in tars]
    elif fs.isdir(path):
        paths = sorted(file for file in fs.ls(path, detail=False) if file.endswith(".tar"))
    else:
        paths = sorted(fs.glob(path)) if has_magic(path) else [path]
    if not paths:
        raise DataError(f"{tars}: no tar there; give a folder of *.tar, a pattern in quotes, or a list of paths")
    for tar in paths:
        if tar.endswith(("gz", "bz2", "xz", "zst")):
            raise DataError(f"{tar}: a compressed tar cannot be read from its middle; decompress it (gunzip)")
    return fs, paths


def _indexed(fs: Any, paths: Sequence[str], index: str) -> list[np.ndarray]:
    """For each tar (samples, 2) int64: where a sample begins and ends, in bytes of the tar."""
    print_of_tars = _fingerprint(fs, paths)
    known = read_json(index) if index else None
    if isinstance(known, dict) and known.get("fingerprint") == print_of_tars:
        return [np.array(rows, np.int64).reshape(-1, 2) for rows in known["samples"]]
    with ThreadPoolExecutor(READERS) as threads:
        found = list(threads.map(lambda path: _sample_bounds(fs, path), paths))
    if index:
        content = {"fingerprint": print_of_tars, "samples": [bounds.tolist() for bounds in found]}
        write_file(index, json.dumps(content).encode())
    return found


def _fingerprint(fs: Any, paths: Sequence[str]) -> str:
    """What changes where a tar is another one: names, sizes and times."""
    sha256 = hashlib.sha256(f"{VERSION}".encode())
    for path in paths:
        try:
            entry = fs.info(path)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        changed = next((entry[name] for name in ("ETag", "mtime", "LastModified", "updated") if name in entry), "")
        sha256.update(f"\n{path} {entry['size']} {changed}".encode(errors="surrogateescape"))
    return sha256.hexdigest()


def _sample_bounds(fs: Any, path: str) -> np.ndarray:
    """(samples, 2) int64, bytes of a tar: from the header of a sample's first file to the end of its last."""
    rows: list[list[int]] = []
    last_key, end = None, 0
    with fs.open(path, "rb") as file:
        members = list_members(file, path)
    for member in members:
        start, end = end, member.start + whole_blocks(member.size)  # a long name makes a header of several blocks
        if not (name := _NAME.fullmatch(member.name)):
            continue
        if name[1] == last_key:
            rows[-1][1] = end
        else:
            rows.append([start, end])
        last_key = name[1]
    return np.array(rows, np.int64).reshape(-1, 2)


def _sample(content: bytes, path: str, start: int, end: int) -> dict[str, Any]:
    """The members of one sample, from its bytes of the tar."""
    what = f"{path}: the sample at byte {start}"
    if len(content) < end - start:
        raise DataError(f"{what}: the tar ends before it does; did the file change? its index is made at the start")
    sample: dict[str, Any] = {}
    for member in list_members(io.BytesIO(content), what):
        if name := _NAME.fullmatch(member.name):
            sample["__key__"] = name[1]
            sample[name[2]] = content[member.start : member.start + member.size]
    return sample
