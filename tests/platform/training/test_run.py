"""A run's folder where its storage refuses to be written."""

import logging
import threading
from pathlib import Path

import pytest

from posefleet.platform.tracking.runs import read_run, start_run
from posefleet.platform.training.run import Run, RunLogger


@pytest.fixture
def run(store: str, tmp_path: Path) -> Run:
    (tmp_path / "run").mkdir()
    return Run(
        folder=str(tmp_path / "run"), run_id=start_run(store, "tests", "run", params={}, tags={}), tracking_uri=store
    )


def test_a_picture_that_cannot_be_written_ends_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path(run.folder, "report").touch()  # a file, where a folder is wanted
    sink = RunLogger(run, system_every=0)
    with caplog.at_level(logging.WARNING):
        sink.log_bytes("curves/loss.png", b"a picture")
    sink.close("FINISHED")
    assert f"{run.folder}/report/curves/loss.png is not written" in caplog.text
    assert read_run(run.tracking_uri, run.run_id).status == "FINISHED"


def test_a_run_ends_where_its_folder_cannot_be_written(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    Path(run.folder, "spool").touch()
    with caplog.at_level(logging.WARNING):
        run.finish("FAILED")
    assert f"MLflow does not learn that run {run.run_id} is FAILED" in caplog.text


def test_a_sink_that_is_left_has_sent_everything_and_ends_no_run(run: Run) -> None:
    before = set(threading.enumerate())
    with RunLogger(run, system_every=0) as sink:
        sink.log_metrics({"AP": 0.5}, 3)
    found = read_run(run.tracking_uri, run.run_id)
    assert (found.status, found.metrics["AP"]) == ("RUNNING", 0.5)
    assert set(threading.enumerate()) <= before


def test_a_sink_that_is_left_by_an_error_keeps_everything(run: Run) -> None:
    with pytest.raises(RuntimeError), RunLogger(run, system_every=0) as sink:
        sink.log_metrics({"AP": 0.5}, 3)
        raise RuntimeError
    run.finish("FAILED", curves=False)
    found = read_run(run.tracking_uri, run.run_id)
    assert (found.status, found.metrics["AP"]) == ("FAILED", 0.5)
