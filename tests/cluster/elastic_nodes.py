"""A Ray cluster in this process whose nodes come and go while a run trains on it."""

import copy
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

from elastic_record import Part, read_parts, recording_worker

TESTS = Path(__file__).resolve().parents[1]
VARIABLES = {
    "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'cluster'}",
    "OMP_NUM_THREADS": "1",
    "RAY_AUTH_MODE": "disabled",
    "RAY_DEDUP_LOGS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # beside other work they would starve
    # A view of the cluster in which a lost node still lives costs a try to start workers there; a minute by default.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
}


class Nodes:
    """The nodes that workers run on: one CPU each."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster

    def add(self) -> Any:
        """Start a node and wait until it belongs to the cluster."""
        return self._cluster.add_node(num_cpus=1)

    def kill(self, node: Any) -> None:
        """As if its power were cut."""
        self._cluster.remove_node(node, allow_graceful=False)

    def announce_end(self, node: Any, seconds: int) -> None:
        """Tell Ray that the node will be gone, as clouds tell of spot machines."""
        told = ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot", f"--node-id={node.node_id}"]
        command = ["drain-node", f"--address={self._cluster.address}", *told, f"--deadline-remaining-seconds={seconds}"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command], check=True, capture_output=True)


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, to which this process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    before = dict(os.environ)
    os.environ |= VARIABLES
    os.environ.pop("RAY_ADDRESS", None)
    folder = tempfile.mkdtemp(prefix="pf-", dir="/tmp")  # short: names of sockets have at most 107 characters
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "temp_dir": folder, "include_dashboard": False}
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        yield Nodes(cluster)
    finally:
        ray.shutdown()
        cluster.shutdown()
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
        from posefleet.platform import train
        from posefleet.platform.config import build_experiment

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
            status = train.train(build_experiment(self.settings))
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


def power_cut_and_new_node(cluster: Nodes, run: ElasticRun, node: Any, *, step: int) -> None:
    """From ``step`` on ``node`` is dead; when the other has gone on alone for three steps, a new one comes.

    Raises:
        AssertionError: The run did not go on, or not with the new node.
    """
    run.wait_for(lambda part: part.step >= step and part.workers == 2)
    cluster.kill(node)
    alone = run.wait_for(lambda part: part.workers == 1)
    run.wait_for(lambda part: part.workers == 1 and part.step >= alone.step + 3)
    cluster.add()
    run.wait_for(lambda part: part.workers == 2 and part.time > alone.time)
