"""Keeps the events of a run on disk, in order, until the tracking server has them.

A spool is a folder with ``run.json`` (the run and its server), ``events.jsonl`` (append-only, one event per line),
``sent`` (how many bytes of ``events.jsonl`` the server has) and ``artifacts/`` (copies of the files to send). It may
be on any local or shared file system. Put it beside the checkpoints, so that a restart on another machine finds it.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posefleet.data.io.files import read_json, write_file
from posefleet.platform.runtime.redaction import redact

Event = dict[str, Any]

_log = logging.getLogger(__name__)


class Spool:
    """The events of one run. Several processes may open the same spool; :meth:`sending` lets one at a time send."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._events = self.folder / "events.jsonl"
        self._sent = self.folder / "sent"

    @classmethod
    def create(cls, folder: Path | str, uri: str, run_id: str) -> "Spool":
        """Open the spool of a run, a new one or that of an earlier process.

        Raises:
            ValueError: The folder holds the events of another run.
        """
        spool = cls(folder)
        (spool.folder / "artifacts").mkdir(parents=True, exist_ok=True)
        header = spool.folder / "run.json"
        if header.exists() and (other := spool.header()["run_id"]) != run_id:
            raise ValueError(f"{folder} holds events of run {other}, not of {run_id}: give every run its own folder")
        write_file(str(header), json.dumps({"uri": redact(uri), "run_id": run_id}).encode())
        return spool

    def header(self) -> dict[str, str]:
        """``uri``, without its password, and ``run_id``.

        Raises:
            ValueError: The folder is not a spool, or its ``run.json`` is damaged.
        """
        header: dict[str, str] | None = read_json(str(self.folder / "run.json"))
        if header is None:
            raise ValueError(f"{self.folder} is not a spool: it has no run.json")
        return header

    def append(self, events: list[Event]) -> None:
        """Write ``events`` to disk; once the call returns, they survive a crash of this machine."""
        for event in events:
            if event["kind"] == "artifact":
                _sync_files(self.folder / event["file"])
        with self._events.open("ab+") as file:
            if file.tell() and not _ends_with_newline(file.fileno()):
                file.write(b"\n")  # a crash cut the last line short
            file.write(b"".join(json.dumps(event).encode() + b"\n" for event in events))
            file.flush()
            os.fsync(file.fileno())

    def keep(self, path: Path | str) -> str:
        """Copy a file or folder into the spool; returns the copy's path relative to the spool."""
        source = Path(path)
        kept = Path(tempfile.mkdtemp(dir=self.folder / "artifacts")) / source.name
        if source.is_dir():
            shutil.copytree(source, kept)
        else:
            shutil.copy2(source, kept)
        return kept.relative_to(self.folder).as_posix()

    def keep_bytes(self, name: str, data: bytes) -> str:
        """Write ``data`` into the spool as a file ``name``; returns its path relative to the spool."""
        kept = Path(tempfile.mkdtemp(dir=self.folder / "artifacts")) / name
        kept.write_bytes(data)
        return kept.relative_to(self.folder).as_posix()

    def pending(self) -> list[tuple[Event, int]]:
        """The events that the server does not have, each with the offset for :meth:`mark_sent`."""
        if not self._events.exists():
            return []
        offset = int(self._sent.read_text()) if self._sent.exists() else 0
        waiting = []
        with self._events.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # still being written
                offset += len(line)
                try:
                    waiting.append((json.loads(line), offset))
                except json.JSONDecodeError:
                    _log.warning("%s: an event that a crash cut short is skipped", self._events)
        return waiting

    def mark_sent(self, offset: int, events: list[Event]) -> None:
        """Record that the server has ``events`` and all events before ``offset``, and delete their artifacts.

        If a crash loses this mark, the events are sent again, which changes nothing on the server.
        """
        write_file(str(self._sent), str(offset).encode())
        for event in events:
            if event["kind"] == "artifact":
                shutil.rmtree((self.folder / event["file"]).parent, ignore_errors=True)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Context that one process at a time enters to send; other processes wait."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _ends_with_newline(descriptor: int) -> bool:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == b"\n"


def _sync_files(path: Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
