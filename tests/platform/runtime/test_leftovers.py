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

from posefleet.platform.runtime.leftovers import SHARED_MEMORY, _space
from posefleet.platform.runtime.processes import start_time

WORK = """
import multiprocessing, os, signal, sys, time
from posefleet.platform.runtime.leftovers import claim

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let processes in the background ignore it
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


def name_of(process: subprocess.Popen) -> str:
    return f"{process.pid}-{start_time(process.pid)}-{_space()}"


def left(temp: Path, name: str) -> list[str]:
    """What there is of a process, in its temporary folder and in shared memory."""
    files = [path.name for path in temp.iterdir() if path.name != "work.py"]
    return [*files, *(path.name for path in SHARED_MEMORY.glob(f"sem.pf-{name}-*"))]


@pytest.mark.skipif(sys.platform != "linux", reason="semaphores are files on Linux alone")
@pytest.mark.parametrize("folder_stays", [True, False])
def test_a_killed_tree_leaves_semaphores_and_sockets_and_the_next_start_removes_them(
    folder_stays: bool, temp: Path
) -> None:
    first = start(temp)
    name = name_of(first)
    kill_family(first.pid)
    first.wait()
    before = left(temp, name)
    assert any(file.startswith("sem.") for file in before), "nothing to clean up: multiprocessing names them otherwise"
    assert [file for file in before if file.startswith("posefleet-")] == [f"posefleet-{name}"]
    if not folder_stays:
        shutil.rmtree(temp / f"posefleet-{name}")  # as when the next start has another $TMPDIR

    living = start(temp)
    try:
        assert [file for file in left(temp, name) if file in before] == []
        own = name_of(living)
        start(temp).kill()  # a third process sees that the second one lives
        assert any(file.startswith("sem.") for file in left(temp, own))
    finally:
        living.terminate()
        living.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_asked_to_end_leaves_nothing(number: signal.Signals, temp: Path) -> None:
    process = start(temp)
    name = name_of(process)
    assert left(temp, name)
    process.send_signal(number)
    process.wait()
    wait_for(lambda: not left(temp, name), detail=lambda: str(left(temp, name)))


def test_what_belongs_to_others_stays(temp: Path) -> None:
    others = [f"posefleet-1-{start_time(1) or 1}-{_space()}", f"posefleet-999999999-1-{_space() + 1}", "posefleet", "x"]
    for name in others:
        (temp / name).mkdir()
    (temp / f"posefleet-999999999-1-{_space()}").symlink_to(temp / "x")
    process = start(temp)
    process.terminate()
    process.wait()
    assert {path.name for path in temp.iterdir()} >= set(others)
