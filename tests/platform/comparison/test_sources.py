import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from posefleet.platform.comparison import sources
from posefleet.platform.tracking import runs as tracking


def test_runs_are_named_by_the_shortest_end_of_their_path_that_differs() -> None:
    found = sources.named_runs(["/a/runs/smpr", "/b/runs/smpr/", "/b/runs/pfs"])
    assert found == {"a/runs/smpr": "/a/runs/smpr", "b/runs/smpr": "/b/runs/smpr", "pfs": "/b/runs/pfs"}
    with pytest.raises(ValueError, match="/a/runs/smpr would be compared with itself"):
        sources.named_runs(["/a/runs/smpr", "/a/runs/smpr/"])


def test_an_mlflow_run_is_found_by_its_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(ValueError, match=f"{'0' * 32} is not a folder, and there is no MLflow store sqlite:"):
        sources.named_runs(["0" * 32])
    assert not (tmp_path / "mlflow.db").exists()
    run_id = tracking.start_run(store, "posefleet", "smpr-a", params={}, tags={"folder": "/runs/smpr-a"})
    assert sources.named_runs([run_id, "/runs/b"]) == {"smpr-a": "/runs/smpr-a", "b": "/runs/b"}
    with pytest.raises(ValueError, match=f"{'0' * 32} is neither a folder nor a run in sqlite"):
        sources.named_runs(["0" * 32])


def search(folder: Path, *trials: dict[str, Any]) -> str:
    listed = [{"trial": n, "settings": {}, "scores": {}, "reason": "", **trial} for n, trial in enumerate(trials)]
    (folder / "trials.json").write_text(json.dumps(listed))
    return str(folder)


def test_the_best_trials_of_a_search_are_taken_and_the_first(tmp_path: Path) -> None:
    aps = [0.3, 0.1, 0.5, 0.4]
    trials = [{"scores": {"AP": ap}, "run": f"/runs/t{n}"} for n, ap in enumerate(aps)]
    early = {"scores": {"AP": 0.6}, "stopped": 2.0, "run": "/runs/t5"}
    folder = search(tmp_path, *trials, {"reason": "loss is not finite", "run": "/runs/t4"}, early)
    assert list(sources.trials(folder, 1).items()) == [("trial 2", "/runs/t2"), ("trial 0", "/runs/t0")]
    assert list(sources.trials(folder, 3)) == ["trial 2", "trial 3", "trial 0"]
    assert list(sources.trials(folder, 9)) == ["trial 2", "trial 3", "trial 0", "trial 1"]


def test_the_first_trial_is_taken_even_if_it_was_stopped(tmp_path: Path) -> None:
    first = {"scores": {"AP": 0.6}, "stopped": 2.5, "run": "/runs/t0"}
    folder = search(tmp_path, first, {"scores": {"AP": 0.5}, "stopped": None, "run": "/runs/t1"})
    assert sources.trials(folder, 5) == {"trial 1": "/runs/t1", "trial 0, stopped after 2.5 epochs": "/runs/t0"}


@pytest.mark.parametrize(
    ("trials", "message"),
    [
        ([{"scores": {"AP": 0.5}}], "is a search of decoding: .* have no runs"),
        ([{"reason": "bad"}, {"reason": "worse"}], "none of the 2 trials reached its end with scores"),
    ],
)
def test_a_search_without_runs_is_refused(tmp_path: Path, trials: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sources.trials(search(tmp_path, *trials), 5)


def test_a_folder_without_a_search_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the folder of a search: there is no .*trials\.json"):
        sources.trials(str(tmp_path), 5)


def test_registered_versions_with_an_alias_are_listed_once(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    with pytest.raises(ValueError, match="no version of any model is champion"):
        sources.registered([])
    client = MlflowClient(store, store)
    for name, aliases in (("smpr", {"champion": 3, "previous": 1, "challenger": 3, "mine": 2}), ("pfs", {})):
        client.create_registered_model(name)
        for _ in range(3):
            client.create_model_version(name, "/nowhere")
        for alias, number in aliases.items():
            client.set_registered_model_alias(name, alias, str(number))
    found = {"smpr/3 champion": "models:/smpr/3", "smpr/1 previous": "models:/smpr/1"}
    assert sources.registered([]) == sources.registered(["smpr"]) == found
    with pytest.raises(ValueError, match="no version of pfs is champion, challenger or previous"):
        sources.registered(["pfs"])
    with pytest.raises(ValueError, match="no registered model hrnet; the registry has pfs, smpr"):
        sources.registered(["smpr", "hrnet"])
