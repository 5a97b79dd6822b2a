"""A run's folder: where its storage refuses to be written, where two processes want it, and what it may be called."""

import logging
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.runtime import lock
from posefleet.platform.runtime.processes import start_time
from posefleet.platform.tracking.client import connect, store_uri
from posefleet.platform.tracking.runs import read_run, start_run
from posefleet.platform.training import loop
from posefleet.platform.training.launch import train
from posefleet.platform.training.run import Run, RunLogger, open_run
from posefleet.platform.training.run import read_run as open_run_of


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


# ---------------------------------------------------------------------------------------------------- one process


def foreign(folder: str, **changes: Any) -> lock.Owner:
    """Puts the lock of a process that lives, the parent of this one, into the folder of a run."""
    parent = {"pid": os.getppid(), "started": start_time(os.getppid())}
    owner = replace(lock.Owner.new(), **{**parent, **changes})
    lock._LocalFile(Path(folder, lock.NAME)).swap(lock.current_owner(folder), owner)
    return owner


def test_a_run_that_another_process_trains_is_left_alone(
    tracked_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = build_experiment(tracked_run)
    folder = Path(experiment.run.storage, "small")
    owner = foreign(str(folder))
    assert train(experiment) == 1
    assert f"error: run small in {folder} is in use by process {owner.pid} on" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["lock.json"] and lock.current_owner(str(folder)) == owner
    assert "posefleet" not in [e.name for e in connect(store_uri("", experiment.run.storage)).search_experiments()]


def test_a_run_that_was_taken_over_writes_no_checkpoint_and_ends_nothing(
    tracked_run: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = build_experiment(tracked_run)
    folder, step = f"{experiment.run.storage}/small", loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args, **options: (foreign(folder), step(*args, **options))[1])
    assert train(experiment) == 1
    assert f"error: no checkpoint is written: {folder} was taken over by process" in capsys.readouterr().err
    assert not Path(folder, "checkpoints").exists()
    run = open_run_of(folder)
    assert run and read_run(run.tracking_uri, run.run_id).status == "RUNNING"
    owner = lock.current_owner(folder)
    assert owner and owner.pid == os.getppid()


def test_a_run_whose_owner_died_goes_on_and_leaves_no_lock(tracked_run: dict[str, Any]) -> None:
    experiment = build_experiment(tracked_run)
    folder = f"{experiment.run.storage}/small"
    foreign(folder, started="1")
    assert train(experiment) == 0
    assert lock.current_owner(folder) is None and not Path(folder, lock.NAME).exists()


def test_a_name_that_is_a_path_or_a_pattern_opens_no_run(tracked_run: dict[str, Any]) -> None:
    before = sorted(Path(tracked_run["run"]["storage"]).parent.rglob("*"))
    for name in ("../small", "a/b", "a*", "a::b", "-x"):
        tracked_run["run"]["name"] = name
        with pytest.raises(ValueError, match=r"^run\.name '"):
            open_run(build_experiment(tracked_run))
    assert sorted(Path(tracked_run["run"]["storage"]).parent.rglob("*")) == before


def test_a_run_of_an_earlier_version_goes_on_whatever_its_name(tracked_run: dict[str, Any]) -> None:
    _, run = open_run(build_experiment(tracked_run))
    run.release()
    storage = Path(tracked_run["run"]["storage"])
    (storage / "small").rename(storage / "lr:0.1 [a]")
    tracked_run["run"]["name"] = "lr:0.1 [a]"
    _, again = open_run(build_experiment(tracked_run))
    again.release()
    assert again.run_id == run.run_id and again.folder.endswith("/lr:0.1 [a]")


def test_folders_may_have_the_characters_of_patterns_and_addresses(
    tracked_run: dict[str, Any], new_database: Path, tmp_path: Path
) -> None:
    storage = tmp_path / "s3:x [0-9]#~*"
    storage.mkdir()
    shutil.copy(new_database, storage)
    for split in ("train", "eval"):
        source = Path(tracked_run["data"][split])
        tracked_run["data"][split] = str(shutil.copytree(source, storage / source.name))
    tracked_run["run"]["storage"] = str(storage)
    experiment = build_experiment(tracked_run)
    assert train(experiment) == 0
    store = CheckpointStore(f"{storage}/small/checkpoints")
    assert store.names() == ["step-00000006"]
    assert find_checkpoint(f"{storage}/small") == store.latest()
    assert train(experiment) == 0 and store.names() == ["step-00000006"]
    run = open_run_of(f"{storage}/small")
    assert run and read_run(run.tracking_uri, run.run_id).status == "FINISHED"
    assert list((storage / "artifacts").rglob("model.safetensors")), "the artifacts lie beside the database"
