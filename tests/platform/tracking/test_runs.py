"""Runs in a real MLflow: sqlite, and a server that goes away and comes back."""

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow_server import Server
from tracked_runs import find_runs

from posefleet.platform.tracking.__main__ import main, sync_spool
from posefleet.platform.tracking.client import TrackingError, default_uri, tracking_uri
from posefleet.platform.tracking.runs import DataInput, flatten, git_revision, read_run, start_run
from posefleet.platform.tracking.spool import Spool
from posefleet.platform.tracking.tracker import Tracker

START = """
import sys
from posefleet.platform.tracking.runs import start_run
sys.stdout.write(start_run(sys.argv[1], "first", "first", params={}, tags={}))
"""


@pytest.fixture(scope="module")
def first_drivers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[tuple[str, str]]]:
    """A new database that two drivers wanted at the same moment: its URI, and what each wrote to stdout and stderr."""
    uri = default_uri(str(tmp_path_factory.mktemp("store")))
    command = [sys.executable, "-c", START, uri]
    drivers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    return uri, [driver.communicate(timeout=120) for driver in drivers]


@pytest.fixture(scope="module")
def uri(first_drivers: tuple[str, list[tuple[str, str]]]) -> str:
    return first_drivers[0]


def new_run(uri: str) -> str:
    return start_run(uri, "tests", "run", params={}, tags={})


def points(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of a metric, in the order of its chart."""
    history = MlflowClient(uri, uri).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in history)


# ---------------------------------------------------------------------------------------------------- where


def test_a_relative_database_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert tracking_uri("http://host:5000/") == "http://host:5000"


@pytest.mark.parametrize(
    "uri", ["file:///tmp/mlruns", "runs/mlflow.db", "", "sqlite:///:memory:", "sqlite://", "s3://b/x"]
)
def test_a_store_that_mlflow_refuses_is_refused_with_advice(uri: str) -> None:
    with pytest.raises(ValueError, match=r"use sqlite:////absolute/path/mlflow.db or the http"):
        tracking_uri(uri)


def test_the_database_lies_beside_the_runs() -> None:
    assert default_uri("/data/runs") == default_uri("file:///data/runs") == "sqlite:////data/runs/mlflow.db"


@pytest.mark.parametrize("storage", ["runs", "s3://bucket/runs"])
def test_no_database_in_a_relative_or_remote_storage(storage: str) -> None:
    with pytest.raises(ValueError, match="give an absolute local path"):
        default_uri(storage)


def test_the_revision_names_the_commit_and_says_when_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POSEFLEET_REVISION", raising=False)
    assert git_revision(tmp_path) == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("2")
    assert git_revision(tmp_path) == f"{clean}-dirty"
    monkeypatch.setenv("POSEFLEET_REVISION", "shipped")
    assert git_revision(tmp_path) == "shipped"


def test_a_worker_does_not_wait_for_the_import_of_mlflow() -> None:
    code = "import sys, posefleet.platform.tracking.tracker; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------------------------------------------- runs


@pytest.mark.slow
def test_two_drivers_may_create_the_database_at_once_and_nothing_is_printed(
    first_drivers: tuple[str, list[tuple[str, str]]],
) -> None:
    uri, outputs = first_drivers
    assert [errors for _, errors in outputs] == ["", ""]
    assert {run.run_id for run in find_runs(uri, "first")} == {run_id for run_id, _ in outputs}


def test_settings_become_dotted_text() -> None:
    settings = {"optim": {"lr": 0.1, "steps": [1, 2], "extra": {}}, "name": None, "a@b": True}
    assert flatten(settings) == {
        "optim.lr": "0.1",
        "optim.steps": "[1, 2]",
        "optim.extra": "{}",
        "name": "None",
        "a_b": "True",
    }
    long = flatten({"x": "y" * 5000})["x"]
    assert len(long) <= 1000 and long.endswith("(5000 characters)")


def test_a_restart_continues_its_run(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    many = {f"p{i}": i for i in range(150)}
    run_id = start_run(uri, "tests", "r", params={"epochs": 9, **many}, tags={"who": "a"})
    MlflowClient(uri, uri).set_terminated(run_id, "FAILED")
    again = start_run(
        uri, "tests", "r", params={"epochs": 12, "new": 1, **many}, tags={"who": "b"}, resume_run_id=run_id
    )
    run = read_run(uri, run_id)
    assert again == run_id and run.status == "RUNNING"
    assert run.params == {"epochs": "9", "new": "1", **{name: str(i) for name, i in many.items()}}
    assert run.tags["resumed.epochs"] == "12" and run.tags["who"] == "b"
    assert "other settings: {'epochs': '12'}" in caplog.text


def test_tags_say_which_settings_a_resumed_run_has_now(uri: str) -> None:
    def resumed(**optim: float) -> dict[str, str]:
        start_run(uri, "tests", "r", params={"optim": optim}, tags={}, resume_run_id=run_id)
        tags = read_run(uri, run_id).tags
        return {name: text for name, text in tags.items() if name.startswith("resumed.")}

    run_id = start_run(uri, "tests", "r", params={"optim": {"lr": 0.2, "gamma": 1}}, tags={})
    assert resumed(lr=0.1, gamma=2) == {"resumed.optim.lr": "0.1", "resumed.optim.gamma": "2"}
    assert resumed(lr=0.3, gamma=1) == {"resumed.optim.lr": "0.3"}
    assert resumed(lr=0.2, gamma=1) == {}


def test_pages_of_mlflow_show_the_data_the_program_and_its_commit(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEFLEET_REVISION", "c0ffee-dirty")
    monkeypatch.setattr(sys, "argv", ["/jobs/train_smpr.py", "--help"])
    data = DataInput(name="train2017", use="train", fingerprint="f" * 64, source="s3://bucket/train2017")
    run_id = start_run(uri, "pages", "r", params={}, tags={}, inputs=[data])
    client = MlflowClient(uri, uri)
    run = client.get_run(run_id)
    assert client.get_experiment(run.info.experiment_id).tags["mlflow.experimentKind"] == "custom_model_development"
    assert run.data.tags["mlflow.source.name"] == "train_smpr.py"
    assert run.data.tags["git"] == "c0ffee-dirty"
    assert run.data.tags["mlflow.source.git.commit"] == "c0ffee" and run.data.tags["mlflow.source.git.dirty"] == "true"
    (shown,) = run.inputs.dataset_inputs
    assert (shown.dataset.name, shown.dataset.digest, shown.dataset.source_type) == ("train2017", "f" * 36, "s3")
    assert [(tag.key, tag.value) for tag in shown.tags] == [("mlflow.data.context", "train")]


def test_a_run_whose_driver_died_before_it_noted_the_id_is_found_by_its_folder(uri: str, tmp_path: Path) -> None:
    def open_run(folder: str) -> str:
        data = DataInput(name="train", use="train", fingerprint="f" * 64, source=folder)
        return start_run(uri, "abandoned", "r", params={"lr": 0.1}, tags={"folder": folder}, inputs=[data])

    first = open_run("/runs/a")
    assert open_run("/runs/b") != first
    assert open_run("/runs/a") == first
    assert len(MlflowClient(uri, uri).get_run(first).inputs.dataset_inputs) == 1
    with Tracker(uri, first, tmp_path) as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        assert tracker.flush()
        assert open_run("/runs/a") != first  # it has begun: someone removed the folder, and means another run


def test_what_is_stored_survives_a_process_that_is_killed_at_once(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    tracker = Tracker(uri, run_id, tmp_path, send_every=1e9)
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.store()
    kinds = [event["kind"] for event, _ in Spool(tmp_path).pending()]
    tracker.close()
    assert "metrics" in kinds


def test_a_run_that_does_not_exist_cannot_be_continued(uri: str) -> None:
    with pytest.raises(TrackingError, match="not found"):
        start_run(uri, "tests", "r", params={}, tags={}, resume_run_id="0" * 32)


def test_artifacts_lie_beside_the_database(uri: str) -> None:
    run = read_run(uri, new_run(uri))
    assert run.artifact_uri == f"file://{Path(uri.removeprefix('sqlite:///')).parent}/artifacts/{run.run_id}/artifacts"


def test_the_environment_changes_nothing(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "12345")
    monkeypatch.setenv("MLFLOW_RUN_ID", "1" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    run_id = start_run(uri, "alone", "r", params={}, tags={})
    assert [run.run_id for run in find_runs(uri, "alone")] == [run_id]


# ---------------------------------------------------------------------------------------------------- tracker


def test_everything_that_is_logged_arrives(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "meta.json").write_text("{}")
    with Tracker(uri, run_id, tmp_path / "spool", system_every=0.1) as tracker:
        for step in range(3000):
            tracker.log_metrics({"train/loss": 1.0 / (step + 1), "lr@x": 0.1}, step)
        tracker.log_metrics({"eval/ap": float("nan")}, 2999)
        tracker.log_bytes("plots/curve.png", b"png")
        tracker.log_bytes("note.txt", b"two\nlines")
        tracker.log_artifact(tmp_path / "best" / "meta.json", "files")
        tracker.log_artifact(tmp_path / "best", "checkpoint")
        tracker.set_tags({"champion": "no"})
        assert tracker.flush(30)
    run = read_run(uri, run_id)
    assert run.status == "FINISHED" and run.tags["champion"] == "no"
    assert points(uri, run_id, "train/loss") == [(step, 1.0 / (step + 1)) for step in range(3000)]
    assert len(points(uri, run_id, "lr_x")) == 3000
    assert run.metrics["system/process_memory_megabytes"] > 1
    stored = Path(run.artifact_uri.removeprefix("file://"))
    files = {path.relative_to(stored).as_posix(): path.read_text() for path in stored.rglob("*") if path.is_file()}
    assert files == {
        "plots/curve.png": "png",
        "note.txt": "two\nlines",
        "files/meta.json": "{}",
        "checkpoint/meta.json": "{}",
    }


def test_steps_that_are_trained_again_keep_one_point_each(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    with pytest.raises(RuntimeError), Tracker(uri, run_id, tmp_path) as tracker:
        for step in (10, 20, 30):
            tracker.log_metrics({"loss": float(step)}, step)
        raise RuntimeError("killed after the checkpoint of step 10")
    assert read_run(uri, run_id).status == "FAILED"
    with Tracker(uri, run_id, tmp_path) as tracker:
        assert tracker.flush() and read_run(uri, run_id).status == "RUNNING"
        for step in (20, 30, 40):
            tracker.log_metrics({"loss": float(step)}, step)
    assert points(uri, run_id, "loss") == [(10, 10.0), (20, 20.0), (30, 30.0), (40, 40.0)]
    assert read_run(uri, run_id).status == "FINISHED"


def test_ctrl_c_closes_the_run_as_killed(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    with pytest.raises(KeyboardInterrupt), Tracker(uri, run_id, tmp_path):
        raise KeyboardInterrupt
    assert read_run(uri, run_id).status == "KILLED"


def metrics_event(step: int, when: int) -> dict[str, object]:
    return {"kind": "metrics", "time": when, "step": step, "values": {"loss": float(step)}}


def test_a_spool_of_two_offline_lives_is_sent_as_one_and_may_be_sent_again(uri: str, tmp_path: Path) -> None:
    run_id = new_run(uri)
    spool = Spool.create(tmp_path, uri, run_id)
    now = time.time_ns() // 1_000_000
    spool.append([metrics_event(step, now + step) for step in (1, 2, 3)])
    spool.append([metrics_event(step, now + 10 + step) for step in (2, 3, 4)])
    assert sync_spool(tmp_path) == 6
    (tmp_path / "sent").unlink()  # the machine died before it could note what it had sent
    assert sync_spool(tmp_path) == 6
    assert sync_spool(tmp_path) == 0
    assert points(uri, run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_a_spool_that_takes_nothing_more_does_not_keep_a_run_from_ending(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = start_run(uri, "tests", "a", params={}, tags={})
    tracker = Tracker(uri, run_id, tmp_path / "spool", system_every=0)
    assert tracker.flush()
    (tmp_path / "spool" / "events.jsonl").unlink()
    (tmp_path / "spool" / "events.jsonl").mkdir()  # opening it is an OSError, also for root
    tracker.log_metrics({"loss": 1.0}, 1)
    tracker.close("FINISHED", timeout=1.0)
    assert f"{tmp_path}/spool cannot be written" in caplog.text


def test_points_of_an_older_spool_fill_the_gap_they_left(uri: str, tmp_path: Path) -> None:
    """The first machine was cut off and its disk came back after a second one had finished the run."""
    run_id = new_run(uri)
    early = time.time_ns() // 1_000_000
    older = Spool.create(tmp_path / "older", uri, run_id)
    older.append(
        [*(metrics_event(step, early) for step in (1, 2, 3)), {"kind": "status", "time": early, "status": "FAILED"}]
    )
    with Tracker(uri, run_id, tmp_path / "newer") as tracker:
        for step in (3, 4):
            tracker.log_metrics({"loss": float(step)}, step)
    sync_spool(tmp_path / "older")
    assert points(uri, run_id, "loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
    assert read_run(uri, run_id).status == "FINISHED"


# ---------------------------------------------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def server(uri: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("server")
    shutil.copy(uri.removeprefix("sqlite:///"), store / "mlflow.db")
    server = Server(store, default_uri(str(store)))
    server.start()
    yield server
    server.stop()


def test_nothing_is_lost_or_doubled_when_the_server_goes_away(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = start_run(server.uri, "outage", "r", params={"lr": 0.1}, tags={})
    with caplog.at_level(logging.WARNING, "posefleet"):
        tracker = Tracker(server.uri, run_id, tmp_path / "spool", send_every=0.2)
        for step in (1, 2, 3):
            tracker.log_metrics({"loss": float(step)}, step)
        assert tracker.flush(30)

        server.stop()
        begin = time.monotonic()
        for step in range(4, 1004):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.log_bytes("plots/curve.png", b"png")
        assert time.monotonic() - begin < 1.0
        assert not tracker.flush(1.0)
        tracker.close("FINISHED", timeout=1.0)
        assert start_run(server.uri, "outage", "r", params={}, tags={}, resume_run_id=run_id) == run_id
        with pytest.raises(TrackingError, match="MLflow at http://127"):
            start_run(server.uri, "outage", "r", params={}, tags={})
        assert main(["sync", str(tmp_path / "spool")]) == 1
    assert caplog.text.count("training goes on, events are kept") == 1

    server.start()
    assert main(["sync", str(tmp_path / "spool")]) == 0
    assert "events sent" in capsys.readouterr().out
    assert points(server.uri, run_id, "loss") == [(step, float(step)) for step in range(1, 1004)]
    assert read_run(server.uri, run_id).status == "FINISHED"
    assert [item.path for item in MlflowClient(server.uri).list_artifacts(run_id, "plots")] == ["plots/curve.png"]
    assert sync_spool(tmp_path / "spool") == 0
