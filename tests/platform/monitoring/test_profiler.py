"""Profiles of training steps."""

import copy
import gzip
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.cli import parse_experiment
from posefleet.platform.config.experiment import Profile
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit


def test_what_is_asked_for() -> None:
    assert Profile.parse("steps=5") == Profile(5, wait=5, everywhere=False)
    assert Profile.parse("wait=0, ranks=all, steps=2") == Profile(2, wait=0, everywhere=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("5", "'5' is not steps=, wait= or ranks=; write steps=5, or"),
        ("step=5", "'step=5' is not steps="),
        ("wait=5", "steps is missing"),
        ("steps=0", "steps must be a number from 1 on, not '0'"),
        ("steps=five", "not 'five'"),
        ("steps=5,wait=-1", "wait must be a number from 0 on, not '-1'"),
        ("steps=5,ranks=3", "ranks must be 0 or all, not '3'"),
        ("steps=5,steps=6", "steps is given twice"),
    ],
)
def test_what_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")):
        Profile.parse(text)


def test_the_option_of_a_training_job(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data.train", "x", "--profile", "steps=3,wait=1"]
    assert parse_experiment("smpr", given).run.profile == "steps=3,wait=1"
    with pytest.raises(SystemExit) as ended:
        parse_experiment("smpr", ["--data.train", "x", "--profile", "steps"])
    assert ended.value.code == 2 and "write steps=5" in capsys.readouterr().err


def trained(settings: dict[str, Any], folder: Path, **run: Any) -> CheckpointStore:
    settings = copy.deepcopy(settings)
    settings["data"]["eval"] = ""
    settings["run"] |= run
    store = CheckpointStore(str(folder / "checkpoints"))
    fit(build_experiment(settings), LocalWorker(device="cpu", folder=str(folder)), store)
    return store


def test_a_profile_has_the_wanted_steps_and_changes_no_weight(small_run: dict[str, Any], tmp_path: Path) -> None:
    plain = trained(small_run, tmp_path / "plain")
    looked_at = trained(small_run, tmp_path / "profiled", profile="steps=2,wait=1")
    weights = [Path(str(store.latest()), "model.safetensors").read_bytes() for store in (plain, looked_at)]
    assert weights[0] == weights[1]
    assert not (tmp_path / "plain" / "report").exists()
    folder = tmp_path / "profiled" / "report" / "profile"
    assert {path.name for path in folder.iterdir()} == {"rank0-step000004.json.gz", "rank0-step000004.txt"}
    with gzip.open(folder / "rank0-step000004.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events if event.get("ph") == "X"]
    assert names.count("waiting for data") == names.count("forward and backward") == 2
    assert "aten::convolution" in (folder / "rank0-step000004.txt").read_text()


def test_a_run_that_ends_too_early_says_so(
    small_run: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    trained(small_run, tmp_path, profile="steps=1,wait=50")
    assert "no profile: this start ended after 6 steps, 51 were to be waited for" in caplog.text


def test_watching_costs_next_to_nothing() -> None:
    from posefleet.platform.runtime.activity import Activity, Phase

    watch = Activity()
    start = time.perf_counter()
    for step in range(1000):
        watch.enter(Phase.DATA)
        watch.enter(Phase.COMPUTE)
        watch.step_ended(step, 1)
    assert (time.perf_counter() - start) / 1000 < 1e-3
