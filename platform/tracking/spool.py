"""Keeps the events of a run on disk, in order, until the tracking server has them.

A spool is a folder with ``run.json`` (the run and its server), ``events.jsonl`` (append-only, one event per line),
``sent`` (how many bytes of ``events.jsonl`` were dealt with), ``refused.jsonl`` (the events among them that the server
did not take, each with the reason) and ``artifacts/`` (copies of the files to send). It may be on any local or shared
file system. Put it beside the checkpoints, so that a restart on another machine finds it.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posefleet.data.io.files import read_json, write_file
from posefleet.platform.runtime.redaction import redact

Event = dict[str, Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """An event that the server did not take although it answers."""

    event: Event
    offset: int
    """Where the event ends in ``events.jsonl``."""
    reason: str

    def __str__(self) -> str:
        return f"{_described(self.event)}: {self.reason}"


class Spool:
    """The events of one run. Several processes may open the same spool; :meth:`sending` lets one at a time send."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._events = self.folder / "events.jsonl"
        self._sent = self.folder / "sent"
        self._refused = self.folder / "refused.jsonl"

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
        _append_lines(self._events, events)

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
        return self.events_after(int(self._sent.read_text()) if self._sent.exists() else 0)

    def events_after(self, offset: int) -> list[tuple[Event, int]]:
        """The events behind ``offset``, each with the offset at which it ends."""
        return _read_lines(self._events, offset)

    def mark_sent(self, offset: int, events: list[Event]) -> None:
        """Record that the events up to ``offset`` were dealt with, and delete the artifacts of ``events``, which the
        server has.

        If a crash loses this mark, the events are sent again, which changes nothing on the server.
        """
        write_file(str(self._sent), str(offset).encode())
        self._delete_files(events)

    def refused(self) -> list[Refused]:
        """The events that the server did not take, oldest first."""
        if not self._refused.exists():
            return []
        return [Refused(**entry) for entry, _ in _read_lines(self._refused, 0)]

    def refuse(self, refused: Refused) -> None:
        """Set an event aside that the server does not take, with its artifact; :meth:`mark_sent` must follow."""
        _append_lines(self._refused, [asdict(refused)])

    def still_refused(self, refused: Iterable[Refused], taken: list[Event]) -> None:
        """Keep only ``refused`` of what :meth:`refused` returned, and delete the artifacts of ``taken``."""
        lines = b"".join(json.dumps(asdict(entry)).encode() + b"\n" for entry in refused)
        if lines:
            write_file(str(self._refused), lines)
        else:
            self._refused.unlink(missing_ok=True)
        self._delete_files(taken)

    def _delete_files(self, events: list[Event]) -> None:
        for event in events:
            if event["kind"] == "artifact":
                shutil.rmtree((self.folder / event["file"]).parent, ignore_errors=True)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """Context that one process at a time enters to send; other processes wait."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _described(event: Event) -> str:
    """What an event holds, in a few words."""
    match event:
        case {"kind": "artifact", "file": file, "folder": folder}:
            return f"{folder}/{Path(file).name}" if folder else Path(file).name
        case {"kind": "metrics", "step": step, "values": values}:
            return f"{', '.join(sorted(values)[:3])}{', ...' if len(values) > 3 else ''} of step {step}"
        case {"kind": "tags", "values": values}:
            return f"tags {', '.join(values)}"
        case {"kind": "status", "status": status}:
            return f"status {status}"
    return "an event that is damaged"


def _append_lines(path: Path, entries: Iterable[Event]) -> None:
    with path.open("ab+") as file:
        if file.tell() and not _ends_with_newline(file.fileno()):
            file.write(b"\n")  # a crash cut the last line short
        file.write(b"".join(json.dumps(entry).encode() + b"\n" for entry in entries))
        file.flush()
        os.fsync(file.fileno())


def _read_lines(path: Path, offset: int) -> list[tuple[Event, int]]:
    """The JSON objects in the lines of ``path`` from ``offset`` on, each with the offset at which its line ends."""
    found = []
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                break  # still being written
            offset += len(line)
            try:
                entry = json.loads(line)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                found.append((entry, offset))
            else:
                _log.warning("%s: an event that a crash cut short is skipped", path)
    return found


def _ends_with_newline(descriptor: int) -> bool:
    return os.pread(descriptor, 1, os.fstat(descriptor).st_size - 1) == b"\n"


def _sync_files(path: Path) -> None:
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
