"""Processes that decode: what they give, and what becomes of images that take too long, too much, or break them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import hostile_images
import numpy as np
import psutil
import pytest
from processes import wait_for

from posefleet.data.decode_process import DecodeProcesses
from posefleet.data.errors import DataError, NotAnImage, TooCostly, TooManyPixels
from posefleet.data.image_limits import ImageLimits
from posefleet.data.images import FORMATS, decode_image, encode_image

MOST = 50_000_000
PIXELS = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
PNG = encode_image(PIXELS, ".png")

UNBOUNDED = ImageLimits(scans=10**6, scanned_pixels=10**15, parts=10**9, unpacked_text=10**12)
"""Stands for a trick that the limits do not know."""


@pytest.fixture
def processes() -> Iterator[DecodeProcesses]:
    pool = DecodeProcesses(1, cpu_s=1.0, most_pixels=MOST, limits=UNBOUNDED)
    yield pool
    pool.close()


def children() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "posefleet.data.decode_process" in child.cmdline()]


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_gives_what_a_thread_gives(processes: DecodeProcesses) -> None:
    for data in (PNG, hostile_images.apng(3), hostile_images.webp(3), hostile_images.empty_scans(30, 640)):
        assert np.array_equal(processes.decode(data, formats=FORMATS), decode_image(data))
    assert len(children()) == 1, "one process for all"
    with pytest.raises(NotAnImage, match=r"a\.txt: 5 bytes"):
        processes.decode(b"hello", what="a.txt", formats=FORMATS)
    with pytest.raises(TooManyPixels):
        processes.decode(hostile_images.png(size=(8_000, 8_000)), formats=FORMATS)
    with pytest.raises(DataError):
        processes.decode(PNG[:300], formats=FORMATS)
    assert np.array_equal(processes.decode(PNG, formats=FORMATS), PIXELS)


@pytest.mark.parametrize(
    "make", [lambda: hostile_images.empty_scans(3_000), hostile_images.many_texts], ids=["scans", "texts"]
)
def test_an_image_that_overruns_ends_its_process_and_the_next_is_decoded(
    processes: DecodeProcesses, make: object
) -> None:
    processes.decode(PNG, formats=FORMATS)
    (child,) = children()
    with pytest.raises(TooCostly, match=r"evil\.jpg: decoding it took more"):
        processes.decode(make(), what="evil.jpg", formats=FORMATS)
    assert ended(child.pid)
    assert np.array_equal(processes.decode(PNG, formats=FORMATS), PIXELS)
    assert [other.pid != child.pid for other in children()] == [True]


def test_a_process_that_hangs_is_killed(processes: DecodeProcesses, monkeypatch: pytest.MonkeyPatch) -> None:
    processes.decode(PNG, formats=FORMATS)
    (child,) = children()
    processes._timeout_s = 0.5
    os.kill(child.pid, signal.SIGSTOP)  # it uses no CPU time
    with pytest.raises(TooCostly, match=r"took more than 0\.5 s"):
        processes.decode(PNG, formats=FORMATS)
    processes._timeout_s = 60.0
    assert np.array_equal(processes.decode(PNG, formats=FORMATS), PIXELS)


def test_a_process_that_died_is_replaced(processes: DecodeProcesses) -> None:
    processes.decode(PNG, formats=FORMATS)
    (child,) = children()
    child.kill()
    child.wait()
    with pytest.raises(TooCostly, match=r"ended its process|took more"):
        processes.decode(PNG, formats=FORMATS)
    assert np.array_equal(processes.decode(PNG, formats=FORMATS), PIXELS)


def test_many_threads_share_the_processes(processes: DecodeProcesses) -> None:
    with ThreadPoolExecutor(4) as threads:
        for image in threads.map(lambda _: processes.decode(PNG, formats=FORMATS), range(12)):
            assert np.array_equal(image, PIXELS)
    assert len(children()) == 1


SCRIPT = """
import sys, time
from posefleet.data.decode_process import DecodeProcesses
pool = DecodeProcesses(1, cpu_s=1.0, most_pixels=1000)
pool.decode(bytes.fromhex(sys.argv[1]), formats=["PNG"])
print(pool._idle.get()._process.pid, flush=True)
time.sleep(600)
"""


def test_processes_end_with_the_one_that_started_them() -> None:
    small = encode_image(np.zeros((8, 8, 3), np.uint8), ".png").hex()
    with subprocess.Popen([sys.executable, "-c", SCRIPT, small], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: ended(child), 60)
