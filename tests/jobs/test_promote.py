"""The job: what it says, what it registers and how it ends."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from small_settings import untrained_checkpoint

from posefleet.jobs import evaluate
from posefleet.jobs.promote import main
from posefleet.platform.checkpoint import read_meta
from posefleet.platform.registry import find_model

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--gate.latency_people", "1", "--gate.served_images", "1")


@pytest.fixture
def run(small_run: dict[str, Any], tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a run that was tracked in ``store``."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    untrained_checkpoint(small_run, folder)
    (folder / "run.json").write_text(json.dumps({"run_id": "", "tracking_uri": store, "method": "smpr"}))
    return folder


def versions(store: str) -> list[Any]:
    return sorted(MlflowClient(store, store).search_model_versions(), key=lambda version: int(version.version))


def test_a_run_becomes_champion_and_the_next_one_can_be_taken_back(
    run: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(run), "--to", "champion", *QUICK]) == 0
    told = capsys.readouterr().out
    assert "no champion to compare with" in told and "models:/smpr@champion is version 1\n" in told
    (first,) = versions(store)
    assert first.tags["gate"] == "passed" and first.tags["split"] == "val2017" and "forced" not in first.tags
    assert first.tags["checkpoint"] == str(run) and first.tags["data.train"] == "d" * 64
    files = Path(find_model("models:/smpr@champion", store)).parent
    assert (files / "gate.txt").read_text().startswith("pass  weights") and (files / "experiment.yaml").exists()
    assert (files / "evaluation" / "step-0000006" / "precision_recall.png").exists()

    assert main(["--run", str(run), "--to", "champion", *QUICK]) == 0
    told = capsys.readouterr().out
    assert "against models:/smpr/1, the champion" in told and "version 2, version 1 is the previous one" in told

    told = subprocess.run(
        [sys.executable, "jobs/promote.py", "--rollback", "--model", "smpr", "--tracking", store],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout == (
        "models:/smpr@champion is version 1 again, in place of version 2, which is the previous one now\n"
    )


def test_the_gate_refuses_unless_it_is_forced_and_that_leaves_a_trace(
    run: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    promote = ["--run", str(run), "--to", "champion", "--model", "all", *QUICK, "--gate.keypoint_floor", "0.9"]
    assert main(promote) == 1
    told = capsys.readouterr()
    assert "FAIL  keypoints" in told.out and "not promoted: keypoints failed; nothing was registered" in told.err
    assert versions(store) == []
    assert main([*promote, "--force"]) == 0
    (version,) = versions(store)
    assert version.name == "all" and version.tags["gate"] == "failed"
    assert version.tags["forced"].startswith("keypoints failed; forced by ") and " UTC" in version.tags["forced"]
    assert "**Forced**: keypoints failed" in version.description


def test_a_challenger_becomes_champion_with_other_settings(run: Path, store: str) -> None:
    assert main(["--run", str(run), "--to", "challenger", *QUICK]) == 0
    arguments = ["--run", "models:/smpr@challenger", "--to", "champion", "--tracking", store, *QUICK]
    assert main([*arguments, "--model.decode.max_poses", "1"]) == 0
    champion = find_model("models:/smpr@champion", store)
    assert read_meta(champion).experiment.model.decode.max_poses == 1
    aliases = MlflowClient(store, store).get_registered_model("smpr").aliases
    assert {alias: str(number) for alias, number in aliases.items()} == {"challenger": "1", "champion": "2"}


def test_the_best_trained_trial_of_a_search_is_taken(
    run: Path, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = tmp_path / "search"
    search.mkdir()
    trials = [
        {"trial": 0, "settings": {}, "scores": {"AP": 0.9}, "reason": ""},
        {"trial": 1, "settings": {}, "scores": {"AP": 0.5}, "reason": "", "run": str(run)},
        {"trial": 2, "settings": {}, "scores": {"AP": 0.4}, "reason": "", "run": "/nowhere"},
        {"trial": 3, "settings": {}, "scores": {}, "reason": "failed", "run": "/nowhere"},
        {"trial": 4, "settings": {}, "scores": {"AP": 0.9}, "reason": "", "run": "/nowhere", "stopped": 2.0},
    ]
    (search / "trials.json").write_text(json.dumps(trials))
    assert main(["--search", str(search), "--to", "challenger", *QUICK]) == 0
    assert versions(store)[0].tags["checkpoint"] == str(run)
    (search / "trials.json").write_text(json.dumps(trials[:1]))
    assert main(["--search", str(search), "--to", "challenger"]) == 2
    assert "none of the 1 trials" in capsys.readouterr().err


def test_evaluation_takes_the_champion(run: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--run", str(run), "--to", "champion", *QUICK]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    results = []
    for checkpoint in (str(run), "models:/smpr@champion"):
        out = tmp_path / "out.json"
        monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", checkpoint, "--out", str(out)])
        assert evaluate.main() == 0
        results.append(json.loads(out.read_text()))
    assert results[0] == results[1] and results[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--run", "/nowhere", "--to", "champion"), "no checkpoint in /nowhere"),
        (("--run", "RUN", "--to", "champion", "--data.eval", "/nowhere"), "/nowhere: no manifest.json"),
        (("--run", "RUN", "--to", "champion", "--data.eval", ""), "nothing to judge on"),
        (("--run", "RUN", "--to", "champion", "--tracking", "http://127.0.0.1:9"), "MLflow at http://127.0.0.1:9: "),
        (("--run", "RUN", "--to", "champion", "--model", "a/b"), "model name 'a/b'"),
        (("--run", "RUN", "--to", "champion", "--evaluate.oracle_scores", "true"), "they cannot be served"),
        (("--run", "models:/smpr@champion", "--to", "champion"), "there is no registry"),
        (("--search", "/nowhere", "--to", "champion"), "/nowhere is not the folder of a search"),
        (("--rollback", "--model", "smpr", "--tracking", "STORE"), "has no model 'smpr'"),
    ],
)
def test_bad_input_is_told_before_anything_is_registered(
    run: Path, store: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    places = {"RUN": str(run), "STORE": store}
    assert main([places.get(argument, argument) for argument in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and told.startswith("error: ")
    assert versions(store) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rollback",), "--rollback needs --model NAME"),
        (("--rollback", "--model", "a", "--run.name", "b"), "--rollback does not know --run.name b"),
        (("--run", "a"), "--to is missing"),
        (("--run", "a", "--to", "best"), "invalid choice: 'best'"),
        (("--run", "a", "--rollback"), "not allowed with"),
        ((), "one of the arguments --run --search --rollback is required"),
        (("--run", "a", "--to", "champion", "--gate.served_images", "0"), "must be at least 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
