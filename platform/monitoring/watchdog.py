"""When training stands still: every rank says where all its threads are, and who keeps the others waiting.

Each rank has a thread that looks at its :class:`~posefleet.platform.runtime.activity.Watch`. It needs no word from
other ranks, whose collective operations hang just then: they meet in the run's folder, in
``logs/stall-rank3.json`` (the phase) and ``.txt`` (the stacks). Where a thread holds Python's lock for good, no other
thread of that process can say anything; then Python's own ``faulthandler``, which needs no lock, leaves
``logs/frozen-rank3.txt``.
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
"""Times the limit for the first step of a process, which may compile or wait for caches."""
LONGEST_PAUSE = 5.0
"""Seconds between two looks at the watch."""
EXIT_STALLED = 75
"""Exit status of a process that ended itself: try again."""


@dataclass(frozen=True, slots=True)
class RankStatus:
    """What a rank says of itself."""

    rank: int
    node: str
    step: int
    phase: str
    seconds: float
    """In this phase."""


def verdict(told: Sequence[RankStatus], world_size: int) -> str:
    """Who keeps the others waiting, as far as the ranks have said anything."""
    silent = sorted(set(range(world_size)) - {one.rank for one in told})
    behind = [one for one in told if one.phase != Phase.OTHERS]
    waiting = sorted(one.rank for one in told if one.phase == Phase.OTHERS)
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
        parts = ["every rank waits for the others: look at the network between the nodes"]
    if silent:
        gone = "says" if len(silent) == 1 else "say"
        parts.append(f"rank {_listed(silent)} {gone} nothing: frozen, gone, or without the run's folder")
    if waiting and (behind or silent):
        parts.append(f"rank {_listed(waiting)} waits for it")
    return "; ".join(parts)


def stacks() -> str:
    """Where every Python thread of this process is, innermost call last."""
    threads = {thread.ident: thread for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        thread = threads.get(ident)
        found.append(f"thread {thread.name if thread else ident}:\n" + "".join(traceback.format_stack(frame)))
    return "\n".join(sorted(found, key=lambda text: not text.startswith("thread MainThread")))


class Watchdog:
    """Of one rank."""

    def __init__(
        self, watch: Activity, *, stall_s: float, end_s: float, rank: int, world_size: int, node: str, folder: str
    ) -> None:
        """
        Args:
            stall_s: Seconds without anything completed after which it is told; ``FIRST`` times as many at the start.
            end_s: Seconds after which the process ends itself; 0: never.
            folder: Of the run; empty: this rank knows of no other.
        """
        self._watch, self._stall_s, self._end_s = watch, stall_s, end_s
        self._rank, self._world_size, self._node, self._folder = rank, world_size, node, folder
        self._pause = min(LONGEST_PAUSE, stall_s / 4)
        self._stop = threading.Event()
        self._told_at = -1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within, standing still is told."""
        self._forget()
        thread = threading.Thread(target=self._work, name="watchdog", daemon=True)
        with self._frozen():
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join(2 * LONGEST_PAUSE)

    def _work(self) -> None:
        while not self._stop.wait(self._pause):
            self._rearm()
            watch, patience = self._watch, 1.0 if self._watch.beats else FIRST
            beats, idle = watch.beats, time.monotonic() - watch.last
            if idle < patience * self._stall_s:
                if self._told_at >= 0:
                    log.warning("rank %d goes on, after step %d", self._rank, watch.step)
                    self._told_at = -1
                    self._forget()
                continue
            if beats != self._told_at:
                self._told_at = beats
                self._tell(idle)
            if self._end_s and time.monotonic() - watch.last >= patience * self._end_s and beats == watch.beats:
                self._end()

    def _tell(self, idle: float) -> None:
        """Leave this rank's own state and stacks, wait for those of the others, and say who is behind."""
        watch = self._watch
        here = RankStatus(self._rank, self._node, watch.step, watch.phase.value, time.monotonic() - watch.since)
        text = stacks()
        self._leave("txt", f"rank {self._rank} on {self._node}: {watch.phase.value}\n\n{text}")
        self._leave("json", json.dumps(dataclasses.asdict(here)))
        log.debug("rank %d stands still in phase %r\n%s", self._rank, watch.phase.value, text)
        if self._world_size > 1:
            self._stop.wait(max(1.0, 3 * self._pause))
        told = self._others() or [here]
        level = logging.ERROR if self._rank == min(one.rank for one in told) else logging.DEBUG
        where = f"; stacks of all threads: {self._folder}/logs/stall-rank*.txt" if self._folder else f"\n{text}"
        log.log(level, "nothing completed for %.0f s: %s%s", idle, verdict(told, self._world_size), where)

    def _end(self) -> None:
        log.critical(
            "rank %d ends after %.0f s at a standstill (train.stall_end_s); the run goes on from its last checkpoint",
            self._rank,
            time.monotonic() - self._watch.last,
        )
        logs.flush()
        for child in multiprocessing.active_children():
            child.kill()  # a loader that hangs does not notice that nobody reads it any more
        os._exit(EXIT_STALLED)

    # ------------------------------------------------------------------------------------------------ files

    def _leave(self, kind: str, text: str) -> None:
        if not self._folder:
            return
        try:
            with fsspec.open(f"{self._folder}/logs/stall-rank{self._rank}.{kind}", "w", auto_mkdir=True) as file:
                file.write(text)
        except OSError as error:
            log.warning("rank %d cannot leave its state in the run's folder: %s", self._rank, error)

    def _others(self) -> list[RankStatus]:
        if not self._folder:
            return []
        fs, path = fsspec.url_to_fs(f"{self._folder}/logs")
        fs.invalidate_cache()
        told = []
        for rank in range(self._world_size):
            with contextlib.suppress(OSError, ValueError):  # not there, or not whole yet
                told.append(RankStatus(**json.loads(fs.cat_file(f"{path}/stall-rank{rank}.json"))))
        return told

    def _forget(self) -> None:
        if self._folder:
            fs, path = fsspec.url_to_fs(f"{self._folder}/logs/stall-rank{self._rank}.json")
            with contextlib.suppress(OSError):
                fs.rm(path)

    # ------------------------------------------------------------------------------------------------ frozen

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        self._file = None
        if not self._folder:
            yield
            return
        path = logs.local_folder(self._folder) / f"frozen-rank{self._rank}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as self._file:
            self._rearm()
            try:
                yield
            finally:
                faulthandler.cancel_dump_traceback_later()
                self._file.flush()
        if not path.stat().st_size:
            path.unlink()

    def _rearm(self) -> None:
        """Unless the watchdog's own thread comes by again, the stacks are written without Python's help."""
        if self._file:
            faulthandler.dump_traceback_later(self._stall_s + 2 * self._pause, file=self._file)


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))
