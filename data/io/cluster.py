"""Opens Ray Data on the cluster that this process belongs to."""

import logging
from typing import Any


def open_ray_data() -> Any:
    """The module ``ray``, with Ray started if it was not, and without Ray Data's own progress bars and logs."""
    import ray

    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False  # our own bars count shards and images
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that its bars are off
    return ray
