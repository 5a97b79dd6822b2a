"""Processes that tests start, wait for and end."""

import contextlib
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil

IMPORTED = (
    "ddp_worker",
    "fit_process",
    "step_process",
    "posefleet.data.loading.loader",
    "posefleet.platform.training.ray_trainer",
    "timm",
    "torch._dynamo",  # optimisers import it
    "mlflow.store.tracking.sqlalchemy_store",
)
"""What ranks, loaders and training commands import, at their start or as they go."""


def start_fork_server() -> None:
    """Start the process that ranks, loaders and commands are forked from, which has imported what they need.

    Processes that import torch and timm by themselves take several seconds of the processor, each. If a loader starts
    the server, it has what loaders need alone.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(IMPORTED))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # the fork server takes it from nowhere else
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def in_ranks(function: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """``function(rank, *arguments)`` in ``count`` processes at once, forked from the fork server.

    Raises:
        ProcessRaisedException, ProcessExitedException: Of ``torch.multiprocessing``.
    """
    from torch.multiprocessing import start_processes

    start_fork_server()
    start_processes(function, arguments, nprocs=count, start_method="forkserver")


class Forked:
    """``function(*arguments)`` in a process as if it were a command: a session, variables and an error file of its own.

    It has what tests use of ``subprocess.Popen``, and begins in a tenth of the time, as nothing is imported again.
    """

    def __init__(
        self, function: Callable[..., int], arguments: tuple[Any, ...], *, environment: Mapping[str, str], errors: Path
    ) -> None:
        start_fork_server()
        given = (function, arguments, dict(environment), str(errors))
        self._process = multiprocessing.get_context("forkserver").Process(target=_as_command, args=given)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit status, -N after signal N; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status.

        Raises:
            TimeoutExpired: It still runs after ``timeout`` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0)
        return self._process.exitcode


def _as_command(
    function: Callable[..., int], arguments: tuple[Any, ...], environment: Mapping[str, str], errors: str
) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, path in ((1, os.devnull), (2, errors)):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", buffering=1, closefd=False)
    sys.exit(function(*arguments))


def start_ray(folder: str, **options: Any) -> Any:
    """``ray.init`` of a Ray of this process's own, its files in ``folder``; Ray gives a start no more than 30 s."""
    import ray

    for attempt in range(4):
        try:
            return ray.init(address="local", _temp_dir=folder, include_dashboard=True, log_to_driver=False, **options)
        except Exception as error:
            if attempt == 3 or "timed out during startup" not in str(error):
                raise
            ray.shutdown()  # the machine is busy: once more


def kill_a_child(title: str) -> bool:
    """SIGKILL for one process below this one whose title holds ``title``; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        try:
            if title in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def family(pid: int, title: str = "") -> list[psutil.Process]:
    """A process and all below it whose title holds ``title``."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                if title in " ".join(process.cmdline()):
                    found.append(process)
    return found


def kill_family(pid: int) -> None:
    """End a process and all below it as a power cut would: none of them lives to notice the others' end."""
    stopped: set[psutil.Process] = set()
    while new := set(family(pid)) - stopped:
        send(new, signal.SIGSTOP)
        stopped |= new
    send(stopped, signal.SIGKILL)


def send(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """A signal to those that still live."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def wait_for(what: Callable[[], object], seconds: float = 120, detail: Callable[[], str] = str) -> None:
    """Look ten times a second until ``what`` is true.

    Raises:
        AssertionError: It is not after ``seconds``; the message ends with ``detail()``.
    """
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, f"not after {seconds} s: {detail()}"
        time.sleep(0.1)


def free_port() -> int:
    """A port of this machine that nobody listens at, above those that Ray gives to workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port > 19999:
            return port
