"""A profile of a few training steps: a trace to look into, and a table of what costs most.

``steps=5,wait=10,ranks=all`` profiles 5 steps after the first 10 of this start (and one that warms the profiler up), on
all ranks. The trace opens in https://ui.perfetto.dev or chrome://tracing.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from posefleet.platform.runtime.worker import LocalWorker

log = logging.getLogger(__name__)

GRAMMAR = "write steps=5, or steps=5,wait=10,ranks=all"
WAIT = 5
ROWS = 25
"""Of the table."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Which steps of which ranks are looked at."""

    steps: int
    wait: int = WAIT
    """Steps before, which are slower than the others."""
    everywhere: bool = False
    """On all ranks, not only on rank 0."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what a command line says.

        Raises:
            ValueError: It says something else.
        """
        given: dict[str, str] = {}
        for part in text.split(","):
            name, found, value = part.strip().partition("=")
            if not found or name not in ("steps", "wait", "ranks"):
                raise ValueError(f"profile {text!r}: {part.strip()!r} is not steps=, wait= or ranks=; {GRAMMAR}")
            if name in given:
                raise ValueError(f"profile {text!r}: {name} is given twice; {GRAMMAR}")
            given[name] = value
        if "steps" not in given:
            raise ValueError(f"profile {text!r}: steps is missing; {GRAMMAR}")
        given = {"wait": str(WAIT), "ranks": "0", **given}
        for name, least in (("steps", 1), ("wait", 0)):
            value = given[name]
            if not value.isdecimal() or int(value) < least:
                raise ValueError(f"profile {text!r}: {name} must be a number from {least} on, not {value!r}; {GRAMMAR}")
        if given["ranks"] not in ("0", "all"):
            raise ValueError(f"profile {text!r}: ranks must be 0 or all, not {given['ranks']!r}; {GRAMMAR}")
        return cls(int(given["steps"]), int(given["wait"]), given["ranks"] == "all")


@contextlib.contextmanager
def profiled(profile: Profile | None, worker: "LocalWorker") -> Iterator[None]:
    """Within, the steps of ``worker`` that the profile wants are profiled; without one, nothing happens."""
    if profile is None or (worker.rank and not profile.everywhere):
        yield
        return
    import torch
    from torch.profiler import ProfilerActivity, record_function, schedule

    watch, left = worker.watch, False
    open_range: list[Any] = []

    def mark_range(name: str) -> None:
        close_range()
        open_range.append(record_function(name).__enter__())

    def close_range() -> None:
        while open_range:
            open_range.pop().__exit__(None, None, None)

    def leave(taken: Any) -> None:
        nonlocal left
        left = True
        name = f"profile/rank{worker.rank}-step{watch.step:06d}"
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json.gz")
            taken.export_chrome_trace(str(trace))
            worker.leave(f"{name}.json.gz", trace.read_bytes())
        costly = "self_cuda_time_total" if worker.device.type == "cuda" else "self_cpu_time_total"
        table = taken.key_averages().table(sort_by=costly, row_limit=ROWS, max_name_column_width=60)
        worker.leave(f"{name}.txt", table.encode())
        log.warning("profile of %d steps up to %d: report/%s.txt, .json.gz", profile.steps, watch.step, name)

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with torch.profiler.profile(
        activities=activities,
        schedule=schedule(wait=profile.wait, warmup=1, active=profile.steps, repeat=1),
        on_trace_ready=leave,
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
    if not left:
        log.warning("no profile: this start ended after %d steps, %d were to be waited for", done, profile.wait + 1)
