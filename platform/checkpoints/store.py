"""Writes the checkpoints of a run, finds the latest and the best, and deletes the others."""

import contextlib
import io
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from posefleet.data.io.files import write_file
from posefleet.platform.checkpoints.format import (
    META,
    STATE,
    WEIGHTS,
    CheckpointError,
    Meta,
    encode_content,
    encode_weights,
    read_content,
    read_meta,
    verify,
)

log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, in the folder or URI ``root``; keeps the ``keep`` latest and the best."""

    def __init__(self, root: str, *, keep: int = 2, before_save: Callable[[], None] | None = None) -> None:
        """``before_save`` is called before each :meth:`save`, which it may refuse by a ``CheckpointError``."""
        self.root = root.rstrip("/")
        self.keep = keep
        self._before_save = before_save
        self._fs, self._path = fsspec.url_to_fs(self.root)

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
        name = f"step-{meta.step:08d}"
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        files = {WEIGHTS: encode_weights(weights), STATE: buffer.getvalue()}
        files[META] = encode_content(meta, files)
        try:
            self._write(name, files)
            self._drop_others(name)
        except OSError as error:
            raise CheckpointError(
                f"cannot write checkpoint {self.root}/{name}: {error}; {self._intact(name)}. Make room (or repair the "
                "storage) and start the same command again: the run goes on from there."
            ) from error
        return f"{self.root}/{name}"

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
        meta = read_meta(path)
        name, own = f"step-{meta.step:08d}", self.names()
        self._write(name, {file: Path(path, file).read_bytes() for file in (WEIGHTS, STATE, META)})
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

    def _write(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write the files in the given order; ``meta.json``, which makes the folder a checkpoint, is the last."""
        if isinstance(self._fs, LocalFileSystem):
            self._write_folder(name, files)
            return
        if self._fs.exists(f"{self._path}/{name}"):
            self._fs.rm(f"{self._path}/{name}", recursive=True)
        for file, data in files.items():
            write_file(f"{self.root}/{name}/{file}", data)

    def _write_folder(self, name: str, files: Mapping[str, bytes]) -> None:
        """Write to a local disk: to a temporary folder, with fsync, which is renamed when it is complete."""
        final, unfinished = Path(self._path, name), Path(self._path, f".{name}.{os.getpid()}.tmp")
        replaced = unfinished.with_suffix(".old")
        try:
            for leftover in Path(self._path).glob(".step-*"):  # of killed processes
                shutil.rmtree(leftover)
            unfinished.mkdir(parents=True, exist_ok=True)
            for file, data in files.items():
                with (unfinished / file).open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
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
