"""A training command that something happens to, and what must be true of the run in the end."""

import copy
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import command
from faults import Plan
from nodes import Cluster, environment
from processes import Forked, kill_family, wait_for
from steps import Step, read_steps, samples_seen
from tracked_runs import find_runs

from posefleet.data.shards.layout import read_manifest
from posefleet.platform.checkpoints.format import WEIGHTS, read_content
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.tracking.runs import read_metrics, read_run
from posefleet.platform.tracking.spool import Spool
from posefleet.platform.training.run import read_run as open_run_of

OF_THE_MACHINE = re.compile(r"system/|ranks/|interruptions/|images_per_second$|data_wait$")
"""Metrics that differ between two runs of the same experiment."""


@dataclass(frozen=True)
class Ending:
    """What two runs of one experiment have in common, bit for bit."""

    weights: str
    """SHA-256 of the last checkpoint's."""
    position: int
    """Samples seen."""
    points: dict[str, list[tuple[int, str]]]
    """(step, value) of every metric in MLflow."""
    files: dict[str, int]
    """How many there are in MLflow of each artifact folder."""


class Case:
    """One run, however often its command is started."""

    def __init__(self, settings: dict[str, Any], log: Path, cluster: Cluster | None = None) -> None:
        """``log`` is a new folder for what the processes of the run tell."""
        self.settings, self.log, self.cluster = settings, log, cluster
        self.folder = Path(settings["run"]["storage"], settings["run"]["name"])
        self.fault_time = 0.0
        self.said = ""
        log.mkdir()

    # ------------------------------------------------------------------------------------------------ the command

    def start(self, **plan: Any) -> subprocess.Popen | Forked:
        """Start the command; ``plan`` are fields of :class:`Plan`."""
        content = {"settings": self.settings, "plan": asdict(Plan(log=str(self.log), **plan))}
        file = self.log / "command.json"
        file.write_text(json.dumps(content))
        if not self.cluster:
            return Forked(command.main, (str(file),), environment=environment(), errors=self.log / "said")
        host = self.cluster.head.host
        return subprocess.Popen(
            [*host.prefix, sys.executable, command.__file__, str(file)],
            stdout=subprocess.DEVNULL,
            stderr=(self.log / "said").open("w"),
            start_new_session=True,
            env=environment() | host.variables | {"RAY_ADDRESS": self.cluster.address},
        )

    def wait(self, started: subprocess.Popen | Forked, seconds: float = 600) -> int:
        """The exit status of the command; what it said is ``said`` then."""
        try:
            return started.wait(seconds)
        finally:
            if started.poll() is None:
                kill_family(started.pid)
                started.wait()
            self.said = (self.log / "said").read_text()

    def last_words(self) -> str:
        """The error that the command ended with."""
        return self.said[self.said.rindex("\nerror: ") :]

    def run(self, **plan: Any) -> int:
        """Start the command and wait for its end."""
        return self.wait(self.start(**plan))

    # ------------------------------------------------------------------------------------------------ while it runs

    def steps(self) -> list[Step]:
        """Those taken so far."""
        return read_steps(self.log)

    def wait_for_step(self, number: int, seconds: float = 400) -> Step:
        """The first time that a step is over."""

        def found() -> list[Step]:
            return [step for step in self.steps() if step.number >= number]

        wait_for(found, seconds, lambda: (self.log / "said").read_text())
        return found()[0]

    def worker(self, rank: int) -> int:
        """The process that took the last step of a rank."""
        return [step for step in self.steps() if step.rank == rank][-1].process

    def happens(self) -> None:
        """The fault is now."""
        self.fault_time = time.time()

    # ------------------------------------------------------------------------------------------------ in the end

    def assert_killed(self) -> None:
        """The planned fault has happened: otherwise nothing was tested."""
        assert (self.log / "fault").exists(), "no process reached the place where it was to be killed"
        self.fault_time = (self.log / "fault").stat().st_mtime

    def ending(self) -> Ending:
        """What the run left."""
        run = open_run_of(str(self.folder))
        assert run is not None
        names = [name for name in read_run(run.tracking_uri, run.run_id).metrics if not OF_THE_MACHINE.match(name)]
        points = read_metrics(run.tracking_uri, run.run_id, names)
        last = read_content(str(CheckpointStore(f"{self.folder}/checkpoints").latest()))
        return Ending(
            weights=last["files"][WEIGHTS]["sha256"],
            position=last["position"],
            points={name: [(step, repr(value)) for step, value in found] for name, found in points.items()},
            files=_artifacts(run.tracking_uri, run.run_id),
        )

    def assert_nothing_lost(self, undisturbed: Ending) -> None:
        """The run ended as an undisturbed one, as one run, having seen every sample of every epoch once."""
        ending = self.ending()
        assert ending.weights == undisturbed.weights, "the weights are not those of the undisturbed run"
        assert ending.position == undisturbed.position
        assert ending.points == undisturbed.points
        assert ending.files == undisturbed.files
        run = open_run_of(str(self.folder))
        assert run is not None
        known = [known for known in find_runs(run.tracking_uri, "posefleet") if known.name == self.folder.name]
        assert [(one.run_id, one.status) for one in known] == [(run.run_id, "FINISHED")]
        assert Spool(run.spool).pending() == []
        samples = read_manifest(self.settings["data"]["train"]).samples
        epochs = self.settings["train"]["epochs"]
        assert samples_seen(self.steps()) == Counter(dict.fromkeys(range(1, samples + 1), epochs))
        left = [path.name for path in (self.folder / "checkpoints").iterdir() if not path.name.startswith("step-")]
        assert left == [], "unfinished checkpoints stay"

    def repeated(self) -> int:
        """Steps that were taken more than once."""
        return sum(count - 1 for count in Counter((s.number, s.rank) for s in self.steps() if not s.rank).values())

    def recovery(self) -> float:
        """Seconds from the fault until a step was over that had not been before."""
        before = max((step.number for step in self.steps() if step.time <= self.fault_time), default=0)
        return min(step.time for step in self.steps() if step.number > before) - self.fault_time


def _artifacts(uri: str, run_id: str) -> dict[str, int]:
    from posefleet.platform.tracking.client import connect

    client, counts = connect(uri), Counter[str]()
    folders = [""]
    while folders:
        folder = folders.pop()
        for entry in client.list_artifacts(run_id, folder or None):
            if entry.is_dir:
                folders.append(entry.path)
            else:
                counts[folder] += 1
    return dict(counts)


def place(settings: dict[str, Any], folder: Path, new_database: Path) -> dict[str, Any]:
    """The settings with FOLDER/runs as their storage, which has a database already."""
    settings = copy.deepcopy(settings)
    settings["run"] |= {"storage": str(folder / "runs")}
    (folder / "runs").mkdir()
    shutil.copy(new_database, folder / "runs")
    return settings
