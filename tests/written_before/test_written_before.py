"""What an earlier version wrote is read as it was: shards, checkpoints, runs, an MLflow store, a search and results."""

import json
import lzma
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from written import METHODS, REFERENCE, STATE_DICTS, extract, one_step_more

from posefleet.data.loading.shard_dataset import ShardDataset
from posefleet.data.schemas.shipped import COCO17
from posefleet.data.structures import Poses, Sample
from posefleet.jobs import bundle, tune
from posefleet.jobs import evaluate as evaluate_job
from posefleet.jobs import verify as verify_job
from posefleet.models.parts.ops.assign import PaddedPeople
from posefleet.platform.checkpoints.format import Meta, read_meta, read_state, verify
from posefleet.platform.checkpoints.load import build_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.predictor import Predictor
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.tracking.registry import CHAMPION, find_alias
from posefleet.platform.tracking.runs import read_metrics
from posefleet.platform.tracking.runs import read_run as read_tracked
from posefleet.platform.training.launch import train
from posefleet.platform.training.loop import fit, training_set
from posefleet.platform.training.run import read_run

CLOSE = 1e-3
"""Pixels. More threads and other convolution kernels moved a keypoint by 1e-4 px at most."""
BEST = 5
"""Poses of an image that are compared, by score; all where there are fewer."""

TRACKED = "inspose"
"""The method whose run goes on with MLflow, which takes seconds; it averages its weights."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of the old files; tests take the runs in it one step further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield extract(tmp_path_factory.mktemp("written"))


@pytest.fixture(scope="module")
def numbers() -> dict[str, np.ndarray]:
    """What the earlier version computed from these files."""
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """Settings, and names and shapes of the weights, of every configuration that the earlier version shipped."""
    content: dict[str, Any] = json.loads(lzma.decompress(STATE_DICTS.read_bytes()))
    return content


def assert_recorded(poses: Poses, numbers: dict[str, np.ndarray], method: str) -> None:
    """The best recorded poses are found, in any order: poses whose scores are all but equal may change places.

    One more or one less of the others may survive the suppression of duplicates, whose overlap can be at its bound.
    """
    expected = torch.from_numpy(numbers[f"{method}/keypoints"])  # (N, K, 2)
    assert len(expected) >= 3 and abs(len(poses) - len(expected)) <= 1
    apart = (expected[:BEST, None] - poses.keypoints[None]).abs().amax((2, 3))  # (BEST, M) px
    nearest = apart.argmin(1)
    assert len(set(nearest.tolist())) == len(nearest) and float(apart.amin(1).max()) <= CLOSE
    for name in ("scores", "keypoint_scores"):
        recorded = torch.from_numpy(numbers[f"{method}/{name}"])[:BEST]
        torch.testing.assert_close(getattr(poses, name)[nearest], recorded, rtol=1e-3, atol=1e-5)


# ---------------------------------------------------------------------------------------------------- shards


def stored(root: Path, split: str) -> ShardDataset:
    def same(sample: Sample, _: np.random.Generator) -> Sample:
        return sample

    return ShardDataset(root / "shards" / split, COCO17, same, seed=None)


@pytest.mark.parametrize(("split", "count"), [("train2017", 6), ("val2017", 3)])
def test_shards_stream(written: Path, numbers: dict[str, np.ndarray], split: str, count: int) -> None:
    dataset = stored(written, split)
    assert len(dataset) == count
    assert [record["image_id"] for record in dataset.records()] == numbers[f"{split}/ids"].tolist()


def test_the_first_record_and_image_are_what_they_were(written: Path, numbers: dict[str, np.ndarray]) -> None:
    dataset = stored(written, "val2017")
    assert next(dataset.records()) == json.loads(str(numbers["first/record"]))
    (sample,) = dataset.samples([0])
    assert np.abs(sample.image.astype(int) - numbers["image"]).max() <= 2, "other decoders round differently"


def test_training_reads_the_images_in_the_same_order(written: Path, numbers: dict[str, np.ndarray]) -> None:
    experiment = read_meta(find_checkpoint(f"{written}/runs/smpr")).experiment
    batch = training_set(experiment).batch(list(range(6)))
    assert batch.image_ids.tolist() == numbers["train2017/order"].tolist()


# ---------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_predicts_and_scores_what_it_did(
    written: Path, numbers: dict[str, np.ndarray], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Predictor, "_frames", lambda *_: {})  # boxes ended at the padding then, not at the image
    path = f"{written}/runs/{method}/checkpoints/step-00000002"
    verify(path)
    predictor = Predictor.from_checkpoint(path, device="cpu")
    (poses,) = predictor.predict_images([numbers["image"]])
    assert_recorded(poses, numbers, method)
    meta = read_meta(path)
    result = evaluate(predictor.model, meta.experiment, LocalWorker(device="cpu"))
    assert result is not None and meta.metrics["AP"] >= 0
    now = result.as_dict()
    # Networks of two steps find poses whose scores differ by rounding only: on another processor their order differs.
    assert {name: now[name] for name in meta.metrics} == pytest.approx(meta.metrics, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_packed_and_checked(written: Path, method: str, tmp_path: Path) -> None:
    out, shards = str(tmp_path / "run.tar"), f"{written}/shards/val2017"
    run = f"{written}/runs/{method}/checkpoints/step-00000002"
    assert bundle.main([run, "--out", out, "--sample", "1", "--allow-different"]) == 0
    with tarfile.open(out) as tar:
        assert ("boxes.json" in tar.getnames()) == (method == "detposenet")
    # The numbers that the run recorded are those of another processor.
    assert verify_job.main([out, "--data", shards, "--allow-different", "--json", f"{out}.json"]) == 0
    outcomes = {check["name"]: check["outcome"] for check in json.loads(Path(f"{out}.json").read_text())["checks"]}
    assert {**outcomes, "run's record": "equal"} == dict.fromkeys(outcomes, "equal") and len(outcomes) == 7


class Sink:
    """Keeps the metrics of each step."""

    def __init__(self) -> None:
        self.points: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points.setdefault(step, {}).update(metrics)

    def log_bytes(self, name: str, data: bytes) -> None:
        """Pictures are not compared."""

    def store(self) -> None:
        """All points are in memory."""


def assert_went_on(folder: str, before: Meta) -> None:
    """The checkpoint after the next step continues the one before it."""
    assert (before.step, before.position) == (2, 4)
    after = f"{folder}/checkpoints/step-00000003"
    assert (read_meta(after).step, read_meta(after).position) == (3, 6)
    state = read_state(after)
    assert {int(values["step"]) for values in state["optimizer"]["state"].values()} == {3}
    assert bool(state.get("raw")) == bool(before.experiment.train.ema_decay)


def ignored_before(shift: float, reach: float) -> Callable[[Tensor, PaddedPeople, Tensor], Tensor]:
    """The cells that a method ignored until segmentations came: those in whole boxes, whatever is drawn there.

    Args:
        shift: Pixels from the point of a cell to where it was looked up.
        reach: Pixels around a box that counted as inside.
    """

    def ignored(points: Tensor, people: PaddedPeople, _: Tensor) -> Tensor:
        boxes = people.unlabelled_boxes[:, None]  # (B, 1, M, 4)
        low, high = boxes[..., :2], boxes[..., 2:]
        where = points[:, None] + shift
        return ((where > low - reach) & (where < high + reach) & (high > low)).all(-1).any(-1)

    return ignored


IGNORED_BEFORE = {
    "logocap": ("posefleet.models.logocap.targets.ignored_cells", ignored_before(2.0, 0.0)),
    "detposenet": ("posefleet.models.detposenet.model.ignored_cells", ignored_before(0.0, 1e-4)),
}
"""Methods whose loss changed on shards without segmentations: boxes hide no cell any more that is drawn on."""


@pytest.mark.parametrize("method", [method for method in METHODS if method != TRACKED])
def test_training_goes_on_where_it_was(
    written: Path, numbers: dict[str, np.ndarray], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if method in IGNORED_BEFORE:
        monkeypatch.setattr(*IGNORED_BEFORE[method])
    folder = f"{written}/runs/{method}"
    before, sink = read_meta(f"{folder}/checkpoints/step-00000002"), Sink()
    fit(
        one_step_more(before.experiment),
        LocalWorker(device="cpu", sink=sink),
        CheckpointStore(f"{folder}/checkpoints"),
    )
    assert_went_on(folder, before)
    assert list(sink.points) == [3]
    for metric in ("loss", "lr"):  # these depend on the weights, the images and their augmentation
        assert sink.points[3][metric] == pytest.approx(numbers[f"{method}/{metric}"][2], rel=1e-3)


def test_a_run_goes_on_in_the_same_mlflow_run(written: Path, numbers: dict[str, np.ndarray]) -> None:
    folder = f"{written}/runs/{TRACKED}"
    before = read_meta(f"{folder}/checkpoints/step-00000002")
    run = read_run(folder)
    assert run is not None and before.provenance["run_id"] == run.run_id
    assert train(one_step_more(before.experiment)) == 0
    assert_went_on(folder, before)
    for metric in ("loss", "lr"):
        points = read_metrics(run.tracking_uri, run.run_id, [metric])[metric]
        assert [step for step, _ in points] == [1, 2, 3]
        assert [value for _, value in points] == pytest.approx(numbers[f"{TRACKED}/{metric}"].tolist(), rel=1e-3)


def test_every_shipped_configuration_is_understood_and_has_the_same_weights(shipped: dict[str, Any]) -> None:
    assert {configuration["experiment"]["method"] for configuration in shipped.values()} == set(METHODS)
    for name, configuration in shipped.items():
        weights = build_model(build_experiment(configuration["experiment"]), pretrained=False).state_dict()
        assert {key: list(value.shape) for key, value in weights.items()} == configuration["weights"], name


# ---------------------------------------------------------------------------------------------------- MLflow


def test_the_champion_is_found_by_its_alias(written: Path, numbers: dict[str, np.ndarray]) -> None:
    store = f"sqlite:///{written}/runs/mlflow.db"
    version = find_alias(store, "smpr", CHAMPION)
    assert version is not None and version.address == "models:/smpr/1"
    assert version.tags["gate"] == "passed" and version.tags["checkpoint"] == f"{written}/runs/smpr"
    champion = Predictor.from_registry("models:/smpr@champion", tracking=store, device="cpu")
    (poses,) = champion.predict_images([numbers["image"]])
    assert_recorded(poses, numbers, "smpr")


def test_mlflow_knows_the_run_and_its_checkpoint(written: Path) -> None:
    run = read_run(f"{written}/runs/smpr")
    assert run is not None and run.tracking_uri == f"sqlite:///{written}/runs/mlflow.db"
    tracked = read_tracked(run.tracking_uri, run.run_id)
    assert (tracked.name, tracked.status, tracked.params["method"]) == ("smpr", "FINISHED", "smpr")
    assert tracked.params["optim.lr"] == "0.001" and "AP" in tracked.metrics
    assert tracked.tags["folder"] == f"{written}/runs/smpr"
    artifact = tracked.artifact_uri.removeprefix("file://") + "/checkpoint"
    verify(artifact)
    assert read_meta(artifact).step == 2


# ---------------------------------------------------------------------------------------------------- jobs


def test_a_search_goes_on(written: Path) -> None:
    folder = written / "runs" / "search"
    before = json.loads((folder / "trials.json").read_text())
    assert len(before) == 2
    assert tune.main(["--resume", str(folder), "--samples", "3"]) == 0
    assert json.loads((folder / "trials.json").read_text())[:2] == before
    assert len(json.loads((folder / "trials.json").read_text())) == 3


def test_evaluation_writes_the_results_that_it_wrote(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = f"{written}/runs/smpr/checkpoints/step-00000002"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--checkpoint", checkpoint, "--out", str(tmp_path / "smpr.json")])
    assert evaluate_job.main() == 0
    before, after = (json.loads((folder / "smpr.json").read_text()) for folder in (written / "results", tmp_path))
    assert len(before) == len(after) > 0
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys() and old["image_id"] == new["image_id"]
        assert new["keypoints"] == pytest.approx(old["keypoints"], abs=0.01)
        assert new["score"] == pytest.approx(old["score"], abs=1e-5)
