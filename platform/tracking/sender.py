"""Sends the events of a spool to MLflow; sending an event twice changes nothing.

A metric has one point per step: a point is sent unless the server already has one of that name at that step. The first
value stays. So the charts look like those of an uninterrupted run after events are sent again because of a crash, or
after steps are trained again from an older checkpoint. Tags, artifacts and status are assignments.

If the server does not answer, or takes nothing at all, events wait in their order. An event that it does not take
although it takes others, such as an artifact that its storage refuses, is set aside with the reason, and the events
after it are sent.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from posefleet.platform.tracking.client import check_answer, clean_name, connect, first_line
from posefleet.platform.tracking.spool import Event, Refused, Spool

if TYPE_CHECKING:
    from mlflow.entities import Metric

POINTS_PER_REQUEST = 1000
"""Maximum metric points per request, MLflow's limit."""

MOST_FAILED_ARTIFACTS = 3
"""After so many artifacts in a row that were not taken, a sender tries no more: each may take a minute to fail."""


class Sender:
    """Sends the events of a spool to one run.

    It reads the state of the run from the server once, when it is created. Create a new one after an error.
    """

    def __init__(self, uri: str, run_id: str) -> None:
        """
        Raises:
            MlflowException: There is no such run, or MLflow does not answer.
            TrackingError: The database cannot be opened, or the server is not MLflow.
        """
        self._uri = uri
        self._client = connect(uri)
        self._run_id = run_id
        self._failed_artifacts = 0
        self._read_state()

    def send(self, spool: Spool) -> int:
        """Send the pending events and return how many the server took.

        What it does not take is set aside, see :meth:`Spool.refused`. After an error, the events not sent stay in the
        spool.
        """
        with spool.sending():
            return sum(self._deliver(batch, spool) for batch in _batches(spool.pending()))

    def send_refused(self, spool: Spool) -> int:
        """Try the events that were set aside again, and return how many the server took."""
        self._failed_artifacts = 0
        with spool.sending():
            refused, kept, taken = spool.refused(), list[Refused](), list[Event]()
            for entry in refused:
                event = self._without_outdated_tags(entry, spool)
                if reason := self._try([event], spool.folder):
                    kept.append(Refused(event=event, offset=entry.offset, reason=reason))
                else:
                    taken.append(event)
            if refused:
                spool.still_refused(kept, taken)
        return len(taken)

    def _deliver(self, batch: list[tuple[Event, int]], spool: Spool) -> int:
        """Send a batch or set its events aside; returns how many events the server took."""
        events, offset = [event for event, _ in batch], batch[-1][1]
        reason = self._try(events, spool.folder)
        if reason and len(batch) > 1:
            return sum(self._deliver([one], spool) for one in batch)
        if reason:
            spool.refuse(Refused(event=events[0], offset=offset, reason=reason))
        spool.mark_sent(offset, [] if reason else events)
        return 0 if reason else len(events)

    def _try(self, events: list[Event], folder: Path) -> str:
        """Send ``events``; returns why the server does not take them although it takes others, empty if it does.

        Raises:
            Exception: The server takes nothing.
        """
        artifact = events[0].get("kind") == "artifact"
        if artifact and self._failed_artifacts >= MOST_FAILED_ARTIFACTS:
            return f"not tried, as {MOST_FAILED_ARTIFACTS} artifacts before it were refused"
        try:
            self._send_batch(events, folder)
        # A store of artifacts, a proxy or a damaged event may raise anything.
        except Exception as error:
            self._check_that_others_are_taken()
            self._failed_artifacts += artifact
            return first_line(error)
        if artifact:
            self._failed_artifacts = 0
        return ""

    def _check_that_others_are_taken(self) -> None:
        """Raise the server's error unless it answers and takes a tag, which is set to the value that it has."""
        tags = self._read_state()
        name = next((name for name in ("mlflow.source.name", "mlflow.user", *tags) if name in tags), None)
        if name:
            self._client.set_tag(self._run_id, name, tags[name])

    def _read_state(self) -> dict[str, str]:
        """Read what the server has of the run; returns its tags."""
        run = self._client.get_run(self._run_id)
        check_answer(self._uri, run.info.run_id, self._run_id)
        self._started = run.info.start_time
        self._ended = run.info.end_time or 0
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._earlier_steps: dict[str, set[int]] = {}
        tags: dict[str, str] = run.data.tags
        return tags

    @staticmethod
    def _without_outdated_tags(entry: Refused, spool: Spool) -> Event:
        """The event without the tags that a later event of the spool sets."""
        if entry.event.get("kind") != "tags":
            return entry.event
        later = {name for event, _ in spool.events_after(entry.offset) for name in event.get("values", ())}
        return entry.event | {"values": {n: text for n, text in entry.event["values"].items() if n not in later}}

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
            case "status":
                if event["time"] < self._ended:
                    return  # outdated: another spool continued the run
                if event["status"] == "RUNNING":
                    self._client.update_run(self._run_id, status="RUNNING")
                else:
                    self._client.set_terminated(self._run_id, event["status"], event["time"])
            case kind:
                raise ValueError(f"events of kind {kind!r} are of another version")

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
        size = len(event.get("values", ())) + 1 if event.get("kind") == "metrics" else POINTS_PER_REQUEST
        if batch and points + size > POINTS_PER_REQUEST:
            yield batch
            batch, points = [], 0
        batch.append((event, offset))
        points += size
    if batch:
        yield batch
