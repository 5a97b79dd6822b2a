"""Stores that are not MLflow's: one line says so at once, and no run is opened."""

import sqlite3
from pathlib import Path

import pytest
from test_refused import http_server

from posefleet.platform.tracking.client import TrackingError, default_uri
from posefleet.platform.tracking.runs import start_run
from posefleet.platform.tracking.spool import Spool
from posefleet.platform.tracking.tracker import Tracker


def open_run(uri: str, resume: str | None = None) -> str:
    return start_run(uri, "odd", "r", params={"lr": 0.1}, tags={}, resume_run_id=resume)


def no_database(folder: Path) -> str:
    (folder / "m.db").write_bytes(b"no database" * 200)
    return f"sqlite:///{folder}/m.db"


def a_folder(folder: Path) -> str:
    (folder / "m.db").mkdir()
    return f"sqlite:///{folder}/m.db"


def below_a_file(folder: Path) -> str:
    (folder / "file").touch()
    return f"sqlite:///{folder}/file/m.db"


def of_something_else(folder: Path) -> str:
    with sqlite3.connect(folder / "m.db") as database:
        database.execute("create table songs (title text)")
    database.close()
    return f"sqlite:///{folder}/m.db"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (no_database, "file is not a database; move that file away, or give another store"),
        (a_folder, "m.db is a folder, not a database; give another store"),
        (below_a_file, "the database cannot be kept there"),
        (of_something_else, "the database is not MLflow's, it has the tables songs; give another store"),
        (lambda _: "postgresql://me:secret@127.0.0.1:9/mlflow", "check the address and that the database is up, or"),
        (lambda _: "mysql+nodriver://me@127.0.0.1:9/mlflow", "check the address and that the database is up, or"),
    ],
    ids=["no database", "folder", "below a file", "something else", "nobody", "no driver"],
)
def test_a_database_that_is_none_is_told_in_one_line(make: object, reason: str, tmp_path: Path) -> None:
    uri = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(TrackingError) as told:
        open_run(uri)
    message = str(told.value)
    assert message.startswith("MLflow at ") and reason in message
    assert "\n" not in message and "secret" not in message


@pytest.mark.parametrize(
    ("content", "kind", "reason"),
    [
        (b"", "application/json", "answers, but not as an MLflow server does (an id is empty"),
        (b"{}", "application/json", "answers, but not as an MLflow server does (an id is empty"),
        (b"<html>sign in</html>", "text/html", "not in a valid JSON format"),
    ],
    ids=["nothing", "empty object", "a page"],
)
def test_a_server_that_is_not_mlflow_opens_no_run_and_takes_no_event(
    content: bytes, kind: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with http_server(content, (200, content), kind) as uri:
        with pytest.raises(TrackingError) as told:
            open_run(uri)
        assert reason in str(told.value)
        assert open_run(uri, resume="1" * 32) == "1" * 32, "a run that exists goes on, as without a server"
        assert "goes on" in caplog.text
        tracker = Tracker(uri, "1" * 32, tmp_path, system_every=0)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.close("FINISHED", timeout=3)
    assert len(Spool(tmp_path).pending()) == 3, "two of the status and one of the metric wait for MLflow"


def test_a_question_mark_in_the_storage_is_refused() -> None:
    with pytest.raises(ValueError, match=r"under '/data/what\?': in its address, '\?' would begin options"):
        default_uri("/data/what?")
