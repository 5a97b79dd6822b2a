"""Measures what interruptions cost a run: optimiser steps that are taken again, and seconds of its devices.

    FOLDER/progress.json         how far the training has come, written at every step
    FOLDER/interruptions.json    one entry for each interruption

An interruption is a start of the workers that goes on with a training that had not reached its end. It costs

* the steps after the checkpoint that the new workers start from. They are taken again, so a run takes its last step's
  number plus the sum of these in all, whatever happened to it;
* ``devices_before`` times the seconds from that checkpoint to the last step before the interruption;
* ``devices`` times the seconds from the start of the new workers until their first step is taken. If the same command
  has replaced them, the seconds from the last step until their start count too, because the run kept its devices.

Seconds are differences of one process's clock, but for those between the last step and the new workers. Rank 0 keeps
the files. Where the run's folder is in a bucket, its node has a copy of every step, and the bucket one of at most
:data:`UPLOAD_SECONDS` before.
"""

import contextlib
import json
import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from posefleet.data.errors import DataError
from posefleet.data.io.files import read_json, write_file
from posefleet.platform.runtime import lock
from posefleet.platform.runtime.logs import local_folder

PROGRESS, INTERRUPTIONS = "progress.json", "interruptions.json"
UPLOAD_SECONDS = 30.0
"""Shortest time between two copies of the progress to a bucket, in seconds; every checkpoint copies it too."""

_WIDTH = 512
"""Bytes of the progress file: every write replaces all of it, by one call."""

_log = logging.getLogger(__name__)
_clock = time.monotonic
_wall = time.time


@dataclass(frozen=True, kw_only=True, slots=True)
class Interruption:
    """What one interruption cost."""

    number: int
    """From 1."""
    reached: int
    """Optimiser steps that had been taken."""
    resumed_from: int
    """Step of the checkpoint that the new workers started from; 0: from the beginning."""
    devices_before: int
    """Workers before the interruption."""
    devices: int
    """Workers after it."""
    seconds_again: float
    """Seconds of the steps that are taken again."""
    seconds_idle: float
    """Seconds between the last step and the new workers, if the same command replaced them; otherwise 0."""
    seconds_restart: float
    """Seconds from the start of the new workers until their first step was taken."""

    @property
    def steps_again(self) -> int:
        """Optimiser steps that are taken again."""
        return max(0, self.reached - self.resumed_from)

    @property
    def device_seconds(self) -> float:
        """Seconds of devices that were lost."""
        return self.devices_before * self.seconds_again + self.devices * (self.seconds_idle + self.seconds_restart)

    def as_dict(self) -> dict[str, float]:
        """All numbers by name."""
        return {**asdict(self), "steps_again": self.steps_again, "device_seconds": round(self.device_seconds, 3)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """What all interruptions of a run cost together."""

    count: int = 0
    steps_again: int = 0
    device_seconds: float = 0.0

    @classmethod
    def of(cls, interruptions: Sequence[Interruption]) -> "Losses":
        """The sum over ``interruptions``."""
        return cls(
            count=len(interruptions),
            steps_again=sum(one.steps_again for one in interruptions),
            device_seconds=round(sum(one.device_seconds for one in interruptions), 3),
        )

    def __str__(self) -> str:
        times = f"{self.count} time{'s' * (self.count != 1)}"
        return f"{times}; {self.steps_again} steps done again, {self.device_seconds:.0f} device seconds lost"


@dataclass(slots=True)
class _Progress:
    """The content of the progress file."""

    step: int = 0
    saved: int = 0
    """Step of the last checkpoint."""
    since_saved: float = 0.0
    """Seconds from the last checkpoint, or from when the workers were ready, to the last step."""
    time: float = 0.0
    """The clock of rank 0 at the last step."""
    devices: int = 1
    command: str = ""
    """Token of the lock under which the run is trained."""
    ended: bool = False
    """Whether the training reached its end."""


class InterruptionLog:
    """Keeps the progress of one training, and completes an entry for the interruption before it, if there was one."""

    def __init__(self, folder: str, *, devices: int) -> None:
        """Create it where the workers start.

        Args:
            folder: Folder of the run. Empty: nothing is kept, as on ranks other than 0.
            devices: Workers of this start.
        """
        self._folder = folder
        self._devices = devices
        self._started, self._started_wall = _clock(), _wall()
        self._before: _Progress | None = None
        self._now = _Progress(devices=devices, command=_command(folder))
        self._saved_at = self._uploaded = self._started
        self._descriptor: int | None = None
        self._changing = threading.Lock()

    def begin(self, step: int) -> None:
        """The workers are ready to go on after optimiser step ``step``."""
        if not self._folder:
            return
        before = read_progress(self._folder)
        if before and not before.ended:
            self._before = before
        self._now.step = self._now.saved = step
        self._saved_at = _clock()

    def step_taken(self, step: int) -> Interruption | None:
        """Record an optimiser step; returns the interruption before this start when its cost is known: at the first."""
        if not self._folder:
            return None
        with self._changing:
            now = _clock()
            self._now.step, self._now.since_saved, self._now.time = step, now - self._saved_at, _wall()
            interruption, self._before = self._completed(now) if self._before else None, None
            self._write(upload=now - self._uploaded >= UPLOAD_SECONDS)
        return interruption

    def saved(self, step: int, ago: float = 0.0) -> None:
        """Record that a checkpoint of ``step`` is written, whose state was copied ``ago`` seconds before.

        A thread may call it while steps are taken.
        """
        if not self._folder:
            return
        with self._changing:
            last_step = self._saved_at + self._now.since_saved
            self._saved_at = _clock() - ago
            self._now.saved, self._now.since_saved = step, max(0.0, last_step - self._saved_at)
            self._write(upload=True)

    def ended(self) -> None:
        """Record that the training reached its end; a later start with more epochs is no interruption."""
        if self._folder:
            with self._changing:
                self._now.ended = True
                self._write(upload=True)
        self.close()

    def close(self) -> None:
        """Close the progress file."""
        if self._descriptor is not None:
            self._closing()
            self._descriptor = None

    def _completed(self, now: float) -> Interruption:
        """The interruption before this start, after it was added to those of the run."""
        assert self._before
        before, known = self._before, read_interruptions(self._folder)
        same_command = bool(before.command) and before.command == self._now.command
        interruption = Interruption(
            number=len(known) + 1,
            reached=before.step,
            resumed_from=self._now.saved,
            devices_before=before.devices,
            devices=self._devices,
            seconds_again=round(before.since_saved, 3) if before.step > self._now.saved else 0.0,
            seconds_idle=round(max(0.0, self._started_wall - before.time), 3) if same_command else 0.0,
            seconds_restart=round(now - self._started, 3),
        )
        content = json.dumps([one.as_dict() for one in (*known, interruption)], indent=1)
        try:
            write_file(f"{self._folder}/{INTERRUPTIONS}", content.encode())
        except OSError as error:
            _log.warning("an interruption of %s is not recorded: %s", self._folder, error)
        return interruption

    def _write(self, *, upload: bool) -> None:
        """Write the progress; a disk that fails ends no training."""
        content = json.dumps(asdict(self._now)).encode().ljust(_WIDTH)
        try:
            if self._descriptor is None:
                path = _local_file(self._folder)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
                self._closing = weakref.finalize(self, os.close, self._descriptor)
            os.pwrite(self._descriptor, content, 0)
            if upload and "://" in self._folder:
                self._uploaded = _clock()
                write_file(f"{self._folder}/{PROGRESS}", content)
        except OSError as error:
            _log.debug("the progress of %s is not recorded: %s", self._folder, error)


def read_progress(folder: str) -> _Progress | None:
    """How far the training in ``folder`` has come, as far as it is known here; None if nothing is known."""
    found = [_read(str(_local_file(folder)))]
    if "://" in folder:
        found.append(_read(f"{folder}/{PROGRESS}"))
    known = [_Progress(**_known(_Progress, content)) for content in found if isinstance(content, dict)]
    return max(known, key=lambda progress: progress.time, default=None)


def read_interruptions(folder: str) -> list[Interruption]:
    """The interruptions of the run in ``folder``, in order; empty if there was none, or the file cannot be read."""
    content = _read(f"{folder}/{INTERRUPTIONS}")
    with contextlib.suppress(TypeError):
        return [Interruption(**_known(Interruption, entry)) for entry in content or ()]
    return []


def summary(folder: str, **more: object) -> bytes:
    """The content of a run's summary file: ``more``, the steps taken, and the interruptions, each and in all."""
    interruptions, progress = read_interruptions(folder), read_progress(folder)
    content = {
        "name": folder.rstrip("/").rpartition("/")[2],
        **more,
        "step": progress.step if progress else 0,
        "interruptions": asdict(Losses.of(interruptions)),
        "each_interruption": [one.as_dict() for one in interruptions],
    }
    return json.dumps(content, indent=1).encode()


def _local_file(folder: str) -> Path:
    """The progress file on this machine."""
    return local_folder(folder).parent / PROGRESS


def _command(folder: str) -> str:
    try:
        owner = lock.current_owner(folder) if folder else None
    except OSError:
        return ""
    return owner.token if owner else ""


def _read(path: str) -> Any:
    try:
        return read_json(path)
    except (OSError, DataError):  # a crash of the machine may have cut it short
        return None


def _known(kind: type, content: Any) -> dict[str, Any]:
    """The entries of ``content`` that are fields of ``kind``: another version may have others."""
    return {field.name: content[field.name] for field in fields(kind) if field.name in content}
