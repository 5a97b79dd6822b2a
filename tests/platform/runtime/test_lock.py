"""One process at a time in a folder: owners that live, that died, and that another took for dead."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from object_store import ObjectStore

from posefleet.platform.runtime import lock
from posefleet.platform.runtime.lock import FolderLock, InUseError, Owner, current_owner
from posefleet.platform.runtime.processes import ProcessId, start_time

HOLD = """
import sys, time
from posefleet.platform.runtime.lock import FolderLock
with FolderLock(sys.argv[1], "run a"):
    print("held", flush=True)
    time.sleep(600)
"""


class Clock:
    """Time that passes in sleeps alone; ``meanwhile`` is called in each."""

    def __init__(self) -> None:
        self.now = 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lock, "_sleep", clock.sleep)
    monkeypatch.setattr(lock, "_now", lambda: clock.now)
    return clock


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The folder of a run on a disk, and in a bucket that writes conditionally."""
    if request.param == "disk":
        yield str(tmp_path / "run")
        return
    yield "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()


def elsewhere(folder: str, **changes: Any) -> FolderLock:
    """The lock of a process on another machine."""
    held = FolderLock(folder, "run a")
    held._owner = replace(held._owner, machine="another", host="gpu-7", **changes)
    return held


def test_a_second_process_is_told_who_has_it_and_takes_it_over_at_once_when_that_is_killed(tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    first = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout and first.stdout.readline() == "held\n"
        with pytest.raises(InUseError) as told:
            FolderLock(folder, "run a").acquire()
        message = str(told.value)
        assert message.startswith(f"run a in {folder} is in use by process {first.pid} on ")
        assert "its last heartbeat was" in message and f"stop it (kill -INT {first.pid} on " in message
        first.send_signal(signal.SIGSTOP)
        with pytest.raises(InUseError):  # it may go on
            FolderLock(folder, "run a").acquire()
    finally:
        first.kill()
        first.wait()
    with FolderLock(folder, "run a") as second:
        owner = current_owner(folder)
        assert owner and (owner.token, owner.pid) == (second.token, os.getpid())
    assert current_owner(folder) is None and not Path(folder).exists()


def test_an_owner_elsewhere_whose_heart_beats_keeps_it(folder: str, clock: Clock) -> None:
    owner = elsewhere(folder, job="raysubmit_1").acquire()
    clock.meanwhile = owner.beat
    with pytest.raises(
        InUseError, match=r"process \d+ on gpu-7 \(since .*, Ray job raysubmit_1\).*ray job stop raysub"
    ):
        FolderLock(folder, "run a").acquire()
    assert current_owner(folder) == owner._owner
    assert clock.now <= lock.BEAT_SECONDS + 2 * lock.WATCH_SECONDS


def test_a_silent_owner_elsewhere_loses_it_whatever_its_clock_says(folder: str, clock: Clock) -> None:
    first = elsewhere(folder, time=4e9).acquire()  # its clock is decades ahead
    second = FolderLock(folder, "run a").acquire()
    assert lock.MISSED_BEATS * lock.BEAT_SECONDS < clock.now < (lock.MISSED_BEATS + 1) * lock.BEAT_SECONDS
    assert not first.beat(), "it comes back, and finds that it has lost"
    first.release()
    owner = current_owner(folder)
    assert owner and owner.token == second.token and second.beat()


def test_who_has_patience_waits_for_an_owner_that_is_about_to_end(folder: str, clock: Clock) -> None:
    first = elsewhere(folder).acquire()

    def beat_or_end() -> None:
        first.beat() if clock.now < 30 else first.release()

    clock.meanwhile = beat_or_end
    second = FolderLock(folder, "run a").acquire(patience=60)
    owner = current_owner(folder)
    assert owner and owner.token == second.token


def test_a_process_that_got_the_id_of_a_dead_owner_is_not_the_owner(tmp_path: Path) -> None:
    held = FolderLock(str(tmp_path), "run a")
    held._owner = replace(held._owner, pid=os.getppid(), started="1")
    held.acquire().beat()
    FolderLock(str(tmp_path), "run a").acquire().release()


def test_a_zombie_is_gone() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    process = ProcessId(ProcessId.current().machine, child.pid, start_time(child.pid))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not reaped
    assert process.is_gone() and not ProcessId.current().is_gone()
    assert not replace(process, machine="another").is_gone()
    child.wait()


def test_a_damaged_lock_is_taken_over_if_nobody_repairs_it(folder: str, clock: Clock) -> None:
    with fsspec.open(f"{folder}/lock.json", "wb", auto_mkdir=True) as file:
        file.write(b"{")
    with FolderLock(folder, "run a") as held:
        owner = current_owner(folder)
        assert owner and owner.token == held.token
    assert clock.now > lock.MISSED_BEATS * lock.BEAT_SECONDS


def test_of_many_that_want_a_free_lock_one_gets_it(tmp_path: Path) -> None:
    file = lock._file(str(tmp_path / "lock.json"))
    got: list[bool] = []
    threads = [threading.Thread(target=lambda: got.append(file.swap(None, Owner.new()))) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 15 + [True]


def test_a_bucket_is_asked_for_a_conditional_write(object_store: ObjectStore, clock: Clock) -> None:
    file, first, second = lock._file("s3://bucket/locked/lock.json"), Owner.new(), Owner.new()
    assert file.swap(None, first)
    looked = file.read
    file.read = lambda: (setattr(file, "read", looked), None)[1]  # type: ignore[method-assign,func-returns-value]
    assert not file.swap(None, second), "it looked before the first wrote"
    assert file.read() == first
    assert file.update(replace(first, beat=1)) and not file.update(second)
    assert file.swap(replace(first, beat=1), second) and file.read() == second
    file.remove(first.token)
    file.remove(second.token)
    assert file.read() is None


def test_a_bucket_without_conditional_writes_is_read_back(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = fsspec.filesystem("memory")
    write = fs.pipe_file

    def pipe_file(path: str, value: bytes, **options: object) -> None:
        if options:
            raise NotImplementedError
        write(path, value)

    monkeypatch.setattr(type(fs), "pipe_file", lambda self, *args, **options: pipe_file(*args, **options))
    file, first, second = lock._file("memory://bucket/read/lock.json"), Owner.new(), Owner.new()
    assert file.swap(None, first)
    file.remove(first.token)
    clock.meanwhile = lambda: write("/bucket/read/lock.json", lock._encode(second))  # a moment later
    assert not file.swap(None, first) and file.read() == second
