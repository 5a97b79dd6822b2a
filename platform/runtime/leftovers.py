"""Keeps what a process puts outside its run's folder in one place, and removes what dead processes left there.

    $TMPDIR/posefleet-PID-START-SPACE/     sockets of loader processes, torch's cache of this process
    /dev/shm/sem.pf-PID-START-SPACE-...    semaphores of its queues

A process that ends, also by SIGINT or SIGTERM, removes both itself. One that is killed together with its children
cannot. So each start removes those of processes that are gone: the names say which process of which space of process
ids they belong to, and when it started, so that nothing of a living process or of other programs is touched.
"""

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from multiprocessing import util
from pathlib import Path

from posefleet.platform.runtime.processes import ProcessId, start_time

SHARED_MEMORY = Path("/dev/shm")
COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the folder for what torch compiles; torch makes the folder when it is imported."""

_LONGEST = 80
"""Maximum characters of the folder's path: the path of a socket in it may have 107."""

_NAME = re.compile(r"(posefleet|sem\.pf)-(?P<pid>\d+)-(?P<started>[\d.]+)-(?P<space>\d+)(-\w+)?")

_claimed: dict[int, Path] = {}


def claim() -> None:
    """Give this process and its children one folder for temporary files, and remove what dead processes left.

    SIGTERM, unless somebody handles it, ends the process as ``sys.exit`` does from now on, so that it can tidy up.
    """
    if os.getpid() in _claimed:
        return
    process = ProcessId.current()
    name = f"{process.pid}-{process.started}-{_space()}"
    folder = Path(tempfile.gettempdir(), f"posefleet-{name}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return
    _claimed[process.pid] = folder
    # multiprocessing names its semaphores and its folder of sockets by these, in children too; there is no public way.
    settings = getattr(multiprocessing.current_process(), "_config", {})
    settings["semprefix"] = f"/pf-{name}"
    if len(str(folder)) <= _LONGEST:
        settings.setdefault("tempdir", str(folder))
    os.environ.setdefault(COMPILED, str(folder / "compiled"))
    util.Finalize(None, _give_back, exitpriority=-100)  # after multiprocessing's own finalizers
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sweep()


def _give_back() -> None:
    """Remove the folder of this process."""
    if folder := _claimed.pop(os.getpid(), None):
        settings = getattr(multiprocessing.current_process(), "_config", {})
        if settings.get("tempdir") == str(folder):
            del settings["tempdir"]
        if os.environ.get(COMPILED, "").startswith(str(folder)):
            del os.environ[COMPILED]
        shutil.rmtree(folder, ignore_errors=True)


def keep_compiled() -> None:
    """Let torch keep what it compiles in its own folder, where the next start finds it."""
    if (folder := _claimed.get(os.getpid())) and os.environ.get(COMPILED, "").startswith(str(folder)):
        del os.environ[COMPILED]


def sweep() -> None:
    """Remove the folders and semaphores of processes of this user that are gone."""
    space = str(_space())
    for path in (*Path(tempfile.gettempdir()).glob("posefleet-*"), *SHARED_MEMORY.glob("sem.pf-*")):
        found = _NAME.fullmatch(path.name)
        if not found or found["space"] != space or start_time(int(found["pid"])) == found["started"]:
            continue
        with contextlib.suppress(OSError):
            if path.is_symlink() or path.lstat().st_uid != os.getuid():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _space() -> int:
    """The space of process ids that this process sees: two containers may share a folder of temporary files."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:  # not Linux
        return 0
