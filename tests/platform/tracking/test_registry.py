"""Versions, aliases and files of models in a real MLflow registry."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from small_settings import small_release, untrained_checkpoint

from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.platform.checkpoints.format import CheckpointError, verify
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.tracking.client import TrackingError
from posefleet.platform.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    PREVIOUS,
    Release,
    find_alias,
    find_model,
    promote,
    rollback,
)
from posefleet.platform.tracking.runs import start_run


@pytest.fixture
def release(small_run: dict[str, Any], tmp_path: Path) -> Release:
    return small_release(small_run, untrained_checkpoint(small_run, tmp_path / "run"), tmp_path / "release")


def client(store: str) -> MlflowClient:
    return MlflowClient(store, store)


def aliases(store: str, name: str = "pose") -> dict[str, str]:
    return {alias: str(number) for alias, number in client(store).get_registered_model(name).aliases.items()}


# ---------------------------------------------------------------------------------------------------- versions


def test_a_registered_checkpoint_gives_the_same_poses(store: str, release: Release, tmp_path: Path) -> None:
    version = promote(store, "pose", release, CHAMPION)
    path = find_model("models:/pose@champion", store)
    assert path == find_model("models:/pose/1", store) == find_checkpoint("models:/pose@champion", tracking=store)
    assert version.address == "models:/pose/1" and Path(path).parent.as_uri() == version.source
    verify(path)
    original, experiment = load_model(str(tmp_path / "run" / "checkpoints" / "step-00000006"))
    images = ShardDataset(experiment.data.eval, COCO17, lambda sample, _: sample, seed=None).samples(range(3))
    (one, other) = (
        Predictor(model, experiment, device="cpu").predict_images([sample.image for sample in images])
        for model in (original, load_model(path)[0])
    )
    assert sum(map(len, one)) > 0
    for expected, found in zip(one, other, strict=True):
        assert expected.keypoints.equal(found.keypoints) and expected.scores.equal(found.scores)


def test_pages_of_mlflow_find_signature_scores_settings_and_report(store: str, release: Release) -> None:
    training = start_run(store, "posefleet", "training", params={}, tags={})
    version = promote(store, "pose", dataclasses.replace(release, training_run=training), CHALLENGER)
    files = Path(version.source.removeprefix("file://"))
    found = sorted(path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file())
    assert found == ["MLmodel", "checkpoint/meta.json", "checkpoint/model.safetensors", "evaluation/curve.png"]
    described = yaml.safe_load((files / "MLmodel").read_text())
    assert list(described["flavors"]) == ["posefleet"]
    assert '"name": "image"' in described["signature"]["inputs"] and "keypoints" in described["signature"]["outputs"]
    assert described["metadata"]["keypoints"][0] == "nose"
    assert described["metadata"]["keypoint_schema"] == COCO17.as_dict()

    (model,) = client(store).search_logged_models(["1"])
    registered = client(store).get_model_version("pose", "1")
    assert registered.run_id == training and registered.description.startswith("**AP 0.5**")
    assert f"/models/{model.model_id}/artifacts)" in registered.description
    assert "artifact_file_path=evaluation/curve.png" in registered.description
    assert registered.tags == {"method": "smpr", "gate": "passed"}
    assert model.params["optim.lr"] == "0.001" and model.source_run_id == training
    assert '"name": "pose"' in model.tags["mlflow.modelVersions"]
    scores = {metric.key: (metric.value, metric.step, metric.dataset_name) for metric in model.metrics}
    assert scores["AP"] == (0.5, 6, "val2017") and scores["AP_keypoint/nose"][0] == 0.25
    assert client(store).get_run(training).data.metrics == {}, "its curves are its own"


def test_the_champion_before_becomes_the_previous_one(store: str, release: Release) -> None:
    promote(store, "pose", release, CHAMPION)
    assert aliases(store) == {CHAMPION: "1"}
    promote(store, "pose", release, CHALLENGER)
    assert aliases(store) == {CHAMPION: "1", CHALLENGER: "2"}
    promote(store, "pose", release, CHAMPION)
    assert aliases(store) == {CHAMPION: "3", CHALLENGER: "2", PREVIOUS: "1"}


def test_a_rollback_changes_places_and_so_does_the_next(store: str, release: Release) -> None:
    for _ in range(2):
        promote(store, "pose", release, CHAMPION)
    back, replaced = rollback(store, "pose")
    assert replaced is not None and (back.number, replaced.number) == ("1", "2")
    assert aliases(store) == {CHAMPION: "1", PREVIOUS: "2"}
    assert client(store).get_model_version("pose", "2").tags["rolled_back"].startswith("to version 1 by ")
    rollback(store, "pose")
    assert aliases(store) == {CHAMPION: "2", PREVIOUS: "1"}


def test_without_a_previous_champion_there_is_nothing_to_go_back_to(store: str, release: Release) -> None:
    promote(store, "pose", release, CHAMPION)
    with pytest.raises(ValueError, match=r"model 'pose' in .* has no alias 'previous', but champion \(version 1\)"):
        rollback(store, "pose")
    assert aliases(store) == {CHAMPION: "1"}


def test_going_back_does_not_wait_for_torch() -> None:
    code = "import sys, posefleet.jobs.promote; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("models:/pose@best", r"has no alias 'best', but champion \(version 1\)"),
        ("models:/pose/7", r"has no version 7, but 1$"),
        ("models:/other@champion", r"has no model 'other'; it has pose$"),
        ("models:/pose", r"write models:/NAME@ALIAS or models:/NAME/VERSION"),
        ("models:/pose/Production", r"write models:/NAME@ALIAS or models:/NAME/VERSION"),
    ],
)
def test_what_is_not_registered_is_told_with_what_is(store: str, release: Release, address: str, message: str) -> None:
    promote(store, "pose", release, CHAMPION)
    with pytest.raises(ValueError, match=message):
        find_model(address, store)
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(address, tracking=store)


def test_looking_for_a_model_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no registry sqlite:.*say which one with MLFLOW_TRACKING_URI"):
        find_model("models:/pose@champion", f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_registry_that_does_not_answer_is_named(release: Release) -> None:
    nobody = "http://127.0.0.1:9"
    for ask in (
        lambda: promote(nobody, "pose", release, CHAMPION),
        lambda: rollback(nobody, "pose"),
        lambda: find_alias(nobody, "pose", CHAMPION),
    ):
        with pytest.raises(TrackingError, match=f"MLflow at {nobody}: "):
            ask()


@pytest.mark.parametrize(
    "step", ["log_model_artifacts", "log_batch", "create_model_version", "set_terminated", "set_registered_model_alias"]
)
def test_a_failure_while_registering_leaves_nothing(
    store: str, release: Release, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MlflowException("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, fail)
        with pytest.raises(TrackingError, match="the disk is full"):
            promote(store, "pose", release, CHAMPION)
    assert not client(store).search_registered_models() and not client(store).search_model_versions()
    assert not client(store).search_logged_models(["1"]) and not client(store).search_runs(["1"])
    assert promote(store, "pose", release, CHAMPION).number == "1"


def test_aliases_move_together_or_not_at_all(store: str, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        promote(store, "pose", release, CHAMPION)
    move = MlflowClient.set_registered_model_alias

    def fail_once(self: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == PREVIOUS and version == "2":
            raise MlflowException("gone away")
        move(self, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", fail_once)
    for change in (lambda: rollback(store, "pose"), lambda: promote(store, "pose", release, CHAMPION)):
        with pytest.raises(TrackingError, match="gone away"):
            change()
        assert aliases(store) == {CHAMPION: "2", PREVIOUS: "1"}
    assert [str(found.version) for found in client(store).search_model_versions("name='pose'")] == ["2", "1"]
    assert len(client(store).search_runs(["1"], run_view_type=ViewType.ACTIVE_ONLY)) == 2
