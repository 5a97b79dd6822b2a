"""Sends the events of a spool to MLflow; sending an event twice changes nothing.

A metric has one point per step: a point is sent unless the server already has one of that name at that step. The first
value stays. So the charts look like those of an uninterrupted run after events are sent again because of a crash, or
after steps are trained again from an older checkpoint. Tags, artifacts and status are assignments.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posefleet.platform.tracking.client import clean_name, connect
from posefleet.platform.tracking.spool import Event, Spool

if TYPE_CHECKING:
    from mlflow.entities import Metric

POINTS_PER_REQUEST = 1000
"""Maximum metric points per request, MLflow's limit."""


class Sender:
    """Sends the events of a spool to one run.

    It reads the state of the run from the server once, when it is created. Create a new one after an error.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        """
        Raises:
            MlflowException: There is no such run, or MLflow does not answer.
        """
        self._client = connect(uri)
        self._run_id = run_id
        run = self._client.get_run(run_id)
        self._started = run.info.start_time
        self._ended = run.info.end_time or 0
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._earlier_steps: dict[str, set[int]] = {}

    def send(self, spool: Spool) -> int:
        """Send the pending events and return their number. After an error, the events not sent stay in the spool."""
        with spool.sending():
            pending = spool.pending()
            for batch in _batches(pending):
                events = [event for event, _ in batch]
                self._send_batch(events, spool.folder)
                spool.mark_sent(batch[-1][1], events)
            return len(pending)

    def _send_batch(self, events: list[Event], folder: Path) -> None:
        """Send ``events``: several metrics events, or a single event of another kind."""
        event = events[0]
        match event["kind"]:
            case "metrics":
                if points := self._new_points(events):
                    self._client.log_batch(self._run_id, metrics=points)
            case "tags":
                for name, text in event["values"].items():
                    self._client.set_tag(self._run_id, name, text)
            case "artifact":
                kept = folder / event["file"]
                upload = self._client.log_artifacts if kept.is_dir() else self._client.log_artifact
                upload(self._run_id, str(kept), event["folder"] or None)
            case "status" if event["time"] >= self._ended:  # an older one is outdated: another spool continued the run
                if event["status"] == "RUNNING":
                    self._client.update_run(self._run_id, status="RUNNING")
                else:
                    self._client.set_terminated(self._run_id, event["status"], event["time"])

    def _new_points(self, events: list[Event]) -> "list[Metric]":
        from mlflow.entities import Metric

        points: list[Metric] = []
        accepted: set[tuple[str, int]] = set()
        for event in events:
            step = event["step"]
            if step is None:
                step = max(0, event["time"] - self._started) // 1000  # system metrics: seconds since the run started
            for name, value in event["values"].items():
                if self._is_new(key := clean_name(name), step, accepted):
                    accepted.add((key, step))
                    points.append(Metric(key, value, event["time"], step))
        return points

    def _is_new(self, key: str, step: int, accepted: set[tuple[str, int]]) -> bool:
        """Whether neither the server nor ``accepted``, the points of this request, has ``key`` at ``step``."""
        if step > self._last_step.get(key, -math.inf):
            self._last_step[key] = step
            self._earlier_steps.pop(key, None)  # no longer needed, and a history can be long
            return True
        if key not in self._earlier_steps:
            history = self._client.get_metric_history(self._run_id, key)
            known = {point.step for point in history} | {other for name, other in accepted if name == key}
            self._earlier_steps[key] = known
        if step in self._earlier_steps[key]:
            return False
        self._earlier_steps[key].add(step)
        return True


def _batches(pending: Sequence[tuple[Event, int]]) -> Iterator[list[tuple[Event, int]]]:
    """Split events into batches, in order: consecutive metrics that fit one request, every other event alone."""
    batch: list[tuple[Event, int]] = []
    points = 0
    for event, offset in pending:
        size = len(event["values"]) + 1 if event["kind"] == "metrics" else POINTS_PER_REQUEST
        if batch and points + size > POINTS_PER_REQUEST:
            yield batch
            batch, points = [], 0
        batch.append((event, offset))
        points += size
    if batch:
        yield batch
