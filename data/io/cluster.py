"""Starts Ray, and Ray Data, on the cluster that this process belongs to, and carries errors of its tasks."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from posefleet.data.errors import DataError

A = TypeVar("A")
B = TypeVar("B")

RETRIES = 1
"""How often a task is started again whose process died."""


def start_ray(*, level: int = logging.WARNING, worker_output: bool = True, namespace: str | None = None) -> Any:
    """The module ``ray``, connected to the cluster of this process or to a new one here, unless it is connected.

    Who handles SIGTERM already goes on to do so: Ray would replace it by an end at once, without a last checkpoint.

    Args:
        level: Level from which on Ray's own log lines are shown.
        worker_output: Show on this terminal what workers print.
        namespace: In which named actors are found. Default: one of this process's own.
    """
    import ray

    if not ray.is_initialized():
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(logging_level=level, log_to_driver=worker_output, namespace=namespace)
        if callable(handler) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    return ray


def ray_starts_here() -> bool:
    """Whether :func:`start_ray` would start a Ray of its own on this machine, because there is no cluster to join."""
    job, address = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ, os.environ.get("RAY_ADDRESS", "")
    running = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")  # ray start writes it
    return address == "local" or not (job or address or running.exists())


def open_ray_data() -> Any:
    """The module ``ray``, started where it was not, with Ray Data's progress bars and information lines off."""
    ray = start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours count shards and images
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    return ray


def to_row(work: Callable[[], dict[str, Any]]) -> dict[str, str]:
    """What a task of Ray Data gives back: the result of ``work``, which JSON can hold, or its ``OSError``.

    Ray Data would wrap an error in three others, with a page of their traces.
    """
    try:
        return {"result": json.dumps(work()), "fault": ""}
    except OSError as error:
        return {"result": "", "fault": json.dumps([error.errno, error.strerror or str(error), error.filename])}


def from_row(row: Mapping[str, str]) -> dict[str, Any]:
    """The result in a row of :func:`to_row`.

    Raises:
        OSError: The one that ended the task.
    """
    if row["fault"]:
        number, text, name = json.loads(row["fault"])
        raise OSError(number, text, name) if number else OSError(text)
    result: dict[str, Any] = json.loads(row["result"])
    return result


class TaskDied(RuntimeError):
    """The processes that worked on a task ended by a signal or for want of memory, one after the other."""


def in_tasks(function: Callable[[A], B], *, cpus: float) -> Callable[[A], B]:
    """The same function, each call in a Ray task of its own, on any node with ``cpus`` CPUs free; Ray must be running.

    Ray prefers nodes without GPUs, and starts a task again if its node is lost. The function is sent once. A call
    raises the ``DataError`` or ``OSError`` of the function, and ``TaskDied``.
    """
    import ray

    sent = ray.put(function)
    task: Any = ray.remote(num_cpus=cpus, max_retries=RETRIES)(_outcome)

    def call(argument: A) -> B:
        try:
            answer: tuple[Any, Exception | None] = ray.get(task.remote(sent, argument))
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as died:
            raise TaskDied(str(died)) from None
        found, error = answer
        if error:
            raise error
        return cast(B, found)

    return call


def _outcome(function: Callable[[A], B], argument: A) -> tuple[B | None, Exception | None]:
    """What a function returns or raises; Ray would wrap an error in one with the page of its trace."""
    try:
        return function(argument), None
    except (DataError, OSError) as error:
        return None, error
