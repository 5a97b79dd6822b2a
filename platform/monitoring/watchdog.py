"""Detects a training that stalls, writes the stacks of every rank, and reports which rank keeps the others waiting.

A thread of each rank reads the rank's :class:`~posefleet.platform.runtime.activity.Activity`. During a stall collective
operations hang, so the ranks exchange their status through the run's folder: ``logs/stall-rank3.json`` (the phase) and
``.txt`` (the stacks). If one thread never releases Python's lock, no other thread of that process can run; then
Python's own ``faulthandler``, which needs no lock, writes ``logs/frozen-rank3.txt``.
"""

import contextlib
import dataclasses
import faulthandler
import json
import logging
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import fsspec

from posefleet.platform.runtime import logs
from posefleet.platform.runtime.activity import Activity, Phase

log = logging.getLogger(__name__)

FIRST = 3.0
"""Factor on the limits for the first step of a process, which may compile or wait for caches."""
LONGEST_PAUSE = 5.0
"""Longest time between two checks of the activity, in seconds."""
EXIT_STALLED = 75
"""Exit status of a process that ended itself because of a stall; starting it again may help (EX_TEMPFAIL)."""


@dataclass(frozen=True, slots=True)
class RankStatus:
    """What a rank does during a stall, as it writes it to the run's folder."""

    rank: int
    node: str
    step: int
    phase: str
    seconds: float
    """Seconds in this phase."""


def describe_stall(statuses: Sequence[RankStatus], world_size: int) -> str:
    """Which ranks keep the others waiting, judging by the ranks that wrote their status."""
    silent = sorted(set(range(world_size)) - {one.rank for one in statuses})
    behind = [one for one in statuses if one.phase != Phase.OTHERS]
    waiting = sorted(one.rank for one in statuses if one.phase == Phase.OTHERS)
    if behind:
        first = min(one.step for one in behind)
        parts = [
            f"rank {one.rank} on {one.node} {'is behind' if world_size > 1 else 'stands still'}, "
            f"after step {one.step}, in phase {one.phase!r} "
            f"for {one.seconds:.0f} s"
            for one in behind
            if one.step == first
        ]
    elif silent:
        parts = []
    else:
        parts = ["every rank waits for the others: check the network between the nodes"]
    if silent:
        gone = "says" if len(silent) == 1 else "say"
        parts.append(f"rank {_listed(silent)} {gone} nothing: frozen, gone, or without the run's folder")
    if waiting and (behind or silent):
        parts.append(f"rank {_listed(waiting)} waits for it")
    return "; ".join(parts)


def stacks() -> str:
    """Stacks of all Python threads of this process, the main thread first, the innermost call last."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        thread = threads.get(ident)
        found.append(f"thread {thread.name if thread else ident}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(sorted(found, key=lambda text: not text.startswith("thread MainThread")))


class Watchdog:
    """Watches the activity of one rank in a thread of its own."""

    def __init__(
        self, watch: Activity, *, stall_s: float, end_s: float, rank: int, world_size: int, node: str, folder: str
    ) -> None:
        """
        Args:
            watch: What this process does.
            stall_s: Seconds without completed work after which a stall is reported; ``FIRST`` times as many at first.
            end_s: Seconds without completed work after which the process ends itself; 0: never.
            folder: Folder of the run; empty: this rank does not learn about the others.
        """
        self._watch, self._stall_s, self._end_s = watch, stall_s, end_s
        self._rank, self._world_size, self._node, self._folder = rank, world_size, node, folder
        self._pause = min(LONGEST_PAUSE, stall_s / 4)
        self._stop = threading.Event()
        self._reported_at = -1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, a stall is reported."""
        self._remove_status()
        thread = threading.Thread(target=self._watch_activity, name="watchdog", daemon=True)
        with self._faulthandler_armed():
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join(2 * LONGEST_PAUSE)

    def _watch_activity(self) -> None:
        while not self._stop.wait(self._pause):
            self._restart_faulthandler()
            watch, patience = self._watch, 1.0 if self._watch.beats else FIRST
            beats, idle = watch.beats, time.monotonic() - watch.last
            if idle < patience * self._stall_s:
                if self._reported_at >= 0:
                    log.warning("rank %d goes on, after step %d", self._rank, watch.step)
                    self._reported_at = -1
                    self._remove_status()
                continue
            if beats != self._reported_at:
                self._reported_at = beats
                self._report(idle)
            if self._end_s and time.monotonic() - watch.last >= patience * self._end_s and beats == watch.beats:
                self._end_process()

    def _report(self, idle: float) -> None:
        """Write this rank's status and stacks, wait for the others' status, and log which rank is behind."""
        watch = self._watch
        here = RankStatus(self._rank, self._node, watch.step, watch.phase.value, time.monotonic() - watch.since)
        text = stacks()
        self._write("txt", f"rank {self._rank} on {self._node}: {watch.phase.value}\n\n{text}")
        self._write("json", json.dumps(dataclasses.asdict(here)))
        log.debug("rank %d stands still in phase %r\n%s", self._rank, watch.phase.value, text)
        if self._world_size > 1:
            self._stop.wait(max(1.0, 3 * self._pause))
        statuses = self._read_statuses() or [here]
        level = logging.ERROR if self._rank == min(one.rank for one in statuses) else logging.DEBUG
        where = f"; stacks of all threads: {self._folder}/logs/stall-rank*.txt" if self._folder else f"\n{text}"
        log.log(level, "nothing completed for %.0f s: %s%s", idle, describe_stall(statuses, self._world_size), where)

    def _end_process(self) -> None:
        log.critical(
            "rank %d ends after %.0f s at a standstill (train.stall_end_s); the run goes on from its last checkpoint",
            self._rank,
            time.monotonic() - self._watch.last,
        )
        logs.flush()
        for child in multiprocessing.active_children():
            child.kill()  # a loader that hangs does not notice that its reader is gone
        os._exit(EXIT_STALLED)

    # ------------------------------------------------------------------------------------------------ files

    def _write(self, kind: str, text: str) -> None:
        if not self._folder:
            return
        try:
            with fsspec.open(f"{self._folder}/logs/stall-rank{self._rank}.{kind}", "w", auto_mkdir=True) as file:
                file.write(text)
        except OSError as error:
            log.warning("rank %d cannot write its status into the run's folder: %s", self._rank, error)

    def _read_statuses(self) -> list[RankStatus]:
        if not self._folder:
            return []
        fs, path = fsspec.url_to_fs(f"{self._folder}/logs")
        fs.invalidate_cache()
        statuses = []
        for rank in range(self._world_size):
            with contextlib.suppress(OSError, ValueError):  # missing, or still being written
                statuses.append(RankStatus(**json.loads(fs.cat_file(f"{path}/stall-rank{rank}.json"))))
        return statuses

    def _remove_status(self) -> None:
        if self._folder:
            fs, path = fsspec.url_to_fs(f"{self._folder}/logs/stall-rank{self._rank}.json")
            with contextlib.suppress(OSError):
                fs.rm(path)

    # ------------------------------------------------------------------------------------------------ frozen

    @contextlib.contextmanager
    def _faulthandler_armed(self) -> Iterator[None]:
        self._file = None
        if not self._folder:
            yield
            return
        path = logs.local_folder(self._folder) / f"frozen-rank{self._rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as self._file:
            self._restart_faulthandler()
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._file.flush()
        if not path.stat().st_size:
            path.unlink()

    def _restart_faulthandler(self) -> None:
        """Restart the timer after which ``faulthandler`` writes the stacks, unless this is called again before."""
        if self._file:
            faulthandler.dump_traceback_later(self._stall_s + 2 * self._pause, file=self._file)


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
