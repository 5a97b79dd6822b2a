"""Training under Ray, on a Ray of this test's own."""

import copy
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tracked_runs import find_runs

from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def test_an_interrupted_run_is_marked_killed_and_goes_on(
    tracked_run: dict[str, Any], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.training.launch import train

    settings = copy.deepcopy(tracked_run)
    settings["train"] |= {"epochs": 200, "log_every": 1, "eval_every": 200}
    settings["run"]["name"] = "interrupted"
    folder = Path(settings["run"]["storage"], "interrupted")

    def interrupt() -> None:
        while not (folder / "report" / "targets").exists():
            time.sleep(0.05)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert train(build_experiment(settings)) == 130
    uri = f"sqlite:///{settings['run']['storage']}/mlflow.db"
    assert [run.status for run in find_runs(uri, "posefleet")] == ["KILLED"]
    assert " on request; the same command goes on from there\n" in capsys.readouterr().err
    step = read_meta(str(CheckpointStore(f"{folder}/checkpoints").latest())).step
    settings["train"]["epochs"] = (step + 2) * 4 / 24
    assert train(build_experiment(settings)) == 0
    runs = find_runs(uri, "posefleet")
    assert [run.status for run in runs] == ["FINISHED"]
    assert read_meta(str(CheckpointStore(f"{folder}/checkpoints").latest())).step == step + 2


def test_a_loss_that_is_not_finite_fails_the_run_without_retries(
    tracked_run: dict[str, Any], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.training.launch import train

    settings = copy.deepcopy(tracked_run)
    settings["optim"] |= {"lr": 1e30, "warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0}
    settings["run"]["name"] = "infinite"
    assert train(build_experiment(settings)) == 1
    assert "not finite at step" in capsys.readouterr().err
    runs = find_runs(f"sqlite:///{settings['run']['storage']}/mlflow.db", "posefleet")
    assert [run.status for run in runs] == ["FAILED"]


def test_missing_shards_are_told_before_anything_starts(
    small_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.training.launch import train

    settings = copy.deepcopy(small_run)
    settings["data"]["train"] = "/nowhere/train2017"
    assert train(build_experiment(settings)) == 1
    assert "/nowhere/train2017" in capsys.readouterr().err
    assert not Path(settings["run"]["storage"]).exists()


def test_fine_tuning_takes_a_runs_folder_and_tells_what_is_none(
    tracked_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.training.launch import train
    from posefleet.platform.training.run import open_run

    storage = tracked_run["run"]["storage"]
    assert train(build_experiment(tracked_run)) == 0
    tuned = copy.deepcopy(tracked_run)
    tuned["run"] |= {"name": "tuned", "init_from": f"{storage}/{tracked_run['run']['name']}"}
    experiment, _ = open_run(build_experiment(tuned))
    assert experiment.run.init_from == CheckpointStore(f"{tuned['run']['init_from']}/checkpoints").best()

    tuned["run"] |= {"name": "wrong", "init_from": storage}
    capsys.readouterr()
    assert train(build_experiment(tuned)) == 1
    assert f"no checkpoint in {storage}" in capsys.readouterr().err
    assert not Path(storage, "wrong").exists()
