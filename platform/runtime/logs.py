"""Writes a JSON log file for each process of a run, and keeps the terminal readable for people.

FOLDER/logs/driver.jsonl, rank0.jsonl, ...   one JSON object per line; every start of the run appends

Each line has ``time`` (UTC), ``level``, ``run``, ``rank`` (or the name of the process), ``node``, ``process`` (its
id), ``logger`` and ``message``; ``thread`` outside the main thread, and ``error`` with the traceback of an exception.
Secrets are redacted.
"""

import contextlib
import json
import logging
import os
import platform
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path

import fsspec

from posefleet.platform.runtime.redaction import redact_logs

MOST_BYTES = 20 * 2**20
"""Maximum size of a log file; a full one becomes NAME.jsonl.1 and replaces the file of that name."""

TERMINAL = "%(levelname)s %(name)s: %(message)s"

OURS = "posefleet"
"""Name of the parent of all loggers in this package."""


@contextlib.contextmanager
def log_to_folder(folder: str, name: str, *, run: str = "", terminal: int = logging.WARNING) -> Iterator[None]:
    """Context in which this process logs to ``FOLDER/logs/NAME.jsonl``: posefleet's lines, and others' warnings.

    Args:
        folder: Folder of the run. For a URI, the file is in :func:`local_folder` until the end and is then copied.
        name: Name of the process: ``rank3``, ``driver``.
        run: Name of the run. Default: the name of its folder.
        terminal: Minimum level of the lines that also go to the terminal. No effect if logging is already set up.
    """
    run = run or folder.rstrip("/").rpartition("/")[2]
    path = local_folder(folder) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    root, ours = logging.getLogger(), logging.getLogger(OURS)
    file = _File(path, maxBytes=MOST_BYTES, backupCount=1, encoding="utf-8")
    file.setFormatter(_JsonLines(run, name.removeprefix("rank") if name.startswith("rank") else name))
    file.addFilter(lambda record: record.name.startswith(OURS) or record.levelno >= logging.WARNING)
    added: list[logging.Handler] = [file]
    if not root.handlers:
        shown = logging.StreamHandler(sys.stderr)
        shown.setFormatter(logging.Formatter(TERMINAL))
        shown.setLevel(terminal)
        added.append(shown)
    for handler in root.handlers:
        if handler.level == logging.NOTSET:  # it would show our DEBUG lines, which are for the file alone
            handler.addFilter(_for_people)
    level, ours_level = root.level, ours.level
    root.setLevel(min(level, logging.WARNING))
    ours.setLevel(logging.DEBUG)
    for handler in added:
        root.addHandler(handler)
    redact_logs(*root.handlers)
    try:
        yield
    finally:
        for handler in added:
            root.removeHandler(handler)
            handler.close()
        for handler in root.handlers:
            handler.removeFilter(_for_people)
        root.setLevel(level)
        ours.setLevel(ours_level)
        _deliver(path, folder)


def local_folder(folder: str) -> Path:
    """Folder of a run's log files while it runs: FOLDER/logs, or a temporary folder here where FOLDER is a URI."""
    if "://" not in folder:
        return Path(folder, "logs")
    return Path(tempfile.gettempdir(), "posefleet", re.sub(r"\W+", "-", folder), "logs")


def flush() -> None:
    """Write buffered log lines to disk; call it before ending the process without cleanup."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def _for_people(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.INFO or not record.name.startswith(OURS)


def _deliver(path: Path, folder: str) -> None:
    if "://" not in folder:
        return
    try:
        with fsspec.open(f"{folder}/logs/{path.name}", "wb", auto_mkdir=True) as stream:
            stream.write(path.read_bytes())
    except OSError as error:
        logging.getLogger(__name__).warning("the log stays in %s: %s", path, error)


class _File(RotatingFileHandler):
    """A log file that drops lines when the disk is full, so that neither the run fails nor the terminal fills up."""

    def flush(self) -> None:
        """Flush the file; errors of the disk are ignored."""
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Close the file; errors of the disk are ignored."""
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line without printing a traceback."""


class _JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, run: str, rank: str) -> None:
        super().__init__()
        number = int(rank) if rank.isdecimal() else rank
        self._process = {"run": run, "rank": number, "node": platform.node(), "process": os.getpid()}

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **self._process,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.threadName and record.threadName != threading.main_thread().name:
            line["thread"] = record.threadName
        if record.exc_info:
            line["error"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)
