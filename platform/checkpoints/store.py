"""Writes the checkpoints of a run, finds the latest and the best, and deletes the others."""

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from posefleet.data.io.files import PIECE, create, write_file
from posefleet.platform.checkpoints.format import (
    META,
    STATE,
    WEIGHTS,
    CheckpointError,
    FileRecord,
    HashingStream,
    Meta,
    encode_content,
    read_content,
    read_meta,
    verify,
    write_weights,
)

log = logging.getLogger(__name__)

Writer = Callable[[Any], object]
"""Writes a file to a stream."""
Content = Callable[[Mapping[str, FileRecord]], bytes]
"""The content of ``meta.json`` for the records of the other files."""


class CheckpointStore:
    """The checkpoints of one run, in the folder or URI ``root``; keeps the ``keep`` latest and the best."""

    def __init__(self, root: str, *, keep: int = 2, before_save: Callable[[], None] | None = None) -> None:
        """``before_save`` is called before each :meth:`save`, which it may refuse by a ``CheckpointError``."""
        self.root = root.rstrip("/")
        self.keep = keep
        self._before_save = before_save
        self._fs, self._path = fsspec.url_to_fs(self.root)

    def path_of(self, step: int) -> str:
        """Path of the checkpoint at ``step``, whether it is there or not."""
        return f"{self.root}/{_name_of(step)}"

    def save(self, meta: Meta, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> str:
        """Write a checkpoint, delete those that are no longer kept, and return the path of the new one.

        Args:
            meta: Step, metrics and experiment of the run; the step names the folder.
            weights: Weights to evaluate and serve.
            state: Tensors and plain values to resume training.

        Raises:
            CheckpointError: The checkpoint cannot be written; earlier checkpoints are unchanged.
        """
        if self._before_save:
            self._before_save()
        name = _name_of(meta.step)
        files = {WEIGHTS: partial(write_weights, weights), STATE: partial(torch.save, dict(state))}
        try:
            self._write(name, files, partial(encode_content, meta))
            self._drop_others(name)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {self.root}/{name}: {error}; {self._intact(name)}. Make room (or repair the "
                "storage) and start the same command again: the run goes on from there."
            ) from error
        return self.path_of(meta.step)

    def _intact(self, new: str) -> str:
        """Text for an error: which checkpoint is intact after ``new`` could not be written."""
        try:
            earlier = [name for name in self.names() if name != new]
        except OSError:
            return "earlier ones are as they were"
        return f"{self.root}/{earlier[-1]} is intact" if earlier else "there is no earlier one"

    def start_from(self, path: str) -> None:
        """Replace the checkpoints of this run by a copy of the one in the local folder ``path``, to resume from it.

        Raises:
            CheckpointError: The checkpoint is damaged; those of this run are unchanged.
        """
        verify(path)
        name, own = _name_of(read_meta(path).step), self.names()
        files = {file: partial(_copy, Path(path, file)) for file in (WEIGHTS, STATE)}
        self._write(name, files, lambda _: Path(path, META).read_bytes())
        for other in own:
            if other != name:
                self._fs.rm(f"{self._path}/{other}", recursive=True)

    def names(self) -> list[str]:
        """Names of the checkpoint folders that have a ``meta.json``, oldest first; their files may be damaged."""
        self._fs.invalidate_cache()
        try:  # no pattern, in which characters of the path would have a meaning
            names = [str(path).rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._path, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        found = [name for name in names if name.startswith("step-") and self._fs.exists(f"{self._path}/{name}/{META}")]
        return sorted(found)

    def latest(self) -> str | None:
        """Path of the newest intact checkpoint, or None; logs a warning for each damaged one that it skips."""
        for name in reversed(self.names()):
            path = f"{self.root}/{name}"
            try:
                verify(path)
            except CheckpointError as error:
                log.warning("%s; using the one before it", error)
            else:
                return path
        return None

    def best(self, metric: str = "AP") -> str | None:
        """Path of the checkpoint with the highest ``metric``, the newest if several are equal; None if none has it."""
        scored = [(value, name) for name, value in self._scores(metric).items()]
        return f"{self.root}/{max(scored)[1]}" if scored else None

    def _scores(self, metric: str) -> dict[str, float]:
        scores = {}
        for name in self.names():
            with contextlib.suppress(CheckpointError):  # a damaged checkpoint has no score
                scores[name] = read_content(f"{self.root}/{name}")["metrics"].get(metric, math.nan)
        return {name: value for name, value in scores.items() if math.isfinite(value)}

    def _write(self, name: str, files: Mapping[str, Writer], content: Content) -> None:
        """Write the files in the given order; ``meta.json``, which makes the folder a checkpoint, is the last."""
        if isinstance(self._fs, LocalFileSystem):
            self._write_folder(name, files, content)
            return
        if self._fs.exists(f"{self._path}/{name}"):
            self._fs.rm(f"{self._path}/{name}", recursive=True)
        records = {}
        for file, write in files.items():
            with create(f"{self.root}/{name}/{file}") as target:
                stream = HashingStream(target)
                write(stream)
            records[file] = stream.record
        write_file(f"{self.root}/{name}/{META}", content(records))

    def _write_folder(self, name: str, files: Mapping[str, Writer], content: Content) -> None:
        """Write to a local disk: to a temporary folder, with fsync, which is renamed when it is complete."""
        final, unfinished = Path(self._path, name), Path(self._path, f".{name}.{os.getpid()}.tmp")
        replaced = unfinished.with_suffix(".old")
        records: dict[str, FileRecord] = {}
        try:
            for leftover in Path(self._path).glob(".step-*"):  # of killed processes
                shutil.rmtree(leftover)
            unfinished.mkdir(parents=True, exist_ok=True)
            for file, write in files.items():
                records[file] = _write_synced(unfinished / file, write)
            _write_synced(unfinished / META, lambda stream: stream.write(content(records)))
            if final.exists():
                final.rename(replaced)
            unfinished.rename(final)
            if replaced.exists():
                shutil.rmtree(replaced)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise

    def _drop_others(self, newest: str) -> None:
        """Delete all checkpoints but the ``keep`` latest up to ``newest``, and the best."""
        for name in self.names():
            if name > newest:  # it is damaged; otherwise the run would have resumed from it
                self._fs.rm(f"{self._path}/{name}", recursive=True)
        best = self.best()
        for name in self.names()[: -self.keep]:
            if f"{self.root}/{name}" != best:
                self._fs.rm(f"{self._path}/{name}", recursive=True)


def _name_of(step: int) -> str:
    return f"step-{step:08d}"


def _write_synced(path: Path, write: Writer) -> FileRecord:
    with path.open("wb") as file:
        stream = HashingStream(file)
        write(stream)
        file.flush()
        os.fsync(file.fileno())
    return stream.record


def _copy(source: Path, target: IO[bytes]) -> None:
    with source.open("rb") as stream:
        shutil.copyfileobj(stream, target, PIECE)
