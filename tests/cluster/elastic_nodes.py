"""A Ray cluster whose nodes come and go while a run trains on it."""

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from elastic_record import Part, read_parts, recording_worker
from processes import free_port

TESTS = Path(__file__).resolve().parents[1]
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
VARIABLES = {
    "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'support'}:{TESTS / 'cluster'}",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # beside other work they would starve
    # A view of the cluster in which a lost node still lives costs a try to start workers there; a minute by default.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30"),
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


class Node:
    """One ``ray start`` with all that it starts."""

    def __init__(self, log: Path, **options: Any) -> None:
        """Begin to start it; ``options`` are those of the command, None for one without a value."""
        self.name = log.stem
        self._log = log
        ports = {"min_worker_port": 0, "max_worker_port": 0, "dashboard_agent_listen_port": free_port()}
        options |= {"node_ip_address": "127.0.0.1", "object_store_memory": 150 * 2**20, **ports}
        options |= {"resources": json.dumps({self.name: 1})}
        given = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [
                    *RAY,
                    "start",
                    "--block",
                    *(name if value is None else f"{name}={value}" for name, value in given.items()),
                ],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=os.environ | VARIABLES,
            )

    def wait(self, seconds: float = 120) -> None:
        """Until it belongs to the cluster.

        Raises:
            AssertionError: It does not; with what it said.
        """
        end = time.monotonic() + seconds
        while "Ray runtime started" not in self._log.read_text():
            assert self._process.poll() is None and time.monotonic() < end, self._log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """As if its power were cut."""
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(self._process.pid)
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait(30)


class Nodes:
    """The nodes that workers run on, one CPU each, below a head that has none."""

    def __init__(self, folder: Path) -> None:
        self._folder, port = folder, free_port()
        self.address = f"127.0.0.1:{port}"
        ports = {"port": port, "ray_client_server_port": free_port(), "include_dashboard": "false"}
        head = Node(folder / "node0", head=None, num_cpus=0, temp_dir=folder, **ports)
        self._all = [head]
        head.wait()

    def add(self) -> Node:
        """Start a node and wait until it belongs to the cluster."""
        node = Node(self._folder / f"node{len(self._all)}", address=self.address, num_cpus=1)
        self._all.append(node)
        node.wait()
        return node

    def announce_end(self, node: Node, seconds: int) -> None:
        """Tell Ray that the node will be gone, as clouds tell of spot machines."""
        import ray

        (number,) = [known["NodeID"] for known in ray.nodes() if node.name in known["Resources"]]
        drain_options = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", f"--node-id={number}"]
        command = ["drain-node", f"--address={self.address}", *drain_options, f"--deadline-remaining-seconds={seconds}"]
        subprocess.run([*RAY, *command], check=True, capture_output=True)

    def close(self) -> None:
        """End all of them."""
        for node in reversed(self._all):
            node.kill()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, to which this process is connected."""
    import ray

    before = dict(os.environ)
    os.environ |= VARIABLES
    os.environ.pop("RAY_ADDRESS", None)
    folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))  # short: names of sockets have at most 107 characters
    cluster = None
    try:
        cluster = Nodes(folder)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        if cluster:
            cluster.close()
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(folder, ignore_errors=True)


class ElasticRun:
    """A training command whose workers are recorded, and whose steps take longer while a test changes the nodes."""

    def __init__(self, settings: dict[str, Any], log: Path, *, pace: float = 1.0) -> None:
        """``log`` is a new folder."""
        self.settings = copy.deepcopy(settings)
        self.log, self.pace = log, pace
        log.mkdir(parents=True)

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.settings["run"]["storage"], self.settings["run"]["name"])

    @property
    def parts(self) -> list[Part]:
        """What was trained so far."""
        return read_parts(self.log)

    def train(self, meanwhile: Callable[[], None] | None = None) -> int:
        """Train to the end; the exit status of the job.

        Args:
            meanwhile: Runs beside the training, whose steps take ``pace`` seconds longer until it returns.

        Raises:
            AssertionError: What ``meanwhile`` waited for did not happen.
        """
        from posefleet.platform.config.loading import build_experiment
        from posefleet.platform.training import launch
        from posefleet.platform.training import ray_trainer as train

        problems: list[BaseException] = []

        def act() -> None:
            try:
                if meanwhile:
                    meanwhile()
            except BaseException as problem:
                problems.append(problem)
            finally:
                (self.log / "slow").unlink()

        (self.log / "slow").touch()
        actor = threading.Thread(target=act)
        original, train._ray_worker = train._ray_worker, recording_worker(self.log, self.pace)
        try:
            actor.start()
            status = launch.train(build_experiment(self.settings))
        finally:
            train._ray_worker = original
            actor.join()
        if problems:
            raise problems[0]
        return status

    def wait_for(self, what: Callable[[Part], bool], seconds: float = 240) -> Part:
        """The first part that ``what`` is true of.

        Raises:
            AssertionError: There is none after ``seconds``.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for part in self.parts:
                if what(part):
                    return part
            time.sleep(0.1)
        taken = [(part.step, part.rank, part.workers) for part in self.parts]
        raise AssertionError(f"not after {seconds} s; (step, rank, workers) so far: {taken}")


def power_cut_and_new_node(cluster: Nodes, run: ElasticRun, node: Node, *, step: int) -> None:
    """From ``step`` on ``node`` is dead; when the other has gone on alone for three steps, a new one comes.

    Raises:
        AssertionError: The run did not go on, or not with the new node.
    """
    run.wait_for(lambda part: part.step >= step and part.workers == 2)
    node.kill()
    alone = run.wait_for(lambda part: part.workers == 1)
    run.wait_for(lambda part: part.workers == 1 and part.step >= alone.step + 3)
    cluster.add()
    run.wait_for(lambda part: part.workers == 2 and part.time > alone.time)
