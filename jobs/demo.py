"""Run the whole pipeline on this machine, without data and without a GPU; ``make demo`` runs this.

Starts its own Ray head, renders people, examines and shards them, trains SMPR with two DDP workers through
``ray job submit``, evaluates, prints where the results are, and stops what it started. An installed posefleet runs it
from any folder as ``python -m posefleet.jobs.demo``.
"""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from posefleet.command_line import parse

CONFIG = Path(__file__).with_name("configs") / "smpr_demo.yaml"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Amount of data and training in the demo."""

    train: int
    val: int
    epochs: float


SIZES = {"full": Size(train=4000, val=150, epochs=3.0), "mini": Size(train=32, val=8, epochs=1.0)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Folder and size of the demo."""

    out: Annotated[Path, "FOLDER"] = Path("runs/demo")
    """Folder for data, run and images. Its old content is deleted."""
    size: Literal["full", "mini"] = "full"
    """full takes 7 to 15 minutes on two cores; mini only checks that every step works."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo. Exit status: 0 every step succeeded, 1 a step failed, 2 bad arguments."""
    options, _ = parse(Options, arguments, command="demo", about=__doc__ or "")
    out = options.out.absolute()
    size = SIZES[options.size]
    start = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    try:
        with _ray_head() as cluster:
            initial, refined = _steps(out, size, cluster)
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        sys.stderr.write(f"\nerror: this step failed with status {error.returncode}: {command}\n")
        return 1
    run = out / "runs" / "demo"
    sys.stdout.write(
        f"\nAP {refined:.3f} on {size.val} held-out images (of the initial poses: {initial:.3f}), "
        f"after {(time.monotonic() - start) / 60:.1f} minutes\n"
        f"  overlays, curves  {run / 'report'}\n"
        f"  checkpoints       {run / 'checkpoints'}\n"
        f"  tracking          {Path(sys.executable).parent / 'mlflow'} ui "
        f"--backend-store-uri sqlite:///{out / 'runs' / 'mlflow.db'}\n"
        "Your own data: put COCO's layout (annotations/ and image folders) anywhere and follow the README from "
        "`Shard` on.\n"
    )
    return 0


def _steps(out: Path, size: Size, cluster: "_Cluster") -> tuple[float, float]:
    coco, shards = out / "coco", out / "shards"
    for split, count, seed in (("train2017", size.train, 1), ("val2017", size.val, 2)):
        _say(f"rendering {count} images of people: {coco / split}")
        _run(
            *("posefleet.data.synthetic.__main__", "--out", coco, "--split", split, "--count", count),
            *("--easy", "--seed", seed, "--workers", os.cpu_count() or 1),
        )
    _say("checking the data with posefleet doctor")
    _run("posefleet.data.doctor.__main__", coco, "--split", "train2017")
    _say("sharding: the training images over the cluster, the few others without it")
    cluster.submit("posefleet.jobs.shard_coco", "--source", coco, "--split", "train2017", "--out", shards)
    _run("posefleet.jobs.shard_coco", "--source", coco, "--split", "val2017", "--out", shards, "--in-process")
    _say("training SMPR with two workers")
    cluster.submit(
        *("posefleet.jobs.train_smpr", "--config", CONFIG),
        *("--data.train", shards / "train2017", "--data.eval", shards / "val2017"),
        *("--run.storage", out / "runs", "--run.name", "demo", "--scaling.num_workers", 2),
        *("--train.epochs", size.epochs, "--train.eval_every", size.epochs),
    )
    _say("evaluating the checkpoint: the initial poses, then the refined ones")
    scores = []
    for pose in ("initial", "refined"):
        results = out / f"results_{pose}.json"
        _run(
            *("posefleet.jobs.evaluate", "--checkpoint", out / "runs" / "demo", "--data.eval", shards / "val2017"),
            *("--model.score.pose", pose, "--out", results),
        )
        scores.append(json.loads(results.with_suffix(".metrics.json").read_text())["AP"])
    return scores[0], scores[1]


@dataclass(frozen=True)
class _Cluster:
    address: str
    environment: dict[str, str]

    def submit(self, module: str, *arguments: object) -> None:
        """Run a module of posefleet as a job on the cluster, and wait until it ends.

        Raises:
            CalledProcessError: The job failed.
        """
        command = [Path(sys.executable).with_name("ray"), "job", "submit", "--address", self.address]
        if root := _checkout():
            command += ["--working-dir", root]
        command += ["--", "python", "-m", module, *arguments]
        subprocess.run([str(part) for part in command], check=True, env=self.environment)


@contextmanager
def _ray_head() -> Iterator[_Cluster]:
    """A Ray head with free ports and a temporary folder of its own; only this process is ended afterwards."""
    _say("starting a Ray head")
    ports = {name: _free_port() for name in ("port", "dashboard-port", "ray-client-server-port")}
    ports |= {name: _free_port() for name in ("dashboard-agent-listen-port", "metrics-export-port")}
    # Ray puts Unix sockets here, and their paths must be short, so the folder is not under --out.
    temp = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "disabled",  # the head listens on this machine only, for the minutes of the demo
        "RAY_DEDUP_LOGS": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    }
    environment.pop("RAY_ADDRESS", None)
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
        _wait_for(f"{address}/api/version", head, temp / "head.log")
        # The dashboard takes no job before its node's agent listens, and gives up after ten seconds.
        agent = f"http://127.0.0.1:{ports['dashboard-agent-listen-port']}"
        _wait_for(f"{agent}/api/local_raylet_healthz", head, temp / "head.log")
        yield _Cluster(address, environment)
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
    sys.stderr.write(log.read_text())
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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def _say(text: str) -> None:
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
