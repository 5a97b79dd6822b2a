import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_settings import small_settings

from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.comparison import budget
from posefleet.platform.comparison import compare as comparison
from posefleet.platform.comparison import figures as comparison_figures
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference import latency
from posefleet.platform.monitoring.interruptions import Interruption, Losses
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit
from posefleet.platform.visualization import plots


@pytest.fixture(scope="module")
def run(people_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("comparison") / "run"
    experiment = build_experiment(small_settings(people_shards, folder.parent))
    fit(experiment, LocalWorker(device="cpu"), CheckpointStore(str(folder / "checkpoints")))
    return folder


@pytest.fixture(scope="module")
def entry(run: Path) -> comparison.Entry:
    return comparison.score_run("small", str(run), LocalWorker(device="cpu"), repeats=1)


def test_a_run_is_scored_and_timed(entry: comparison.Entry) -> None:
    cost = entry.cost
    assert entry.evaluation.protocol.images == 7
    # timm's test_resnet has 0.47 million, of them 0.10 in its classifier; neck and head have 0.04.
    assert 0.37e6 < cost.parameters < 0.47e6
    assert cost.train_images_per_second > 0
    assert list(cost.predict_ms) == [1, 5, 10, 30] and min(cost.predict_ms.values()) > 0
    # At 160 px it takes 0.103e9 multiply-adds; an image of 64 px has 0.16 of the pixels.
    assert 0.9 * 2 * 0.103 * 0.16 < cost.gflops < 1.8 * 2 * 0.103 * 0.16


def test_runs_are_timed_in_turns_and_a_busy_machine_is_told(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency.Others, "share", 0.5)
    monkeypatch.setattr(latency.Others, "__exit__", lambda *_: None)
    entries = comparison.score_runs({"a": str(run), "b": str(run)}, LocalWorker(device="cpu"), repeats=6)
    assert "timing a, b in turns" in capsys.readouterr().err
    one, other = (entry.cost for entry in entries)
    assert one.parameters == other.parameters and one.gflops == other.gflops
    for cost in (one, other):
        for people, (low, high) in cost.predict_range.items():
            assert 0 < low <= cost.predict_ms[people] <= high
    assert "used up to 50% of this machine's cores" in comparison.busy_warning(entries)
    assert re.search(r"\| a \|.*\d+ \(\d+\.\.\d+\) \|", comparison.as_markdown(entries, {}))


def test_tables_name_every_run_and_every_keypoint(entry: comparison.Entry) -> None:
    text = comparison.as_markdown([entry], {})
    assert "| small |" in text and "| left_wrist |" in text and "ms, 30 people" in text
    assert comparison.as_dict([entry])["small"]["parameters"] == entry.cost.parameters


def test_tables_say_what_interruptions_cost(entry: comparison.Entry, run: Path) -> None:
    one = Interruption(
        number=1,
        reached=8,
        resumed_from=5,
        devices_before=4,
        devices=3,
        seconds_again=6.0,
        seconds_idle=0.0,
        seconds_restart=22.0,
    )
    assert entry.losses == Losses() and "interruptions" not in comparison.as_markdown([entry], {})
    (run / "interruptions.json").write_text(json.dumps([one.as_dict(), {**one.as_dict(), "number": 2}]))
    losses = comparison._losses(entry.checkpoint)
    disturbed = dataclasses.replace(entry, name="disturbed", losses=losses)
    elsewhere = dataclasses.replace(entry, name="elsewhere", losses=comparison._losses("/models/smpr/1/checkpoint"))
    text = comparison.as_markdown([entry, disturbed, elsewhere], {})
    assert "| run | interruptions | steps done again | device seconds lost |" in re.sub(" +", " ", text)
    for row in ("| small | 0 | 0 | 0 |", "| disturbed | 2 | 6 | 180 |", "| elsewhere | - | - | - |"):
        assert row in re.sub(" +", " ", text), text
    assert comparison.as_dict([disturbed])["disturbed"]["interruptions"]["steps_again"] == 6


def test_a_finished_run_is_recognised_and_scored_again_only_for_other_predictions(
    entry: comparison.Entry, run: Path, small_run: dict[str, Any]
) -> None:
    small_run["run"] = {"name": "run", "storage": str(run.parent)}
    experiment, worker = build_experiment(small_run), LocalWorker(device="cpu")
    assert budget.finished(experiment)
    metrics = comparison.scores(str(run), experiment, worker)
    assert metrics == read_meta(entry.checkpoint).metrics
    fewer = dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, max_detections=1))
    assert comparison.scores(str(run), fewer, worker)["AR"] <= metrics["AR"]
    small_run["optim"] = {**small_run.get("optim", {}), "lr": 0.5}
    with pytest.raises(ValueError, match=r"run was trained with other settings: optim\.lr; choose another folder"):
        budget.finished(build_experiment(small_run))
    small_run["run"]["name"] = "new"
    assert not budget.finished(build_experiment(small_run))


def test_a_run_is_scored_with_other_settings_of_prediction(entry: comparison.Entry, run: Path) -> None:
    own = entry.experiment
    oracle = dataclasses.replace(own, evaluate=dataclasses.replace(own.evaluate, oracle_scores=True))
    found = comparison.score_run("oracle", str(run), LocalWorker(device="cpu"), experiment=oracle, repeats=1)
    assert found.evaluation.protocol.score_rule.startswith("ORACLE") and found.experiment.evaluate.oracle_scores
    assert found.poses.keys() == entry.poses.keys() and found.data == entry.data
    assert found.cost.gflops == entry.cost.gflops


def test_a_run_without_evaluation_data_is_refused(run: Path, small_run: dict[str, Any]) -> None:
    small_run["data"]["eval"] = ""
    with pytest.raises(ValueError, match=r"was trained without data\.eval; give shards to score it on: --eval SHARDS"):
        comparison.score_run("a", str(run), LocalWorker(device="cpu"), experiment=build_experiment(small_run))


def test_different_training_data_gives_a_warning(small_run: dict[str, Any]) -> None:
    one = build_experiment(small_run)
    small_run["data"]["train"] = small_run["data"]["eval"]
    other = build_experiment(small_run)
    assert comparison.same_data({"a": one, "b": one}) == ""
    assert "different data: a " in comparison.same_data({"a": one, "b": other})


def test_the_figure_shows_every_method(entry: comparison.Entry) -> None:
    figure = comparison_figures.comparison_figure(
        {"a": 0.5, "b": 0.25}, {"a": {1: 10.0, 5: 12.0}, "b": {1: 8.0, 5: 30.0}}
    )
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    assert [line.get_label() for line in right.get_lines()] == ["a", "b"]
    assert len(plots.png_bytes(figure)) > 1000
