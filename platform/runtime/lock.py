"""A lock in a folder, so that one process at a time works there: a run, or a search.

``FOLDER/lock.json`` names the owner: host, process, start time and Ray job, and a random token. A thread of the owner
raises the number ``beat`` in it every :data:`BEAT_SECONDS`. Another process that wants the folder watches that number:

* The owner was a process of this machine and has ended: the lock is taken over at once.
* The number rises: the folder is in use, and :class:`InUseError` says by whom.
* The number stays the same for :data:`MISSED_BEATS` intervals: the owner is dead, and the lock is taken over. Clocks of
  different machines are never compared.

On a local or shared disk, file locks make each change atomic. A bucket is asked for a conditional write where the
storage library has one; a takeover there is written and read back after a pause, so that of two the later one wins. An
owner whose lock was taken over finds another token in it: see :func:`current_owner`.
"""

import contextlib
import fcntl
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Self

import fsspec

from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.processes import ProcessId

NAME = "lock.json"
BEAT_SECONDS = 10.0
"""Seconds between two heartbeats of an owner."""
MISSED_BEATS = 4
"""Intervals without a heartbeat after which an owner on another machine counts as dead."""
SETTLE_SECONDS = 1.0
"""Pause before a takeover in a bucket is read back."""
WATCH_SECONDS = 1.0
"""Pause between two looks at a heartbeat."""

_log = logging.getLogger(__name__)
_sleep = time.sleep
_now = time.monotonic
_held: dict[str, "FolderLock"] = {}


class InUseError(PlatformError):
    """Another process works in the folder; the message names it and says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Owner:
    """The content of a lock."""

    token: str
    host: str
    machine: str
    pid: int
    started: str
    """See :class:`~posefleet.platform.runtime.processes.ProcessId`."""
    since: str
    """UTC time at which the lock was taken, for people."""
    job: str = ""
    """Submission id or id of the owner's Ray job; empty outside Ray."""
    every: float = BEAT_SECONDS
    """Seconds between two heartbeats."""
    beat: int = 0
    time: float = 0.0
    """The owner's clock at the last heartbeat; only compared on its own machine."""

    @classmethod
    def new(cls) -> Self:
        """This process as an owner."""
        process = ProcessId.current()
        return cls(
            token=uuid.uuid4().hex,
            host=platform.node(),
            machine=process.machine,
            pid=process.pid,
            started=process.started,
            since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
            job=job_id(),
            every=BEAT_SECONDS,
            time=time.time(),
        )

    @property
    def process(self) -> ProcessId:
        """The owner's process."""
        return ProcessId(self.machine, self.pid, self.started)

    def __str__(self) -> str:
        job = f", Ray job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host} (since {self.since}{job})"


def job_id() -> str:
    """Submission id of the Ray job that this process belongs to, else the job's id; empty outside Ray."""
    try:
        config: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        config = {}
    submission = config.get("metadata", {}).get("job_submission_id")
    return str(submission or os.environ.get("RAY_JOB_ID", ""))


class FolderLock:
    """The lock of one folder, a path or URI; :meth:`acquire` it, and :meth:`release` it at the end."""

    def __init__(self, folder: str, what: str) -> None:
        """``what`` names the work in messages, such as ``run smpr-a``."""
        self.folder = folder.rstrip("/")
        self._what = what
        self._file = _file(f"{self.folder}/{NAME}")
        self._owner = Owner.new()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def token(self) -> str:
        """What tells this lock from those before and after it."""
        return self._owner.token

    def acquire(self, *, patience: float = 0.0) -> Self:
        """Take the lock and begin the heartbeat; waits up to ``MISSED_BEATS`` intervals for a silent owner.

        Args:
            patience: Seconds to wait for an owner that lives, because it is about to end.

        Raises:
            InUseError: Another process has the lock.
            OSError: The folder cannot be written.
        """
        give_up = _now() + patience
        watched, changed = None, 0.0
        while True:
            owner = self._file.read()
            if owner is None or owner.process.is_gone() or owner.process == self._owner.process:
                if self._file.swap(owner, self._owner):
                    if owner and (mine := _held.pop(owner.token, None)):
                        mine._ended.set()  # of an earlier start in this very process
                    break
                continue
            if watched is None or watched.token != owner.token:
                if owner.machine != self._owner.machine:
                    _log.warning("%s: %s has the lock; is it still there?", self.folder, owner)
                watched, changed = owner, _now()
            alive = owner.machine == self._owner.machine or owner.beat != watched.beat
            if alive and _now() >= give_up:
                raise InUseError(self._in_use(owner))
            if owner.beat != watched.beat:
                watched, changed = owner, _now()
            if not alive and _now() - changed > MISSED_BEATS * owner.every:
                _log.warning("%s: %s is silent; its lock is taken over", self.folder, owner)
                if self._file.swap(owner, self._owner):
                    break
                continue
            _sleep(WATCH_SECONDS)
        _held[self.token] = self
        self._thread = threading.Thread(target=self._keep_beating, name="lock", daemon=True)
        self._thread.start()
        return self

    def release(self) -> None:
        """End the heartbeat and give the lock up, unless somebody has taken it over; a second call does nothing."""
        self._ended.set()
        if _held.pop(self.token, None) is None:
            return
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(1.0)
        with contextlib.suppress(OSError):
            self._file.remove(self.token)

    def beat(self) -> bool:
        """Raise the heartbeat; False if another process has taken the lock over."""
        self._owner = replace(self._owner, beat=self._owner.beat + 1, time=time.time())
        try:
            if self._file.update(self._owner):
                return True
        except OSError as error:  # the storage may answer later
            _log.debug("no heartbeat in %s: %s", self.folder, error)
            return True
        _log.error("another process has taken over %s: %s", self._what, self._file.read())
        return False

    def _keep_beating(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if not self.beat():
                return

    def _in_use(self, owner: Owner) -> str:
        age = f"{max(0.0, time.time() - owner.time):.0f}" if owner.machine == self._owner.machine else "less than 10"
        stop = f"ray job stop {owner.job}" if owner.job else f"kill -INT {owner.pid} on {owner.host}"
        return (
            f"{self._what} in {self.folder} is in use by {owner}; its last heartbeat was {age} s ago. Wait for "
            f"its end, stop it ({stop}), or choose another name or folder"
        )

    def __enter__(self) -> Self:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def release(token: str) -> None:
    """Release the lock with this token, if this process holds it."""
    if lock := _held.get(token):
        lock.release()


def current_owner(folder: str) -> Owner | None:
    """Who has the lock of ``folder``; None if nobody has.

    Raises:
        OSError: The lock cannot be read.
    """
    return _file(f"{folder.rstrip('/')}/{NAME}").read()


# ---------------------------------------------------------------------------------------------------- storage


def _file(path: str) -> "_LocalFile | _Object":
    return _Object(path) if "://" in path else _LocalFile(Path(path))


def _decode(data: bytes) -> Owner | None:
    """The owner in the content of a lock: None if it is empty, an owner without a token if it is damaged."""
    if not data:
        return None
    try:
        content = json.loads(data)
        return Owner(**{field.name: content[field.name] for field in fields(Owner) if field.name in content})
    except (ValueError, TypeError):
        return _DAMAGED


_DAMAGED = Owner(token="", host="an unknown host", machine="", pid=0, started="", since="an unknown time")


def _encode(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode()


class _LocalFile:
    """A lock on a local or shared disk; every change is made while the file itself is locked."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> Owner | None:
        try:
            return _decode(self._path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None

    def swap(self, expected: Owner | None, new: Owner) -> bool:
        """Write ``new`` if the lock still holds ``expected``."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._opened("ab+") as file:
            if _decode(file.read()) != expected:
                return False
            self._write(file, new)
            return True

    def update(self, new: Owner) -> bool:
        """Write ``new`` unless the lock has another token."""
        with self._opened("ab+") as file:
            found = _decode(file.read())
            if found and found.token not in ("", new.token):
                return False
            self._write(file, new)
            return True

    def remove(self, token: str) -> None:
        """Remove the lock if it has ``token``, and its folder if nothing else was put there."""
        with self._opened("rb+") as file:
            found = _decode(file.read())
            if found and found.token == token:
                self._path.unlink()
        with contextlib.suppress(OSError):
            self._path.parent.rmdir()

    @contextlib.contextmanager
    def _opened(self, mode: str) -> Iterator[IO[bytes]]:
        while True:
            with self._path.open(mode) as file:
                with contextlib.suppress(OSError):  # some shared disks have no file locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_current(file):
                    file.seek(0)
                    yield file
                    return

    def _is_current(self, file: IO[bytes]) -> bool:
        """Whether the path still leads to the open file, which its owner may have removed while this one waited."""
        try:
            return os.path.samestat(os.fstat(file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False

    @staticmethod
    def _write(file: IO[bytes], owner: Owner) -> None:
        file.truncate(0)
        file.seek(0)
        file.write(_encode(owner))
        file.flush()


class _Object:
    """A lock in a bucket."""

    def __init__(self, path: str) -> None:
        self._fs, self._path = fsspec.core.url_to_fs(path)

    def read(self) -> Owner | None:
        try:
            return _decode(self._fs.cat_file(self._path))
        except FileNotFoundError:
            return None

    def swap(self, expected: Owner | None, new: Owner) -> bool:
        """Write ``new`` if the lock still holds ``expected``; of two that do so at once, one gets True."""
        if expected is None and self.read() is None:
            try:
                self._fs.pipe_file(self._path, _encode(new), mode="create")
            except (NotImplementedError, TypeError, ValueError):  # the library knows no conditional write
                self._fs.pipe_file(self._path, _encode(new))
            except OSError:
                if (found := self.read()) is None and not self._fs.exists(self._path):
                    raise
                return found is not None and found.token == new.token
        elif self.read() != expected:
            return False
        else:
            self._fs.pipe_file(self._path, _encode(new))
        _sleep(SETTLE_SECONDS)
        found = self.read()
        return found is not None and found.token == new.token

    def update(self, new: Owner) -> bool:
        """Write ``new`` unless the lock has another token."""
        found = self.read()
        if found and found.token not in ("", new.token):
            return False
        self._fs.pipe_file(self._path, _encode(new))
        return True

    def remove(self, token: str) -> None:
        """Remove the lock if it has ``token``."""
        found = self.read()
        if found and found.token == token:
            self._fs.rm_file(self._path)
