"""Starts Ray, and Ray Data, on the cluster that this process belongs to."""

import logging
from typing import Any


def start_ray(*, level: int = logging.WARNING, worker_output: bool = True) -> Any:
    """The module ``ray``, connected to the cluster of this process or to a new one here, unless it is connected.

    Args:
        level: Level from which on Ray's own log lines are shown.
        worker_output: Show on this terminal what workers print.
    """
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=level, log_to_driver=worker_output)
    return ray


def open_ray_data() -> Any:
    """The module ``ray``, started where it was not, with Ray Data's progress bars and information lines off."""
    ray = start_ray()
    ray.data.DataContext.get_current().enable_progress_bars = False  # ours count shards and images
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    return ray
