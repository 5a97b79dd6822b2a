"""Commands that are asked to end leave no process, socket, semaphore or temporary folder.

Ray's session folder stays with its logs, and a folder of sockets of its dashboard: also after a plain ``ray.shutdown``.
"""

import contextlib
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from nodes import environment
from processes import free_port, kill_family, wait_for
from small_settings import untrained_checkpoint

MARK = "POSEFLEET_TEST_OF_LEFTOVERS"
ROOT = Path(__file__).resolve().parents[2]


class Command:
    """A command in a folder of temporary files of its own."""

    def __init__(self, temp: Path, *arguments: object) -> None:
        self.temp = temp
        self.said = (temp / "said").open("w+")
        variables = {name: value for name, value in environment().items() if name != "TORCHINDUCTOR_CACHE_DIR"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "posefleet.jobs.cli", *map(str, arguments)],
            stdout=self.said,
            stderr=self.said,
            start_new_session=True,
            cwd=ROOT,
            env=variables | {"TMPDIR": str(temp), MARK: str(temp)},
        )

    def ends_on(self, number: signal.Signals, ready: Callable[[], object]) -> int:
        """Send a signal once the command is ``ready``; its exit status when nothing of it is left."""
        try:
            wait_for(lambda: self.process.poll() is not None or ready(), 400, self.output)
            assert self.process.poll() is None, self.output()
            pids = set(self.processes())
            self.process.send_signal(number)
            status = self.process.wait(200)
            wait_for(lambda: not self.left(pids), 60, lambda: f"{self.left(pids)}\n{self.output()}")
            return status
        finally:
            kill_family(self.process.pid)
            for pid in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).kill()

    def processes(self) -> list[int]:
        """Ids of the command's processes, wherever they are in the tree."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.temp):
                    found.append(process.pid)
        return found

    def left(self, pids: set[int]) -> list[str]:
        """What there is of the command besides what it said, the files of Ray, and a lock of MLflow's."""
        names = [path.name for path in self.temp.iterdir()]
        if "ray" in names:
            names.remove(next((name for name in names if name.startswith("pymp-")), "ray"))
        kept = [name for name in names if name not in ("said", "ray") and not name.startswith("db_init_lock")]
        semaphores = [p.name for p in Path("/dev/shm").glob("sem.pf-*") if int(p.name.split("-")[1]) in pids]
        return [*map(str, self.processes()), *kept, *semaphores]

    def output(self) -> str:
        """What the command said."""
        return (self.temp / "said").read_text()


@pytest.fixture
def temp() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def config(tracked_run: dict[str, Any], tmp_path: Path) -> Path:
    """Settings of a training that does not end by itself, with loader processes."""
    tracked_run["train"] |= {"epochs": 500, "log_every": 1, "eval_every": 500}
    tracked_run["data"] |= {"loaders": 2}
    tracked_run["scaling"] |= {"cpus_per_worker": 0.5}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tracked_run))
    return file


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_that_is_asked_to_end_leaves_nothing(
    number: signal.Signals, workers: int, temp: Path, config: Path, tracked_run: dict[str, Any]
) -> None:
    command = Command(temp, "train", "smpr", "--config", config, "--scaling.num_workers", workers)
    assert command.ends_on(number, lambda: "  step " in command.output()) == 130
    run = Path(tracked_run["run"]["storage"], "small")
    assert list((run / "checkpoints").glob("step-*")), "it saved a checkpoint first"
    assert not (run / "lock.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_search_that_is_asked_to_end_leaves_nothing(
    number: signal.Signals, temp: Path, config: Path, tmp_path: Path
) -> None:
    space, out = tmp_path / "space.yaml", tmp_path / "search"
    space.write_text("optim.lr: {low: 1.0e-4, high: 1.0e-2, log: true}\n")
    options = ("--config", config, "--space", space, "--out", out, "--samples", 2, "--concurrent", 1)
    command = Command(temp, "tune", "--method", "smpr", *options)
    ready = "trials/trial-000/report/targets/*"
    assert command.ends_on(number, lambda: list(out.glob(ready))) == 130
    assert not (out / "lock.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_that_is_asked_to_end_leaves_nothing(
    number: signal.Signals, temp: Path, small_run: dict[str, Any], tmp_path: Path
) -> None:
    model, port = untrained_checkpoint(small_run, tmp_path / "served", sure=True), free_port()
    command = Command(temp, "serve", "--model", model, "--port", port)

    def ready() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
            return True
        return False

    assert command.ends_on(number, ready) == 0, "Ray Serve ended it"
