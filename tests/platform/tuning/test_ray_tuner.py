"""A search whose trials are trained by Ray Tune, on a Ray of this test's own."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import kill_a_child, wait_for
from tracked_runs import find_runs

from posefleet.jobs.tune import main
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.experiment import Experiment, ScalingConfig
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.tracking.runs import RunSummary, read_metrics
from posefleet.platform.training.run import Run, open_search
from posefleet.platform.tuning.ray_tuner import SearchConfig, max_concurrent_trials, run_search
from posefleet.platform.tuning.report import log_search
from posefleet.platform.tuning.space import Choice, Range, Space, apply
from posefleet.platform.tuning.study import Search

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]


def settings_of_trials(tracked_run: dict[str, Any], **changes: Any) -> Experiment:
    base = build_experiment({**tracked_run, "run": {"storage": tracked_run["run"]["storage"]}})
    return apply(base, changes)


def opened(base: Experiment, folder: Path, space: Space, *, seed: int = 0, **options: Any) -> tuple[Search, Run]:
    search = Search(folder, base, space, about={}, seed=seed, **options)
    return search, open_search(base, str(folder), {"space": str(space)})


def children(parent: Run) -> list[RunSummary]:
    return find_runs(parent.tracking_uri, "posefleet", f"tags.`mlflow.parentRunId` = '{parent.run_id}'")


@pytest.mark.timeout(300)
def test_worse_trials_are_stopped_early_and_poisoned_ones_recorded(
    tracked_run: dict[str, Any], local_ray: None, tmp_path: Path
) -> None:
    base = settings_of_trials(tracked_run, **{"train.epochs": 2, "train.eval_every": 1})
    space = {"optim.lr": Choice(values=(1e-3, 1e30)), "model.loss.cls": Range(low=0.5, high=2.0)}
    search, parent = opened(base, tmp_path / "search", space, sampler="random", seed=1)
    first = search.ask(1)
    assert first and first.settings == {"optim.lr": 1e-3, "model.loss.cls": 1.0}  # what is searched from
    search.report(
        0, 1.0, {"AP": 0.5}, run="", settings=first.settings
    )  # better than a training of six steps will ever be
    search.finish(0, {"AP": 0.5})
    assert run_search(search, SearchConfig(samples=3, reduction=2), parent)
    assert read_metrics(parent.tracking_uri, parent.run_id, ["trials"])["trials"][-1] == (3, 3.0)

    trials = search.trials()[1:]
    assert [trial.number for trial in trials] == [1, 2]
    poisoned = [trial for trial in trials if trial.settings["optim.lr"] == 1e30]
    stopped = [trial for trial in trials if trial not in poisoned]
    assert poisoned and all("loss is not finite" in trial.reason and not trial.scores for trial in poisoned)
    assert stopped and all(trial.stopped == 1.0 and trial.curve == {1.0: trial.scores["AP"]} for trial in stopped)
    best = search.best()
    assert best and best.number == 0

    runs = {run.name: run for run in children(parent)}
    assert sorted(runs) == ["trial-001", "trial-002"]
    for trial in trials:
        run = runs[f"trial-{trial.number:03d}"]
        assert run.status == ("FAILED" if trial in poisoned else "FINISHED")
        assert float(run.params["model.loss.cls"]) == trial.settings["model.loss.cls"]
        assert {"git", "data.train"} <= set(run.tags)
        assert run.tags.get("stopped_after_epochs") == (None if trial in poisoned else "1")
    assert run_search(search, SearchConfig(samples=3), parent)  # nothing left to do
    assert len(children(parent)) == 2

    log_search(search)
    written = build_experiment(yaml.safe_load((tmp_path / "search" / "best.yaml").read_text()))
    assert written.run.parent == "" and written.run.storage == base.run.storage
    assert {"search.md", "trials.json", "history.png"} <= {p.name for p in search.folder.iterdir()}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_trials_of_two_workers_run_in_turn_on_two_cores_and_a_dead_one_is_started_again(
    tracked_run: dict[str, Any], local_ray: None, tmp_path: Path
) -> None:
    import ray

    scaling = {"scaling.num_workers": 2, "scaling.cpus_per_worker": 1, "data.batch_size": 2}
    base = settings_of_trials(tracked_run, **scaling)
    assert max_concurrent_trials(base.scaling, ray.cluster_resources()) == 1
    base = apply(base, {"train.epochs": 3, "train.eval_every": 1})
    search, parent = opened(base, tmp_path / "search", {"model.loss.cls": Range(low=0.5, high=2.0)})
    killed: list[bool] = []

    def kill_the_first_trial() -> None:
        wait_for(lambda: list(search.folder.glob("trials/trial-000/checkpoints/*")))
        killed.append(kill_a_child("ImplicitFunc"))

    killer = threading.Thread(target=kill_the_first_trial)
    killer.start()
    assert run_search(search, SearchConfig(samples=2), parent)
    killer.join()
    assert killed == [True]
    assert [trial.reason for trial in search.trials()] == ["", ""] and len(search.complete()) == 2
    assert sorted(run.name for run in children(parent)) == ["trial-000", "trial-001"]
    wait_for(lambda: ray.available_resources().get("CPU") == 2.0)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_members_of_a_population_go_on_as_copies_of_better_ones(
    tracked_run: dict[str, Any], local_ray: None, tmp_path: Path
) -> None:
    base = settings_of_trials(tracked_run, **{"train.epochs": 3, "train.eval_every": 1})
    search, parent = opened(base, tmp_path / "search", {"model.loss.cls": Range(low=0.5, high=2.0)})
    assert run_search(search, SearchConfig(samples=2, scheduler="pbt"), parent)
    trials = search.complete()
    assert [trial.number for trial in trials] == [0, 1]
    moved = []
    for trial, drawn in zip(trials, search.study.trials, strict=True):
        checkpoint = read_meta(find_checkpoint(trial.run))
        assert checkpoint.position == 72 and Path(trial.run).name == f"trial-{trial.number:03d}"
        assert checkpoint.experiment.model.loss.cls == trial.settings["model.loss.cls"]
        moved.append(drawn.params["model.loss.cls"] != trial.settings["model.loss.cls"])
    assert any(moved)
    assert sorted(run.name for run in children(parent)) == ["trial-000", "trial-001"]


def test_concurrent_trials_are_those_that_fit_into_the_cluster() -> None:
    two = ScalingConfig(num_workers=2, cpus_per_worker=3)
    assert max_concurrent_trials(two, {"CPU": 18.0}) == 3
    assert max_concurrent_trials(dataclasses.replace(two, use_gpu=True), {"CPU": 64.0, "GPU": 5.0}) == 2
    assert max_concurrent_trials(ScalingConfig(num_workers=0), {"CPU": 2.0}) == 2
    with pytest.raises(ValueError, match="one trial needs 6 CPUs for its 2 workers and the cluster has 2 CPUs"):
        max_concurrent_trials(two, {"CPU": 2.0})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "smrp", "--space", "x.yaml"], "smrp"),
        (["--method", "smpr", "--space", "x.yaml", "--data.train", "a", "--data.eval", "b"], "no config file x.yaml"),
        (["--method", "smpr"], "--space is missing"),
        (["--resume", "nowhere"], "nowhere holds no search"),
        (["--resume", "nowhere", "--optim.lr", "1"], "a search goes on with the settings it has"),
    ],
)
def test_bad_arguments_end_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and message in capsys.readouterr().err
