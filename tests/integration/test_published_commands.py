"""Every command takes a checkpoint that was imported from a file in the authors' format."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from published import inspose_weights, save_mmdet

from posefleet.data.images import decode_image
from posefleet.jobs import evaluate, export, import_weights, predict, promote, tune
from posefleet.models.inspose import Config
from posefleet.platform.checkpoints.format import read_content, read_weights
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.cli import configured
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking.registry import CHAMPION, find_version
from posefleet.platform.training.loop import fit

SMALL = (
    *("--data.resize.short_side", "96", "--data.resize.long_side", "128"),
    *("--data.loaders", "0", "--model.decode.max_poses", "5"),
)
RELEASED = str(import_weights.CONFIGS / "inspose_released.yaml")


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The checkpoint of a file with random weights, of the size of the published one, for images of 96 px."""
    folder = tmp_path_factory.mktemp("imported")
    file = save_mmdet(folder / "inspose_r50.pth", inspose_weights())
    arguments = ["--method", "inspose", "--weights", str(file), "--out", str(folder / "checkpoint"), *SMALL]
    assert import_weights.main(arguments) == 0
    file.unlink()
    yield folder / "checkpoint"
    (folder / "checkpoint" / "model.safetensors").unlink()


def test_it_is_evaluated_and_its_own_size_is_used(imported: Path, people_coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    data = ["--source", str(people_coco), "--split", "val2017"]
    assert evaluate.main(["--checkpoint", str(imported), *data, "--out", str(out)]) == 0
    results = json.loads(out.read_text())
    assert results and {len(result["keypoints"]) for result in results} == {51}
    assert 0 <= json.loads((tmp_path / "results.metrics.json").read_text())["AP"] <= 1


def test_it_predicts_images(imported: Path, people_coco: Path, tmp_path: Path) -> None:
    arguments = ["--model", str(imported), "--input", str(people_coco / "val2017"), "--output", str(tmp_path / "out")]
    assert predict.main([*arguments, "--in-process"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())


def test_its_decoding_is_tuned(imported: Path, people_shards: Path, tmp_path: Path) -> None:
    arguments = ["--decode-only", "--checkpoint", str(imported), "--out", str(tmp_path / "tune"), "--samples", "3"]
    space = import_weights.CONFIGS / "spaces" / "inspose_decoding.yaml"
    assert tune.main([*arguments, "--space", str(space), "--data.eval", str(people_shards / "val2017")]) == 0
    assert (tmp_path / "tune" / "best.yaml").exists()


def test_a_training_starts_from_it(imported: Path, people_shards: Path, tmp_path: Path) -> None:
    given = {
        "data.train": people_shards / "train2017",
        "data.eval": "",
        "data.resize.short_side": 64,
        "data.resize.long_side": 64,
        "data.batch_size": 2,
        "data.loaders": 0,
        "train.epochs": 0.08,
        "scaling.num_workers": 0,
        "optim.lr_batch": 0,
        "run.init_from": imported,
    }
    experiment = configured("inspose", RELEASED, {name: [str(value)] for name, value in given.items()})
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    fit(experiment, LocalWorker(device="cpu"), store)
    path = store.latest()
    assert path is not None and read_content(path)["step"] == 1
    before, after = read_weights(str(imported)), read_weights(path)
    name = "head.controller.weight"
    assert 0 < float((after[name] - before[name]).abs().max()) < 0.01  # a step of warm-up
    assert torch.equal(after["backbone.body.conv1.weight"], before["backbone.body.conv1.weight"])  # frozen


def test_the_default_says_what_a_training_from_it_lacks(imported: Path, people_shards: Path, tmp_path: Path) -> None:
    assert not Config().head.tags
    given = {"data.train": people_shards / "train2017", "scaling.num_workers": 0, "run.init_from": imported}
    experiment = configured(
        "inspose",
        str(import_weights.CONFIGS / "inspose.yaml"),
        {name: [str(value)] for name, value in given.items()},
    )
    with pytest.raises(Exception, match=r"the model has no 'head\.map_outputs\.tags\.\w+'"):
        fit(experiment, LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "checkpoints")))


@pytest.mark.slow
def test_it_is_exported(imported: Path, people_coco: Path, tmp_path: Path) -> None:
    out = tmp_path / "inspose.onnx"
    arguments = ["--checkpoint", str(imported), "--out", str(out), "--source", str(people_coco), "--check.images", "2"]
    assert export.main(arguments) == 0 and out.stat().st_size > 1e8


@pytest.mark.slow
def test_it_is_registered_measured_and_served(
    imported: Path, people_coco: Path, people_shards: Path, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the file to the champion, which a server loads by its address."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    file = save_mmdet(tmp_path / "inspose_r50.pth", inspose_weights())
    arguments = ["--method", "inspose", "--weights", str(file), "--register", "people", *SMALL]
    assert import_weights.main(arguments) == 0
    gate = ["--gate.latency_people", "1", "--gate.served_images", "1", "--data.eval", str(people_shards / "val2017")]
    assert promote.main(["--run", "models:/people@released", "--model", "people", "--to", CHAMPION, *gate]) == 0
    assert find_version("models:/people@champion", store).number == "2"
    image = decode_image(next((people_coco / "val2017").glob("*.jpg")).read_bytes())
    served = Predictor.from_registry("models:/people@champion", device="cpu")(image)
    own = Predictor.from_checkpoint(str(imported), device="cpu")(image)
    assert len(own.poses) and torch.equal(served.poses.keypoints, own.poses.keypoints)
