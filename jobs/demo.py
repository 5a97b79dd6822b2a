"""Run the whole pipeline on this machine, without data and without a GPU; ``make demo`` runs this.

Starts its own Ray head, renders people, examines and shards them, trains SMPR with two DDP workers through
``ray job submit``, evaluates, makes the model the champion that ``posefleet serve`` serves, prints where the results
are, and stops what it started. An installed posefleet runs it from any folder as ``python -m posefleet.jobs.demo``.
"""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from posefleet.command_line import parse, report_error
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.ports import free_ports
from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.client import pages, store_uri

CONFIG = Path(__file__).with_name("configs") / "smpr_demo.yaml"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Amount of data and training in the demo."""

    train: int
    val: int
    epochs: float
    eval_every: float
    """Epochs between two evaluations, each a point of the curve of AP."""
    training: str
    """How long the training takes on two free cores, once its workers have started."""


SIZES = {
    "full": Size(train=4000, val=150, epochs=3.0, eval_every=0.5, training="5 to 12 minutes"),
    "mini": Size(train=32, val=8, epochs=1.0, eval_every=0.5, training="seconds"),
}

NOTE = (
    "This model knows rendered people only: posefleet demo trained it in minutes. "
    "On photographs its poses are mostly wrong."
)
"""What the server, its page and batch prediction say about the demo's model."""

MODEL = "smpr"
"""Name in the registry under which the shipped serve/config.yaml looks for its model."""

QUIET_S = 40.0
"""Seconds without a line after which a step says that it still runs; a training writes a line every 30 seconds."""

STARTS = 4
"""Attempts to start a Ray head on a machine that is busy with other things."""

_COLOURS = re.compile(r"\x1b\[[\d;]*m")
_PROCESS = re.compile(r"^\(\w[^()]* pid=\d+(, ip=[^()]*)?\) ?")
"""What Ray writes before every line of a worker."""
_RAYS_OWN = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\s+(INFO|WARNING|SUCC) |\[\d{4}-[^]]*\] \w+\.cc:\d+: |"
    r"Running entrypoint for job |Setting up process group for: |Started training worker group|"
    r"- \(ip=\S+, pid=\d+\) world_rank="
)
"""How the lines of Ray begin that are about Ray itself: uploads, addresses, states of actors."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Folder and size of the demo."""

    out: Annotated[Path, "FOLDER"] = Path("runs/demo")
    """Folder for data, run and images. Its old content is deleted."""
    tracking: Annotated[str, "URI"] = ""
    """MLflow store of the run and the model. Default: $MLFLOW_TRACKING_URI, else mlflow.db under runs/, where
    posefleet serve and predict look."""
    size: Literal["full", "mini"] = "full"
    """full takes 7 to 15 minutes on two cores; mini only checks that every step works."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Exit status: 0 every step succeeded, 1 a step failed, 2 bad arguments."""
    options, _ = parse(Options, arguments, command="demo", about=__doc__ or "")
    out, size = options.out.absolute(), SIZES[options.size]
    start = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    try:
        uri = store_uri(options.tracking)
        with _ray_head() as cluster:
            initial, refined = _steps(out, size, cluster, uri)
        model = _promote(out, uri)
    except subprocess.CalledProcessError as error:
        command = error.cmd if isinstance(error.cmd, str) else " ".join(map(str, error.cmd))
        sys.stderr.write(f"\nerror: this step failed with status {error.returncode}: {command}\n")
        return 1
    except (ValueError, PlatformError) as error:
        report_error(error)
        return 2
    minutes = (time.monotonic() - start) / 60
    sys.stdout.write(
        f"\nAP {refined:.3f} on {size.val} held-out images (of the initial poses: {initial:.3f}), "
        f"after {minutes:.1f} minutes\n{_next_steps(out, model, uri, redirected=bool(options.tracking))}"
    )
    return 0


def _steps(out: Path, size: Size, cluster: "_Cluster", uri: str) -> tuple[float, float]:
    """Render, check, shard, train and evaluate; returns the AP of the initial and of the refined poses."""
    coco, shards = out / "coco", out / "shards"
    for split, count, seed in (("train2017", size.train, 1), ("val2017", size.val, 2)):
        with _step(f"rendering {count} images of people: {coco / split}", f"about {2 + count // 80} seconds"):
            _run(
                *("posefleet.data.synthetic.__main__", "--out", coco, "--split", split, "--count", count),
                *("--easy", "--seed", seed, "--workers", os.cpu_count() or 1),
            )
    with _step("checking the data with posefleet doctor", "seconds"):
        _run("posefleet.data.doctor.__main__", coco, "--split", "train2017")
    with _step(
        "sharding the training images as a job of the cluster", "half a minute, most of it until the job starts"
    ):
        cluster.submit("posefleet.jobs.shard_coco", "--source", coco, "--split", "train2017", "--out", shards)
    with _step("sharding the held-out images without the cluster", "a second"):
        _run("posefleet.jobs.shard_coco", "--source", coco, "--split", "val2017", "--out", shards, "--in-process")
    with _step(
        f"training SMPR by {CONFIG} with two workers as a job of the cluster",
        f"half a minute until the workers have started, then {size.training}; AP every half epoch",
    ):
        cluster.submit(
            *("posefleet.jobs.train_smpr", "--config", CONFIG),
            *("--data.train", shards / "train2017", "--data.eval", shards / "val2017"),
            *("--run.storage", out / "runs", "--run.name", "demo", "--run.tracking", uri, "--run.note", NOTE),
            *("--scaling.num_workers", 2, "--train.epochs", size.epochs, "--train.eval_every", size.eval_every),
        )
    scores = []
    for pose in ("initial", "refined"):
        results = out / f"results_{pose}.json"
        with _step(f"evaluating the checkpoint: the {pose} poses", "seconds"):
            _run(
                *("posefleet.jobs.evaluate", "--checkpoint", out / "runs" / "demo", "--data.eval", shards / "val2017"),
                *("--model.score.pose", pose, "--out", results),
            )
        scores.append(json.loads(results.with_suffix(".metrics.json").read_text())["AP"])
    return scores[0], scores[1]


def _promote(out: Path, uri: str) -> str:
    """Make the model the champion unless somebody else's is; returns the address under which commands find it."""
    from posefleet.platform.runtime.paths import MODELS
    from posefleet.platform.tracking.registry import CHAMPION, find_alias

    address, run = f"{MODELS}{MODEL}@{CHAMPION}", out / "runs" / "demo"
    with _step(f"promoting the model to {address}", "half a minute"):
        champion = find_alias(uri, MODEL, CHAMPION)
        if champion and champion.tags.get("note") != NOTE:
            sys.stdout.write(f"{address} is version {champion.number}, which is not a demo's: it stays the champion\n")
            return str(run)
        # A demo replaces the demo before it, be it a little better or worse.
        evidence = ("--data.eval", out / "shards" / "val2017", "--gate.tolerance", 1)
        _run("posefleet.jobs.promote", "--run", run, "--to", CHAMPION, "--tracking", uri, *evidence)
    return address


def _next_steps(out: Path, model: str, uri: str, *, redirected: bool) -> str:
    """Where the results are, and the commands to go on with."""
    run, val = out / "runs" / "demo", out / "coco" / "val2017"
    posefleet = f"MLFLOW_TRACKING_URI={redact(uri)} posefleet" if redirected else "posefleet"
    served = "" if model.startswith("models:") else f" --model {model}"
    return (
        f"  overlays, curves  {run / 'report'}\n"
        f"  checkpoints       {run / 'checkpoints'}\n"
        f"  tracking          {pages(uri)}\n"
        f"The model is {model}. Try it (source .venv/bin/activate, if this is a checkout):\n"
        f"  {posefleet} serve{served}    # the page at http://127.0.0.1:8000; drop images of {val} there\n"
        f"  {posefleet} predict --model {model} --input {val} --output {out / 'poses'} --overlays\n"
        f"{NOTE}\n"
        "Your own data: put COCO's layout (annotations/ and image folders) anywhere and follow the README from "
        "`Shard` on.\n"
    )


@dataclass(frozen=True)
class _Cluster:
    address: str
    environment: dict[str, str]

    def submit(self, module: str, *arguments: object) -> None:
        """Run a module of posefleet as a job on the cluster, show what it prints, and wait until it ends.

        Raises:
            CalledProcessError: The job failed.
        """
        command = [Path(sys.executable).with_name("ray"), "job", "submit", "--address", self.address]
        if root := _checkout():
            command += ["--working-dir", root]
        command += ["--", "python", "-m", module, *arguments]
        texts = [str(part) for part in command]
        job = subprocess.Popen(
            texts, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        assert job.stdout
        hidden = deque[str](maxlen=60)
        for line in job.stdout:
            if (shown := readable(line)) is None:
                hidden.append(line)
            else:
                _write(shown)
        if job.wait():
            _write("".join(hidden))
            raise subprocess.CalledProcessError(job.returncode, texts)


def readable(line: str) -> str | None:
    """A line of a job as people read it, without the worker's name before it; None for lines about Ray itself."""
    text = _PROCESS.sub("", _COLOURS.sub("", line))
    return None if _RAYS_OWN.match(text) else text


@contextmanager
def _ray_head() -> Iterator[_Cluster]:
    """A Ray head with free ports and a temporary folder of its own; only this process is ended afterwards.

    Raises:
        CalledProcessError: It does not start, in ``STARTS`` attempts where the machine is too busy for it.
    """
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",  # the head listens on this machine only, for the minutes of the demo
        "RAY_DEDUP_LOGS": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # the jobs have ended: there is nothing to wait for
    }
    environment.pop("RAY_ADDRESS", None)
    with ExitStack() as stack:
        with _step("starting a Ray head", "ten seconds"):
            for attempt in range(1, STARTS + 1):
                try:
                    address = stack.enter_context(_started_head(environment))
                    break
                except _TooBusy:
                    if attempt == STARTS:
                        raise
                    _write(
                        "   Ray gives its own start 30 seconds, which this busy machine needs more than; once more\n"
                    )
        yield _Cluster(address, environment)


class _TooBusy(subprocess.CalledProcessError):
    """Ray's head gave up, as its processes did not start in time."""


@contextmanager
def _started_head(environment: dict[str, str]) -> Iterator[str]:
    """The address of the dashboard of a head that takes jobs."""
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # Ray puts Unix sockets here, and their paths must be short, so the folder is not under --out.
    temp = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    head = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("ray")),
            *("start", "--head", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"),
            *(f"--{name}={port}" for name, port in ports.items()),
            *(f"--temp-dir={temp}", "--num-cpus=2", "--dashboard-host=127.0.0.1"),
        ],
        env=environment,
        stdout=(temp / "head.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        address = f"http://127.0.0.1:{ports['dashboard-port']}"
        # The dashboard takes no job before its node's agent listens, and gives up after ten seconds.
        agent = f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}"
        _wait_for(f"{address}/api/version", head, temp / "head.log")
        _wait_for(f"{agent}/api/local_raylet_healthz", head, temp / "head.log")
        yield address
    finally:
        head.terminate()
        try:
            head.wait(20)
        except subprocess.TimeoutExpired:
            head.kill()
            head.wait()
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for(address: str, head: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        try:
            urllib.request.urlopen(address, timeout=2).read()
        except OSError:
            if head.poll() is not None:
                break
            time.sleep(0.5)
        else:
            return
    text = log.read_text()
    if "timed out during startup" in text:
        raise _TooBusy(head.poll() or 1, "ray start --head")
    sys.stderr.write(text)
    raise subprocess.CalledProcessError(head.poll() or 1, "ray start --head")


def _checkout() -> Path | None:
    """The checkout that jobs upload as their code; None where posefleet is installed, so that every job has it."""
    root = Path(__file__).resolve().parents[1]  # the package itself, without links, where posefleet is installed
    return root if (root / "posefleet" / "jobs").is_symlink() else None


def _run(module: str, *arguments: object) -> None:
    """Run ``main`` of a module here; a process of its own would import torch again, which takes seconds.

    Raises:
        CalledProcessError: It returned another status than 0.
    """
    texts = [str(argument) for argument in arguments]
    if status := importlib.import_module(module).main(texts):
        raise subprocess.CalledProcessError(status, ["python", "-m", module, *texts])


_written = time.monotonic()
"""When the demo wrote its last line."""


def _write(text: str) -> None:
    global _written
    sys.stdout.write(text)
    sys.stdout.flush()
    _written = time.monotonic()


@contextmanager
def _step(text: str, duration: str) -> Iterator[None]:
    """Say what goes on and how long it takes on two free cores; within, no ``QUIET_S`` pass without a line."""
    start = time.monotonic()
    _write(f"\n== {text} ({duration})\n")
    ended = threading.Event()

    def say_that_it_runs() -> None:
        while not ended.wait(1.0):
            if time.monotonic() - _written > QUIET_S:
                _write(f"   still at it after {time.monotonic() - start:.0f} s\n")

    ticker = threading.Thread(target=say_that_it_runs, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        ended.set()
        ticker.join()


if __name__ == "__main__":
    raise SystemExit(main())
