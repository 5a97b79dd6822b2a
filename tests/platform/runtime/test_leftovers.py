"""What processes leave outside their run's folder: nothing if they end, and what was killed is removed by the next."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import kill_family, wait_for

from posefleet.platform.runtime.leftovers import SHARED_MEMORY, _semaphores, _space
from posefleet.platform.runtime.processes import start_time

WORK = """
import multiprocessing, os, sys, time
from posefleet.platform.runtime.leftovers import claim

if __name__ == "__main__":
    claim()
    context = multiprocessing.get_context("forkserver")
    queue = context.Queue()
    child = context.Process(target=time.sleep, args=(600,), daemon=True)
    child.start()
    os.makedirs(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    print("working", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def temp() -> Iterator[Path]:
    """A folder of temporary files of this test's own, with a short path, as sockets need it."""
    folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def start(temp: Path) -> subprocess.Popen:
    script = temp / "work.py"
    script.write_text(WORK)
    variables = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    command = [sys.executable, str(script)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=variables | {"TMPDIR": str(temp)})
    assert process.stdout and process.stdout.readline() == "working\n"
    return process


def left(temp: Path, prefix: str) -> list[str]:
    """What there is of a process, in its temporary folder and in shared memory."""
    files = [path.name for path in temp.iterdir() if path.name != "work.py"]
    return [*files, *(path.name for path in SHARED_MEMORY.glob(f"sem.{prefix[1:]}-*"))]


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores are files on Linux alone")
def test_a_killed_tree_leaves_semaphores_and_sockets_and_the_next_start_removes_them(temp: Path) -> None:
    first = start(temp)
    prefix = _semaphores(first.pid, start_time(first.pid))
    kill_family(first.pid)
    first.wait()
    before = left(temp, prefix)
    assert any(name.startswith("sem.") for name in before), "nothing to clean up: multiprocessing names them otherwise"
    assert [name for name in before if name.startswith("posefleet-")] == [f"posefleet{prefix[3:]}-{_space()}"]

    living = start(temp)
    try:
        assert [name for name in left(temp, prefix) if name in before] == []
        own = _semaphores(living.pid, start_time(living.pid))
        start(temp).kill()  # a third process sees that the second one lives
        assert any(name.startswith("sem.") for name in left(temp, own))
    finally:
        living.terminate()
        living.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_end_leaves_nothing(number: signal.Signals, temp: Path) -> None:
    process = start(temp)
    prefix = _semaphores(process.pid, start_time(process.pid))
    assert left(temp, prefix)
    process.send_signal(number)
    process.wait()
    wait_for(lambda: not left(temp, prefix), detail=lambda: str(left(temp, prefix)))


def test_what_belongs_to_others_stays(temp: Path) -> None:
    others = [f"posefleet-1-{start_time(1) or 1}-{_space()}", f"posefleet-999999999-1-{_space() + 1}", "posefleet", "x"]
    for name in others:
        (temp / name).mkdir()
    (temp / f"posefleet-999999999-1-{_space()}").symlink_to(temp / "x")
    process = start(temp)
    process.terminate()
    process.wait()
    assert {path.name for path in temp.iterdir()} >= set(others)
