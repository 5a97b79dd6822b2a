"""Training and scoring straight from COCO's own files: FOLDER@SPLIT stands where a folder of shards does."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_process import StoppingWorker
from small_settings import untrained_checkpoint

from posefleet.data.schemas.shipped import COCO17
from posefleet.data.shards import unsharded
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.jobs import evaluate, predict, schema
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.sources import training_source
from posefleet.platform.inference.split import Split
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import Stopped, fit


@pytest.fixture(autouse=True)
def _shards_as_in_the_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(unsharded, "SHARD_MIB", 0.05)  # that of people_shards
    unsharded._open.cache_clear()


@pytest.fixture
def direct_run(small_run: dict[str, Any], people_coco: Path, tmp_path: Path) -> dict[str, Any]:
    """The settings of ``small_run`` with COCO's own files in place of their shards."""
    settings = copy.deepcopy(small_run)
    settings["data"] |= {"train": f"{people_coco}@train2017", "eval": f"{people_coco}@val2017"}
    settings["run"]["storage"] = str(tmp_path / "direct")
    return settings


def trained(settings: dict[str, Any], folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """Weights after training, with a stop in between if wanted."""
    experiment, store = build_experiment(settings), CheckpointStore(str(folder))
    if stop_at is not None:
        with pytest.raises(Stopped):
            fit(experiment, StoppingWorker(stop_at), store)
    fit(experiment, LocalWorker(device="cpu"), store)
    return load_model(str(store.latest()))[0].state_dict()


def test_training_takes_the_steps_that_it_takes_on_shards(
    small_run: dict[str, Any], direct_run: dict[str, Any], tmp_path: Path
) -> None:
    shards, direct = trained(small_run, tmp_path / "a"), trained(direct_run, tmp_path / "b")
    resumed = trained(direct_run, tmp_path / "c", stop_at=3)
    assert shards.keys() == direct.keys() == resumed.keys()
    assert all(torch.equal(shards[name], direct[name]) for name in shards)
    assert all(torch.equal(shards[name], resumed[name]) for name in shards)


def test_a_relative_place_becomes_absolute_and_schema_auto_reads_it(
    direct_run: dict[str, Any], people_coco: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(people_coco.parent)
    direct_run["data"] |= {"train": f"{people_coco.name}@train2017"}
    experiment = build_experiment({**direct_run, "schema": "auto"})
    assert experiment.data.train == f"{people_coco}@train2017"
    assert experiment.keypoints == COCO17


def test_evaluate_gives_the_metrics_of_the_shards(
    direct_run: dict[str, Any], people_shards: Path, people_coco: Path, tmp_path: Path
) -> None:
    checkpoint = untrained_checkpoint(direct_run, tmp_path / "run")
    found = []
    for number, place in enumerate((people_shards / "val2017", f"{people_coco}@val2017")):
        out = tmp_path / f"{number}.json"
        assert evaluate.main(["--checkpoint", checkpoint, "--data.eval", str(place), "--out", str(out)]) == 0
        metrics = json.loads((tmp_path / f"{number}.metrics.json").read_text())
        found.append((json.loads(out.read_text()), {name: metrics[name] for name in ("AP", "AP50", "AR")}))
    assert found[0] == found[1]


def test_a_gate_takes_it_as_a_split(people_coco: Path, people_shards: Path) -> None:
    place = f"{people_coco}@val2017"
    split, sharded = (Split.named("", "", "", shards=str(root)) for root in (place, people_shards / "val2017"))
    assert split.faults(COCO17) == [] and str(split) == str(sharded) == "val2017, 7 images"
    assert split.as_input().fingerprint == sharded.as_input().fingerprint
    view = EvalTransform(Resize(short_side=64, long_side=64), COCO17)
    assert torch.equal(split.view(view).batch([0, 3]).images, sharded.view(view).batch([0, 3]).images)


def test_schema_and_predict_take_it_too(
    direct_run: dict[str, Any], people_coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = f"{people_coco}@val2017"
    assert schema.main(["show", place]) == 0
    assert "schema coco17: 17 keypoints" in capsys.readouterr().out
    checkpoint = untrained_checkpoint(direct_run, tmp_path / "run")
    arguments = ["--model", checkpoint, "--input", place, "--output", str(tmp_path / "out"), "--in-process"]
    assert predict.main(arguments) == 0
    assert "poses in 7 images" in capsys.readouterr().out


def test_it_is_one_of_several_sources(
    direct_run: dict[str, Any], people_coco: Path, people_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(people_coco.parent)
    batches = []
    for first in (f"{people_coco.name}@train2017", str(people_shards / "train2017")):
        direct_run["data"]["train"] = [
            {"path": first, "name": "a", "weight": 2.0},
            {"path": str(people_shards / "val2017"), "name": "b", "weight": 1.0},
        ]
        experiment = build_experiment(direct_run)
        assert Path(experiment.data.train[0].path.partition("@")[0]).is_absolute()  # type: ignore[union-attr]
        batches.append(training_source(experiment).batch(range(12)))
    assert torch.equal(batches[0].images, batches[1].images)
    assert torch.equal(batches[0].image_ids, batches[1].image_ids)
