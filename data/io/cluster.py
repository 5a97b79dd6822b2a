"""Starts Ray, and Ray Data, on the cluster that this process belongs to."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any


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
