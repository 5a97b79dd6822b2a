"""Commands that are killed and started again."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from case import Case, place
from nodes import environment
from processes import kill_family, wait_for
from small_settings import small_settings
from tracked_runs import find_runs

from posefleet.jobs.tune import main

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def alone(people_shards: Path, new_database: Path, tmp_path: Path) -> Callable[[str], Case]:
    """Runs of one process without Ray, by name: twelve steps, checkpoints at 4, 6, 8 and 12."""

    def named(name: str) -> Case:
        folder = tmp_path / name
        folder.mkdir()
        settings = small_settings(people_shards, folder)
        settings["train"] |= {"epochs": 2, "log_every": 2, "checkpoint_every": 4}
        return Case(place(settings, folder, new_database), folder / "log")

    return named


@pytest.mark.parametrize(
    ("plan", "place_told"),
    [
        ({"kill": "checkpoint", "step": 8}, "while it writes a checkpoint"),
        pytest.param({"kill": "opening"}, "when MLflow has just opened its run", marks=pytest.mark.chaos),
    ],
    ids=["checkpoint", "opening"],
)
def test_the_same_command_goes_on(
    plan: dict[str, Any], place_told: str, alone: Callable[[str], Case], tell: Callable[..., None]
) -> None:
    undisturbed, case = alone("undisturbed"), alone("killed")
    beside = undisturbed.start()
    assert case.run(**plan) == -signal.SIGKILL, case.said
    assert undisturbed.wait(beside) == 0, undisturbed.said
    case.assert_killed()
    assert case.run() == 0, case.said
    case.assert_nothing_lost(undisturbed.ending())
    tell(f"kill -9 of a command {place_told}", "the same command", case.repeated(), "nothing", case.recovery())


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_killed_search_goes_on_with_nothing_lost_or_repeated(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], tell: Callable[..., None]
) -> None:
    config, space, out = tmp_path / "small.yaml", tmp_path / "space.yaml", tmp_path / "search"
    small_run["train"] |= {"epochs": 2, "eval_every": 1}
    small_run["run"] = {"storage": str(tmp_path / "runs")}
    config.write_text(yaml.safe_dump(small_run))
    space.write_text("model.loss.cls: {low: 0.5, high: 2.0}")
    command = ["--method", "smpr", "--config", config, "--space", space, "--out", out, "--samples", 2]
    command += ["--concurrent", 1, "--scheduler", "none"]
    started = start(*command)
    wait_for(lambda: (out / "trials" / "trial-001" / "checkpoints").exists() or started.poll() is not None, 200)
    kill_family(started.pid)
    started.wait()
    killed_at = time.time()
    before = {file: file.stat().st_mtime for file in out.glob("trials/trial-000/checkpoints/*/meta.json")}
    assert before

    other = tmp_path / "other.yaml"
    other.write_text("model.loss.cls: {low: 0.5, high: 3.0}")
    with pytest.raises(SystemExit) as refused:
        main(["--resume", str(out), "--space", str(other)])
    assert refused.value.code == 2 and "holds a search of another space" in capsys.readouterr().err

    resumed = start("--resume", out)
    output, errors = resumed.communicate()
    assert resumed.returncode == 0, errors
    assert "2 trials, 0 stopped early, 0 failed." in output
    trials = json.loads((out / "trials.json").read_text())
    assert [trial["trial"] for trial in trials] == [0, 1] and all(trial["scores"] for trial in trials)
    assert {file: file.stat().st_mtime for file in before} == before  # the first trial was not trained again
    runs = find_runs(f"sqlite:///{tmp_path}/runs/mlflow.db", "posefleet")
    assert sorted(run.name for run in runs) == ["search", "trial-000", "trial-001"]
    assert {run.status for run in runs} == {"FINISHED"}
    first = min(file.stat().st_mtime for file in out.glob("trials/trial-001/checkpoints/*/meta.json"))
    tell("kill -9 of a search in its second trial of two", "`--resume`", "at most those since a checkpoint", "nothing",
         first - killed_at)  # fmt: skip


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "jobs" / "tune.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
