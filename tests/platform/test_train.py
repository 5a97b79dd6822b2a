"""Training under Ray, on a Ray of this test's own."""

import copy
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import kill_a_child

from posefleet.platform.checkpoint import CheckpointStore, load_model, read_meta
from posefleet.platform.config import build_experiment
from posefleet.platform.tracking import find_runs

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def two_workers(small_run: dict[str, Any], name: str) -> dict[str, Any]:
    settings = copy.deepcopy(small_run)
    settings["data"]["batch_size"] = 2
    settings["train"] |= {"epochs": 3, "eval_every": 3, "checkpoint_every": 4}
    settings["scaling"] = {"num_workers": 2, "cpus_per_worker": 1, "max_failures": 2}
    settings["run"] |= {"name": name}
    return settings


def weights(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    store = CheckpointStore(f"{settings['run']['storage']}/{settings['run']['name']}/checkpoints")
    assert read_meta(str(store.latest())).position == 72
    return load_model(str(store.latest()))[0].state_dict()


def kill_a_worker_after_its_first_checkpoint(folder: Path) -> None:
    for _ in range(1200):
        if list(folder.glob("checkpoints/step-*/meta.json")):
            break
        time.sleep(0.05)
    if kill_a_child("RayTrainWorker"):
        (folder / "killed").touch()


@pytest.mark.timeout(600)
def test_a_killed_worker_costs_nothing(small_run: dict[str, Any], local_ray: None) -> None:
    from posefleet.platform.train import train

    undisturbed, disturbed = two_workers(small_run, "undisturbed"), two_workers(small_run, "disturbed")
    assert train(build_experiment(undisturbed)) == 0
    folder = Path(disturbed["run"]["storage"], "disturbed")
    killer = threading.Thread(target=kill_a_worker_after_its_first_checkpoint, args=(folder,))
    killer.start()
    assert train(build_experiment(disturbed)) == 0
    killer.join()
    assert (folder / "killed").exists(), "the worker was not found, so nothing was tested"
    first, second = weights(undisturbed), weights(disturbed)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    runs = find_runs(f"sqlite:///{disturbed['run']['storage']}/mlflow.db", "posefleet")
    assert sorted(run.name for run in runs) == ["disturbed", "undisturbed"]
    assert {run.status for run in runs} == {"FINISHED"}
    assert all(0 <= run.metrics["AP"] <= 1 for run in runs)
    assert json.loads((folder / "run.json").read_text())["run_id"] in {run.run_id for run in runs}
    assert (folder / "report" / "curves" / "loss.png").exists()


def test_an_interrupted_run_is_marked_killed_and_goes_on(small_run: dict[str, Any], local_ray: None) -> None:
    from posefleet.platform.train import train

    settings = copy.deepcopy(small_run)
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
    step = read_meta(str(CheckpointStore(f"{folder}/checkpoints").latest())).step
    settings["train"]["epochs"] = (step + 2) * 4 / 24
    assert train(build_experiment(settings)) == 0
    runs = find_runs(uri, "posefleet")
    assert [run.status for run in runs] == ["FINISHED"]
    assert read_meta(str(CheckpointStore(f"{folder}/checkpoints").latest())).step == step + 2


def test_a_loss_that_is_not_finite_fails_the_run_without_retries(
    small_run: dict[str, Any], local_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.train import train

    settings = copy.deepcopy(small_run)
    settings["optim"] |= {"lr": 1e30, "warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0}
    settings["run"]["name"] = "infinite"
    assert train(build_experiment(settings)) == 1
    assert "not finite at step" in capsys.readouterr().err
    runs = find_runs(f"sqlite:///{settings['run']['storage']}/mlflow.db", "posefleet")
    assert [run.status for run in runs] == ["FAILED"]


def test_missing_shards_are_told_before_anything_starts(
    small_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.train import train

    settings = copy.deepcopy(small_run)
    settings["data"]["train"] = "/nowhere/train2017"
    assert train(build_experiment(settings)) == 1
    assert "/nowhere/train2017" in capsys.readouterr().err
    assert not Path(settings["run"]["storage"]).exists()


def test_fine_tuning_takes_a_runs_folder_and_tells_what_is_none(
    small_run: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from posefleet.platform.run import open_run
    from posefleet.platform.train import train

    storage = small_run["run"]["storage"]
    assert train(build_experiment(small_run)) == 0
    tuned = copy.deepcopy(small_run)
    tuned["run"] |= {"name": "tuned", "init_from": f"{storage}/{small_run['run']['name']}"}
    experiment, _ = open_run(build_experiment(tuned))
    assert experiment.run.init_from == CheckpointStore(f"{tuned['run']['init_from']}/checkpoints").best()

    tuned["run"] |= {"name": "wrong", "init_from": storage}
    capsys.readouterr()
    assert train(build_experiment(tuned)) == 1
    assert f"no checkpoint in {storage}" in capsys.readouterr().err
    assert not Path(storage, "wrong").exists()
