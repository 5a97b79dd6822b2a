"""Log lines that a machine can read, one file for each process of a run; people go on reading the terminal.

FOLDER/logs/driver.jsonl, rank0.jsonl, ...   one JSON object a line, appended by every start of the run

Each line has ``time`` (UTC), ``level``, ``run``, ``rank`` (or what the process is), ``node``, ``process``, ``logger``
and ``message``, and an ``error`` with the traceback where there is one. What looks like a secret stays out of them.
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
"""Of a log file; then it becomes NAME.jsonl.1, and that one goes."""

TERMINAL = "%(levelname)s %(name)s: %(message)s"

OURS = "posefleet"
"""The logger above all of this package's."""


@contextlib.contextmanager
def log_to_folder(folder: str, name: str, *, run: str = "", terminal: int = logging.WARNING) -> Iterator[None]:
    """Within, this process's log goes to ``FOLDER/logs/NAME.jsonl``: all of ours, and warnings of others.

    Args:
        folder: Of a run; a path, or a URI, to which the file is copied at the end (until then it lies in
            :func:`local_folder`).
        name: Of the process: ``rank3``, ``driver``.
        run: Name of the run; default: that of its folder.
        terminal: Level from which on lines go to the terminal, too, where nobody has set up logging before.
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
        if handler.level == logging.NOTSET:  # it must not show what is for the file alone
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
    """Where the log files of a run are while it runs; on this machine also where the run is kept in a bucket."""
    if "://" not in folder:
        return Path(folder, "logs")
    return Path(tempfile.gettempdir(), "posefleet", re.sub(r"\W+", "-", folder), "logs")


def flush() -> None:
    """Bring what was logged to the disk; for whoever ends the process without cleaning up."""
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
    """A disk that takes no more lines costs these lines: neither the run, nor a traceback for each on the terminal."""

    def flush(self) -> None:
        """Raises nothing."""
        with contextlib.suppress(OSError):
            super().flush()

    def close(self) -> None:
        """Raises nothing."""
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing."""


class _JsonLines(logging.Formatter):
    """A record as one line of JSON."""

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
