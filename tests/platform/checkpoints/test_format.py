import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch

from posefleet.data.schemas.schema import KeypointSchema
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_content, read_meta, read_state
from posefleet.platform.checkpoints.load import build_model, load_model, load_weights, untrained
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment

SMALL_MODEL = {
    "backbone": {"name": "resnet18", "pretrained": False},
    "neck": "fpn",
    "head": {"channels": 16, "tower_depth": 1, "heatmap_channels": 16},
}


@pytest.fixture
def experiment() -> Experiment:
    return build_experiment({"method": "smpr", "model": SMALL_MODEL, "schema": "coco17", "data": {"train": "x"}})


def save(store: CheckpointStore, experiment: Experiment, step: int, **metrics: float) -> str:
    meta = Meta(experiment=experiment, step=step, position=8 * step, metrics=metrics, provenance={"git": "abc"})
    return store.save(meta, {"weight": torch.full((3,), float(step))}, {"optimizer": {"lr": 0.1}})


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, experiment: Experiment) -> None:
    path = save(CheckpointStore(str(tmp_path)), experiment, 5, AP=0.25)
    meta = read_meta(path)
    assert (meta.step, meta.position, meta.metrics, meta.provenance) == (5, 40, {"AP": 0.25}, {"git": "abc"})
    assert meta.experiment == experiment
    assert read_state(path) == {"optimizer": {"lr": 0.1}}
    assert sorted(os.listdir(path)) == ["meta.json", "model.safetensors", "state.pt"]


def test_the_latest_ones_and_the_best_one_are_kept(tmp_path: Path, experiment: Experiment) -> None:
    store = CheckpointStore(str(tmp_path), keep=2)
    for step, ap in ((1, 0.1), (2, 0.7), (3, 0.3), (4, float("nan")), (5, 0.2)):
        save(store, experiment, step, AP=ap)
    assert store.names() == ["step-00000002", "step-00000004", "step-00000005"]
    assert store.best() == f"{tmp_path}/step-00000002"
    assert store.latest() == f"{tmp_path}/step-00000005"


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "meta.json"])
def test_a_truncated_checkpoint_is_passed_over(tmp_path: Path, experiment: Experiment, file: str) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, experiment, 1)
    newest = Path(save(store, experiment, 2), file)
    newest.write_bytes(newest.read_bytes()[:-3])
    assert store.latest() == f"{tmp_path}/step-00000001"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_hinders_no_later_one(tmp_path: Path, experiment: Experiment, keep: int) -> None:
    store = CheckpointStore(str(tmp_path), keep=keep)
    save(store, experiment, 1, AP=0.1)
    save(store, experiment, 3, AP=0.1)
    (tmp_path / "step-00000003" / "meta.json").write_bytes(b"{")
    assert store.best() == (f"{tmp_path}/step-00000001" if keep == 2 else None)
    save(store, experiment, 2)  # the run goes on from 1, perhaps with other steps between checkpoints
    assert store.latest() == f"{tmp_path}/step-00000002"
    assert "step-00000003" not in store.names()


def test_what_killed_writers_left_goes_with_the_next_checkpoint(tmp_path: Path, experiment: Experiment) -> None:
    store = CheckpointStore(str(tmp_path))
    left = tmp_path / ".step-00000001.77.tmp"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    save(store, experiment, 1)
    save(store, experiment, 1, AP=0.5)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert read_meta(str(store.latest())).metrics == {"AP": 0.5}


def test_a_checkpoint_that_was_being_written_does_not_count(tmp_path: Path, experiment: Experiment) -> None:
    store = CheckpointStore(str(tmp_path))
    path = Path(save(store, experiment, 1))
    (path / "meta.json").unlink()  # it is written last
    assert store.latest() is None
    assert store.best() is None


def test_a_full_disk_leaves_the_previous_checkpoint(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(str(tmp_path))
    save(store, experiment, 1)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(CheckpointError, match=r"No space left.*step-00000001 is intact"):
        save(store, experiment, 2)
    assert os.listdir(tmp_path) == ["step-00000001"]
    assert store.latest() == f"{tmp_path}/step-00000001"


def test_a_store_may_be_anywhere_fsspec_reaches(experiment: Experiment) -> None:
    store = CheckpointStore("memory://run/checkpoints", keep=1)
    for step in (1, 2):
        save(store, experiment, step)
    assert store.latest() == "memory://run/checkpoints/step-00000002"
    assert read_meta(store.latest() or "").step == 2
    assert store.names() == ["step-00000002"]


def test_a_model_is_rebuilt_from_its_checkpoint_alone(tmp_path: Path, experiment: Experiment) -> None:
    torch.manual_seed(3)
    model = build_model(experiment)
    meta = Meta(experiment=experiment, step=1, position=8, metrics={}, provenance={})
    path = CheckpointStore(str(tmp_path)).save(meta, model.state_dict(), {})
    rebuilt, same = load_model(path)
    assert same == experiment
    assert not rebuilt.training
    for name, value in model.state_dict().items():
        torch.testing.assert_close(rebuilt.state_dict()[name], value, rtol=0, atol=0)


def test_weights_of_another_method_schema_or_shape_are_refused_by_name(tmp_path: Path, experiment: Experiment) -> None:
    model = build_model(experiment)
    meta = Meta(experiment=experiment, step=1, position=8, metrics={}, provenance={})
    path = CheckpointStore(str(tmp_path)).save(meta, model.state_dict(), {})
    with pytest.raises(CheckpointError, match=r"of method 'smpr', this experiment's is 'pfs'"):
        load_weights(model, path, method="pfs", schema=COCO17)
    with pytest.raises(CheckpointError, match=r"checkpoint of schema coco17 and schema crowdpose14 .* differ"):
        load_weights(model, path, method="smpr", schema=CROWDPOSE14)
    wider = {**SMALL_MODEL, "head": {"channels": 32, "tower_depth": 1, "heatmap_channels": 16}}
    other = build_experiment({"method": "smpr", "model": wider, "schema": "coco17", "data": {"train": "x"}})
    with pytest.raises(CheckpointError, match=r"'neck\..*' is \(16, .* in the checkpoint and \(32"):
        load_model(path, experiment=other)
    deeper = {**SMALL_MODEL, "head": {"channels": 16, "tower_depth": 2, "heatmap_channels": 16}}
    other = build_experiment({"method": "smpr", "model": deeper, "schema": "coco17", "data": {"train": "x"}})
    with pytest.raises(CheckpointError, match=r"the checkpoint has no 'head"):
        load_model(path, experiment=other)


def test_what_is_not_a_checkpoint_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not a checkpoint: no readable meta\.json"):
        load_model(str(tmp_path))
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not of checkpoint format 1"):
        load_model(str(tmp_path))


def test_no_part_of_a_model_reads_weights_that_a_checkpoint_brings() -> None:
    model = {
        "detector": {"kind": "torchvision", "weights": "/nowhere/detector.pth"},
        "prs": {"network": "hrnet_w48", "backbone": {"name": "hrnet_w48", "pretrained": True}},
    }
    config = build_experiment(
        {"method": "detposenet", "model": model, "schema": "coco17", "data": {"train": "x"}}
    ).model
    bare = untrained(config)
    assert bare.detector == dataclasses.replace(config.detector, weights="")
    assert bare.prs.backbone == dataclasses.replace(config.prs.backbone, pretrained=False)
    assert bare.coarse == config.coarse


def test_a_checkpoint_holds_its_whole_schema(tmp_path: Path, experiment: Experiment) -> None:
    ball = KeypointSchema.from_dict({"name": "ball", "keypoints": ["centre", "top"], "sigmas": 0.2})
    mine = dataclasses.replace(experiment, schema=ball.as_dict())
    meta = Meta(experiment=mine, step=1, position=8, metrics={}, provenance={})
    path = CheckpointStore(str(tmp_path)).save(meta, build_model(mine).state_dict(), {})
    model, read = load_model(path)
    assert read.keypoints == ball and read_content(path)["keypoints"] == ball.as_dict()
    with pytest.raises(CheckpointError, match=r"checkpoint of schema ball and schema coco17 of the experiment differ"):
        load_model(path, experiment=experiment)
    same = dataclasses.replace(experiment, schema={**ball.as_dict(), "name": "globe"})
    load_weights(model, path, method="smpr", schema=same.keypoints)


def test_an_old_checkpoint_has_the_name_of_a_shipped_schema(tmp_path: Path, experiment: Experiment) -> None:
    meta = Meta(experiment=experiment, step=1, position=8, metrics={}, provenance={})
    path = CheckpointStore(str(tmp_path)).save(meta, build_model(experiment).state_dict(), {})
    file = Path(path, "meta.json")
    content = json.loads(file.read_text())
    del content["keypoints"]
    file.write_text(json.dumps(content))
    assert read_meta(path).experiment == experiment
    file.write_text(json.dumps({**content, "schema": "mine"}))
    with pytest.raises(CheckpointError, match="unknown keypoint schema 'mine'"):
        read_meta(path)
