"""A search: its draws, its memory, resuming it, and its report."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.tuning.report import log_search
from posefleet.platform.tuning.space import Choice, Range, apply
from posefleet.platform.tuning.study import Search

BASE = build_experiment({"method": "smpr", "data": {"train": "/shards/train2017"}})
SPACE = {"model.score.exponent": Range(low=0.0, high=1.0)}
BEST = 0.3


def score(experiment: Experiment) -> Mapping[str, float]:
    """A parabola with its top at ``BEST``."""
    ap = 1 - (experiment.model.score.exponent - BEST) ** 2
    return {"AP": ap, "AP50": ap}


def search(folder: Path, about: Mapping[str, str] | None = None) -> Search:
    return Search(folder, BASE, SPACE, about=about or {"checkpoint": "a"}, seed=0)


def test_the_own_settings_come_first_and_the_search_finds_better_ones(tmp_path: Path) -> None:
    found = search(tmp_path)
    found.run(score, 25)
    trials = found.trials()
    assert len(trials) == 25 and trials[0].settings == {"model.score.exponent": BASE.model.score.exponent}
    best = found.best()
    assert best is not None and abs(best.settings["model.score.exponent"] - BEST) < 0.05
    assert found.experiment(best).model.score.exponent == best.settings["model.score.exponent"]
    text = log_search(found)
    assert f"| {best.number} | {best.scores['AP']:.4f} |" in text and "25 trials, 0 failed." in text
    written = build_experiment(yaml.safe_load((tmp_path / "best.yaml").read_text()))
    assert written == found.experiment(best)


def test_a_resumed_search_has_the_trials_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole")
    whole.run(score, 12)
    search(tmp_path / "parts").run(score, 5)
    rest = search(tmp_path / "parts")
    rest.run(score, 12)
    assert [trial.number for trial in rest.trials()] == list(range(12))
    assert rest.trials() == whole.trials()
    assert len({trial.settings["model.score.exponent"] for trial in rest.trials()}) == 12
    rest.run(score, 12)
    assert len(rest.trials()) == 12


def test_another_search_in_the_folder_is_refused(tmp_path: Path) -> None:
    search(tmp_path).run(score, 1)
    with pytest.raises(ValueError, match="holds a search of another checkpoint: it was a, now it is b"):
        search(tmp_path, about={"checkpoint": "b"})
    with pytest.raises(ValueError, match="a search of another space"):
        other = {"model.score.exponent": Range(low=0.0, high=0.5)}
        Search(tmp_path, BASE, other, about={"checkpoint": "a"}, seed=0)
    with pytest.raises(ValueError, match=r"a search of another evaluate\.flip: it was False, now it is True"):
        Search(tmp_path, apply(BASE, {"evaluate.flip": True}), SPACE, about={"checkpoint": "a"}, seed=0)
    elsewhere = apply(BASE, {"run.name": "other", "model.score.exponent": 0.1})  # neither matters: the second is varied
    assert len(Search(tmp_path, elsewhere, SPACE, about={"checkpoint": "a"}, seed=0).trials()) == 1


def test_failed_trials_are_kept_with_their_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    def fragile(experiment: Experiment) -> Mapping[str, float]:
        if experiment.model.score.exponent > 0.7:
            raise ValueError("these settings contradict")
        return {"AP": float("nan") if experiment.model.score.exponent < 0.3 else 0.5, "AP50": 0.5}

    found = search(tmp_path)
    found.run(fragile, 30)
    reasons = {trial.reason for trial in found.trials()}
    assert reasons == {"", "these settings contradict", "AP is not a number"}
    assert "failed: these settings contradict" in log_search(found)


def test_without_a_complete_trial_the_reasons_are_reported(tmp_path: Path) -> None:
    def never(experiment: Experiment) -> Mapping[str, float]:
        raise ValueError("no")

    found = search(tmp_path)
    found.run(never, 2)
    with pytest.raises(ValueError, match="no trial ended with scores:\n  trial 0: no"):
        log_search(found)


def test_importance_compares_trials_at_the_same_age(tmp_path: Path) -> None:
    """AP after one epoch is the first setting; trials that went on reached the same, whatever their settings."""
    space = {"model.loss.cls": Range(low=0.0, high=1.0), "model.loss.psm": Range(low=0.0, high=1.0)}
    found = Search(tmp_path, BASE, space, about={}, seed=0, sampler="random")
    while trial := found.ask(12):
        early = {"AP": trial.settings["model.loss.cls"]}
        found.report(trial.number, 1.0, early, run="/runs/a", settings=trial.settings)
        if trial.number % 3:
            found.stop(trial.number, 1.0)
        else:
            found.report(trial.number, 2.0, {"AP": 0.9}, run="/runs/a", settings=trial.settings)
            found.finish(trial.number, {"AP": 0.9})
    assert found.common_age() == 1.0 and len(found.aps_at_common_age()) == 12
    assert list(found.importance()) == ["model.loss.cls", "model.loss.psm"]
    assert found.importance()["model.loss.cls"] > 0.7
    text = log_search(found)
    assert "12 trials, 8 stopped early, 0 failed." in text and "AP after 1 epochs varies: model.loss.cls" in text
    figures = {"history.png", "curves.png", "importance.png", "parallel.png"}
    assert figures <= {path.name for path in tmp_path.iterdir()}


def test_with_several_objectives_the_pareto_front_is_the_best(tmp_path: Path) -> None:
    found = Search(tmp_path, BASE, SPACE, about={}, seed=0, objectives=("AP", "parameters"))
    for scores in ((0.5, 10.0), (0.6, 10.0), (0.4, 5.0), (0.7, 30.0), (0.6, 20.0)):
        trial = found.ask(5)
        assert trial
        found.finish(trial.number, dict(zip(("AP", "parameters"), scores, strict=True)))
    assert [trial.number for trial in found.pareto()] == [3, 1, 2]
    assert "| 2 | 0.4000 | 5.0000 |" in log_search(found)
    assert (tmp_path / "pareto_parameters.png").exists()
    with pytest.raises(ValueError, match="no objective 'speed'; there are AP, parameters"):
        Search(tmp_path / "other", BASE, SPACE, about={}, seed=0, objectives=("AP", "speed"))


def test_a_grid_has_every_combination_once_and_an_interrupted_trial_comes_again(tmp_path: Path) -> None:
    space = {"model.head.tower_depth": Range(low=1, high=3), "model.neck": Choice(values=("fpn", "pafpn"))}
    found = Search(tmp_path, BASE, space, about={}, seed=0, sampler="grid")
    drawn = [found.ask(100) for _ in range(3)]
    assert found.combinations == 6
    found.study.enqueue_trial(found._combination(3))  # killed before this one was handed out
    again = Search(tmp_path, BASE, space, about={}, seed=0, sampler="grid")
    seen = []
    while trial := again.ask(100):
        seen.append(trial)
        again.finish(trial.number, {"AP": 0.5, "AP50": 0.5})
    assert seen[:3] == drawn and [trial.number for trial in seen] == list(range(6))
    assert len({tuple(trial.settings.values()) for trial in seen}) == 6
    with pytest.raises(ValueError, match=r"a grid takes lists, whole numbers and ranges with a step; model\.score"):
        Search(tmp_path / "other", BASE, SPACE, about={}, seed=0, sampler="grid")
