"""Logs a run from rank 0 through a queue in memory, a spool on disk and a thread that sends.

Training never waits for the tracking server and never fails because of it. A background thread writes logged events
to a :class:`~posefleet.platform.tracking.spool.Spool` every second and sends them to the server every five seconds.
While the server is down, events stay in the spool. This process, a restart with the same spool, or
``python -m posefleet.platform.tracking sync`` sends them later. So do events that the server refuses one by one, which
hold nothing else back.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from posefleet.platform.runtime.redaction import redact
from posefleet.platform.tracking.client import first_line, tracking_uri
from posefleet.platform.tracking.sender import Sender
from posefleet.platform.tracking.spool import Event, Refused, Spool
from posefleet.platform.tracking.system_metrics import SystemMetrics

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""Status of a run. A tracker that closes with RUNNING leaves the run to another process."""

STORE_EVERY = 1.0
"""Seconds between two writes to the spool; a killed process loses that much unless it has called ``store``."""
LONGEST_PAUSE = 10.0
"""Maximum seconds between two attempts to send while the server is down."""
MOST_LISTED = 5
"""Number of refused events that a message names."""
REFUSED_AGAIN = 300.0
"""Seconds between two attempts to send what the server refuses."""

_log = logging.getLogger(__name__)


class Tracker:
    """Logs one run. No method raises because of the server; only ``flush`` and ``close`` wait for it, for ``timeout``.

    Use it as a context manager: a normal exit closes the run as FINISHED, an exception as FAILED, Ctrl-C as KILLED.
    """

    def __init__(
        self, uri: str, run_id: str, spool_dir: Path | str, *, send_every: float = 5.0, system_every: float = 10.0
    ) -> None:
        """
        Args:
            uri: MLflow store, see :func:`posefleet.platform.tracking.client.tracking_uri`.
            run_id: MLflow run id from :func:`posefleet.platform.tracking.runs.start_run`.
            spool_dir: Spool folder of this run, in which events wait for the server; the same after a restart.
            send_every: Seconds between two attempts to send.
            system_every: Seconds between two samples of the machine's load (``system/...``). 0: none.

        Raises:
            ValueError: The URI is not usable, or the spool holds another run.
        """
        self.uri = tracking_uri(uri)
        self.run_id = run_id
        self.spool = Spool.create(spool_dir, self.uri, run_id)
        self._send_every = send_every
        self._system_every = system_every
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._unstored: list[Event] = []
        self._storing = threading.Lock()
        self._flushes: queue.SimpleQueue[threading.Event] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._closed = False
        self._refusal_told = False
        self._log("status", status="RUNNING")
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Add one point to each metric at training step ``step``; takes microseconds."""
        self._log("metrics", step=step, values={name: float(value) for name, value in metrics.items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; secrets in their text are redacted."""
        self._log("tags", values={name: redact(str(text)) for name, text in tags.items()})

    def log_artifact(self, path: Path | str, folder: str = "") -> None:
        """Log a file, or the content of a directory, under the artifact folder ``folder``; copies it to the spool."""
        self._log_files(lambda: self.spool.keep(path), folder, str(path))

    def log_bytes(self, name: str, data: bytes) -> None:
        """Log ``data``, such as a PNG, as the artifact ``name`` (``plots/curve.png``)."""
        folder, _, file = name.rpartition("/")
        self._log_files(lambda: self.spool.keep_bytes(file, data), folder, name)

    def store(self) -> None:
        """Write everything logged so far to the spool. If the disk fails, log a warning and keep it in memory."""
        try:
            self._store()
        except OSError as error:
            _log.warning("%s cannot be written: %s", self.spool.folder, error)

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until the server has everything logged so far that it takes; False if not after ``timeout`` seconds."""
        done = threading.Event()
        self._flushes.put(done)
        self._wake.set()
        return done.wait(timeout)

    def close(self, status: Status = "FINISHED", timeout: float = 30.0) -> None:
        """Stop logging and set the run's ``status``.

        Events that the server does not have after ``timeout`` seconds, or refuses, stay in the spool; unless the status
        is RUNNING, a warning names what was refused.
        """
        if self._closed:
            return
        self._log("status", status=status)
        sent = self.flush(timeout)
        self._closed = True
        self._wake.set()
        self._thread.join(1.0)
        if not sent:
            folder = self.spool.folder
            if status != "RUNNING":
                _log.warning("events wait in %s: python -m posefleet.platform.tracking sync %s", folder, folder)
            self.store()  # the thread may be stuck in a request
        if status != "RUNNING":
            self._name_refused()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close("FINISHED")
        else:
            self.close("KILLED" if issubclass(kind, KeyboardInterrupt) else "FAILED")

    def _log_files(self, keep: Callable[[], str], folder: str, what: str) -> None:
        try:
            self._log("artifact", file=keep(), folder=folder)
        except OSError as error:
            _log.warning("the artifact %s is not logged: %s", what, error)

    def _log(self, kind: str, **content: Any) -> None:
        self._events.put({"kind": kind, "time": time.time_ns() // 1_000_000, **content})  # milliseconds, as MLflow

    def _name_refused(self) -> None:
        """Warn of what the server did not take."""
        folder = self.spool.folder
        try:
            refused = self.spool.refused()
        except OSError as error:
            _log.warning("%s cannot be read: %s", folder, error)
            return
        if refused:
            _log.warning(
                "MLflow at %s did not take %s; to try again: python -m posefleet.platform.tracking sync %s",
                redact(self.uri),
                listed(refused),
                folder,
            )

    def _send(self, sender: Sender, *, again: bool) -> None:
        """Send what waits; with ``again``, also what was refused before. The first refusal is logged."""
        before = len(self.spool.refused())
        sender.send(self.spool)
        refused = self.spool.refused()
        if len(refused) > before and not self._refusal_told:
            self._refusal_told = True
            _log.warning(
                "MLflow at %s does not take %s; it is kept in %s, and everything else is sent",
                redact(self.uri),
                refused[before],
                self.spool.folder,
            )
        if again and refused:
            sender.send_refused(self.spool)

    def _work(self) -> None:
        """Body of the background thread: sample the machine, write events to disk, send them to the server."""
        machine = SystemMetrics(self._system_every)
        sender: Sender | None = None
        waiting: list[threading.Event] = []
        next_send, next_again, failures = 0.0, 0.0, 0
        while not self._closed:
            self._wake.wait(min(STORE_EVERY, self._send_every))
            self._wake.clear()
            waiting += (asked := _drain(self._flushes))
            try:
                if sample := machine.sample():
                    self._log("metrics", step=None, values=sample)
                self._store()
                if time.monotonic() < next_send and not asked:
                    continue
                sender = sender or Sender(self.uri, self.run_id)
                again = bool(asked) or time.monotonic() >= next_again
                self._send(sender, again=again)
                if again:
                    next_again = time.monotonic() + REFUSED_AGAIN
            # The network, database, bucket or disk may raise anything. Training goes on, and the next round retries.
            except Exception as error:
                if not failures:
                    _log.warning(
                        "MLflow at %s fails (%s); training goes on, events are kept in %s until it answers",
                        redact(self.uri),
                        first_line(error),
                        self.spool.folder,
                    )
                sender, failures = None, failures + 1
                next_send = time.monotonic() + min(2**failures, LONGEST_PAUSE)
            else:
                next_send, failures = time.monotonic() + self._send_every, 0
                for flush in waiting:
                    flush.set()
                waiting.clear()

    def _store(self) -> None:
        with self._storing:
            self._unstored += _drain(self._events)
            if self._unstored:
                self.spool.append(self._unstored)
                self._unstored = []


def listed(refused: list[Refused]) -> str:
    """What was refused and why, on one line; the first five of many."""
    more = f"; and {len(refused) - MOST_LISTED} more" if len(refused) > MOST_LISTED else ""
    return f"{len(refused)} of the run's events: " + "; ".join(map(str, refused[:MOST_LISTED])) + more


def _drain(waiting: "queue.SimpleQueue[Any]") -> list[Any]:
    return [waiting.get() for _ in range(waiting.qsize())]  # no other consumer, so get never blocks
