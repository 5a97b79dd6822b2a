"""Events that a store does not take although it answers: they hold nothing back, are named, and are tried again."""

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from posefleet.platform.tracking.__main__ import main, sync_spool
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.runs import read_metrics, read_run, start_run
from posefleet.platform.tracking.spool import Spool
from posefleet.platform.tracking.tracker import Tracker


@contextmanager
def http_server(get: bytes, post: tuple[int, bytes], kind: str = "application/json") -> Iterator[str]:
    """The address of a server that gives the same answer to every GET, and one to every POST."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, status: int, content: bytes) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer(200, get)

        def do_POST(self) -> None:
            self.answer(*post)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_an_artifact_that_is_refused_holds_nothing_back_and_arrives_once_it_is_taken(
    store: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    denied, spool = tmp_path / "denied", tmp_path / "spool"
    denied.touch()  # a file in the place of the folder
    location = f"file://{denied}/artifacts"
    run_id = start_run(store, "refused", "r", params={}, tags={}, artifact_location=location)
    with caplog.at_level(logging.WARNING, "posefleet"):
        tracker = Tracker(store, run_id, spool, system_every=0)
        tracker.log_metrics({"loss": 1.0}, 1)
        for index in range(5):  # the last ones are not even tried
            tracker.log_bytes(f"plots/{index}.png", b"png")
        tracker.log_metrics({"loss": 0.5, "AP": 0.7}, 2)
        tracker.close("FINISHED")
    run = read_run(store, run_id)
    assert (run.status, run.metrics) == ("FINISHED", {"loss": 0.5, "AP": 0.7})
    first, last = caplog.messages
    assert "does not take plots/0.png: [Errno 20] Not a directory" in first and str(spool) in first
    assert "did not take 5 of the run's events: plots/0.png: [Errno 20]" in last and f"sync {spool}" in last

    assert main(["sync", str(spool)]) == 1
    output = capsys.readouterr()
    assert output.out == f"0 events sent from {spool}\n" and "plots/4.png: not tried" in output.err

    denied.unlink()
    denied.mkdir()
    assert main(["sync", str(spool)]) == 0
    assert capsys.readouterr().out == f"5 events sent from {spool}\n"
    stored = {path.name for path in (denied / "artifacts").rglob("*.png")}
    assert stored == {f"{index}.png" for index in range(5)}
    assert list((spool / "artifacts").iterdir()) == [] and sync_spool(spool) == 0


def test_a_point_that_is_refused_costs_no_other_point_of_its_request(store: str, tmp_path: Path) -> None:
    run_id = start_run(store, "refused", "r", params={}, tags={})
    spool = Spool.create(tmp_path, store, run_id)
    steps = [1, 2, "three", 4]
    spool.append([{"kind": "metrics", "time": 1, "step": step, "values": {"loss": 1.0}} for step in steps])
    spool.append([{"kind": "of another version"}, {"kind": "tags"}])
    spool.append([{"kind": "metrics", "time": 1, "step": 5, "values": {"loss": 1.0}}])
    sync_spool(tmp_path)
    assert [step for step, _ in read_metrics(store, run_id, ["loss"])["loss"]] == [1, 2, 4, 5]
    assert [str(refused).partition(":")[0] for refused in spool.refused()] == [
        "loss of step three",
        "an event that is damaged",
        "an event that is damaged",
    ]


def test_a_tag_that_is_tried_again_does_not_replace_a_later_one(store: str, tmp_path: Path) -> None:
    run_id = start_run(store, "refused", "r", params={}, tags={})
    spool = Spool.create(tmp_path, store, run_id)
    spool.append([{"kind": "tags", "values": {"": "no name", "stage": "first", "kept": "yes"}}])
    spool.append([{"kind": "tags", "values": {"stage": "second"}}])
    assert sync_spool(tmp_path) == 1 and len(spool.refused()) == 1
    (line,) = (tmp_path / "refused.jsonl").read_text().splitlines()
    entry = json.loads(line)
    del entry["event"]["values"][""]  # the server takes the rest from now on
    (tmp_path / "refused.jsonl").write_text(json.dumps(entry) + "\n")
    assert sync_spool(tmp_path) == 1 and spool.refused() == []
    tags = MlflowClient(store, store).get_run(run_id).data.tags
    assert (tags["stage"], tags["kept"]) == ("second", "yes")


def test_events_wait_in_order_where_the_server_takes_nothing(tmp_path: Path) -> None:
    """As with credentials that may read only: setting everything aside would hide it."""
    info = {"run_id": "1" * 32, "run_uuid": "1" * 32, "experiment_id": "1", "status": "RUNNING", "start_time": 1}
    run = {"run": {"info": info, "data": {"tags": [{"key": "mlflow.user", "value": "me"}]}}}
    denied = json.dumps({"error_code": "PERMISSION_DENIED", "message": "may not write"}).encode()
    with http_server(json.dumps(run).encode(), (403, denied)) as uri:
        spool = Spool.create(tmp_path, uri, "1" * 32)
        spool.append([{"kind": "metrics", "time": 1, "step": 1, "values": {"loss": 1.0}}])
        with pytest.raises(TrackingError, match="may not write"):
            sync_spool(tmp_path)
    assert len(spool.pending()) == 1 and spool.refused() == []
