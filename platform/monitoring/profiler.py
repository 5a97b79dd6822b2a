"""Profiles a few training steps: a trace of all operations, and a table of the costliest ones.

``steps=5,wait=10,ranks=all`` profiles 5 steps on all ranks, after the first 10 of this start and one that warms the
profiler up. The trace opens in https://ui.perfetto.dev or chrome://tracing.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posefleet.platform.config.experiment import Profile

if TYPE_CHECKING:
    from posefleet.platform.runtime.worker import LocalWorker

log = logging.getLogger(__name__)

ROWS = 25
"""Rows of the table."""


@contextlib.contextmanager
def profiled(profile: Profile | None, worker: "LocalWorker") -> Iterator[None]:
    """Within, the steps that ``profile`` selects are profiled on the ranks that it selects; None: no step."""
    if profile is None or (worker.rank and not profile.everywhere):
        yield
        return
    import torch
    from torch.profiler import ProfilerActivity, record_function, schedule

    watch, written = worker.watch, False
    open_range: list[Any] = []

    def mark_range(name: str) -> None:
        close_range()
        open_range.append(record_function(name).__enter__())

    def close_range() -> None:
        while open_range:
            open_range.pop().__exit__(None, None, None)

    def write(taken: Any) -> None:
        nonlocal written
        written = True
        name = f"profile/rank{worker.rank}-step{watch.step:06d}"
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json.gz")
            taken.export_chrome_trace(str(trace))
            worker.save_file(f"{name}.json.gz", trace.read_bytes())
        costly = "self_cuda_time_total" if worker.device.type == "cuda" else "self_cpu_time_total"
        table = taken.key_averages().table(sort_by=costly, row_limit=ROWS, max_name_column_width=60)
        worker.save_file(f"{name}.txt", table.encode())
        log.warning("profile of %d steps up to %d: report/%s.txt, .json.gz", profile.steps, watch.step, name)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with torch.profiler.profile(
        activities=activities,
        schedule=schedule(wait=profile.wait, warmup=1, active=profile.steps, repeat=1),
        on_trace_ready=write,
    ) as profiler:
        done = 0

        def after_step() -> None:
            nonlocal done
            close_range()
            profiler.step()
            done += 1
            if done == profile.wait + 1:
                watch.mark_range = mark_range
            elif done > profile.wait + profile.steps:
                watch.after_step = watch.mark_range = None

        watch.after_step = after_step
        try:
            yield
        finally:
            close_range()
            watch.after_step = watch.mark_range = None
    if not written:
        log.warning("no profile: this start ended after %d steps, %d were to be waited for", done, profile.wait + 1)
