"""COCO, CrowdPose and an own set train together: one stream, a union schema, AP of each source and of all."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chosen_keypoints import with_keypoints
from fit_process import StoppingWorker
from small_settings import small_settings, untrained_checkpoint

from posefleet.data.coco.file_schema import read_file_schema
from posefleet.data.coco.source import find_source
from posefleet.data.errors import DataError
from posefleet.data.evaluation.evaluate import evaluate as score
from posefleet.data.evaluation.ground_truth import GroundTruth
from posefleet.data.schemas.schema import SchemaError
from posefleet.data.schemas.shipped import COCO17, CROWDPOSE14
from posefleet.data.shards.build import shard_coco
from posefleet.data.structures import Poses
from posefleet.data.transforms import EvalTransform, Resize
from posefleet.jobs.evaluate import main as evaluate_job
from posefleet.platform.checkpoints.format import read_meta
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.inference.split import Split
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import Stopped, check_data, fit, training_set

CROWD = {name: {"head": "nose", "neck": "left_shoulder"}.get(name, name) for name in CROWDPOSE14.keypoints}
OWN = {"helmet": "nose", "R_Wrist": "right_wrist", "L_Wrist": "left_wrist"}
KEYPOINTS: dict[str, Any] = {"coco": COCO17.keypoints, "crowd": CROWD, "own": OWN}
TRAIN = {"coco": range(1, 13), "crowd": range(13, 21), "own": range(21, 25)}
EVAL = {"coco": range(1, 5), "crowd": range(1, 4)}
"""Images of each source; the two to evaluate on share ids."""


@pytest.fixture(scope="module")
def root(people_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and annotation files of the three sources: ROOT/SOURCE/SPLIT and ROOT/SOURCE-SPLIT.json."""
    root = tmp_path_factory.mktemp("sources")
    for split, images in (("train2017", TRAIN), ("val2017", EVAL)):
        document = json.loads((people_coco / "annotations" / f"person_keypoints_{split}.json").read_text())
        for name, ids in images.items():
            file = root / f"{name}-{split}.json"
            file.write_text(json.dumps(with_keypoints(document, KEYPOINTS[name], ids, name)))
            source = find_source(str(file), split, str(people_coco / split))
            shard_coco(source, str(root / name / split), read_file_schema(str(file)), parallel=False)
    return root


@pytest.fixture
def settings(root: Path, tmp_path: Path) -> dict[str, Any]:
    found = small_settings(root, tmp_path / "runs")
    train = [
        {"path": str(root / name / "train2017"), "name": name, "weight": weight}
        for name, weight in (("coco", 2), ("crowd", 1), ("own", 1))
    ]
    found["data"] |= {"train": train, "eval": [f"{root}/coco/val2017,name=coco", f"{root}/crowd/val2017,name=crowd"]}
    return {**found, "schema": "auto"}


def changed(settings: dict[str, Any], **data: Any) -> dict[str, Any]:
    found = copy.deepcopy(settings)
    found["data"] |= data
    return found


def test_three_sources_train_one_model_with_the_union_of_their_keypoints(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    experiment = build_experiment(settings)
    assert experiment.keypoints.keypoints == (*COCO17.keypoints, "head", "neck", "helmet")
    sink = Sink()
    store = CheckpointStore(str(tmp_path / "c"))
    metrics = fit(experiment, LocalWorker(device="cpu", sink=sink), store)
    (logged,) = [point for step, point in sink.points if "AP" in point]
    assert {"AP", "coco/AP", "crowd/AP", "crowd/AR", "coco/AP_keypoint/nose", "crowd/AP_keypoint/neck"} <= logged.keys()
    assert "crowd/AP_keypoint/nose" not in logged and "AP_keypoint/helmet" in logged
    assert metrics.keys() == logged.keys()
    assert any(b"all, as the model" in content for name, content in sink.files.items() if name.endswith("table.txt"))
    _, stored = load_model(str(store.latest()))
    assert stored.keypoints == experiment.keypoints and stored.data == experiment.data
    assert ("head", "neck") in stored.keypoints.skeleton
    assert len(read_meta(str(store.latest())).provenance["data"]) == 64


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.files: dict[str, bytes] = {}

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.points.append((step, dict(metrics)))

    def log_bytes(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def store(self) -> None: ...


def test_a_stopped_run_of_several_sources_ends_with_the_weights_of_an_undisturbed_one(
    settings: dict[str, Any], tmp_path: Path, one_thread: None
) -> None:
    experiment = build_experiment(changed(settings, eval="", augment={"crop": 64, "mosaic": 0.5}))
    whole, parts = CheckpointStore(str(tmp_path / "whole")), CheckpointStore(str(tmp_path / "parts"))
    fit(experiment, LocalWorker(device="cpu"), whole)
    with pytest.raises(Stopped):
        fit(experiment, StoppingWorker(3), parts)
    fit(experiment, LocalWorker(device="cpu"), parts)
    first, second = (load_model(str(store.latest()))[0].state_dict() for store in (whole, parts))
    for name, weights in first.items():
        assert torch.equal(weights, second[name]), name


@pytest.fixture
def checkpoint(settings: dict[str, Any], tmp_path: Path) -> str:
    """A model that finds something in every image."""
    return untrained_checkpoint(settings, tmp_path / "untrained", sure=True)


def test_each_source_is_scored_as_if_it_were_alone(settings: dict[str, Any], checkpoint: str, root: Path) -> None:
    model, experiment = load_model(checkpoint)
    worker = LocalWorker(device="cpu")
    together = evaluate(model, experiment, worker)
    assert together is not None and list(together.sources) == ["coco", "crowd"]
    assert together.protocol.images == 7 and len(set(together.image_ids.tolist())) == 7
    assert together.protocol.schema == experiment.keypoints.name
    for name, schema in (("coco", COCO17), ("crowd", CROWDPOSE14)):
        alone = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, eval=f"{root}/{name}/val2017")
        )
        poses: dict[int, Poses] = {}
        by_itself = evaluate(model, alone, worker, keep=poses.update)
        assert by_itself is not None
        (only,) = by_itself.sources.values()
        index = [experiment.keypoints.keypoints.index(keypoint) for keypoint in schema.keypoints]
        own = {i: Poses(p.keypoints[:, index], p.keypoint_scores[:, index], p.scores) for i, p in poses.items()}
        people = GroundTruth.from_coco(root / f"{name}-val2017.json")
        expected = score(people, own, schema)
        for found in (together.sources[name], only):
            assert found.statistics == pytest.approx(expected.statistics, nan_ok=True)
            assert found.keypoint_oks.tolist() == pytest.approx(expected.keypoint_oks.tolist(), nan_ok=True)
            assert found.keypoints == schema.keypoints
        # Here the union has the sigmas of the sources, so one source alone has one score.
        assert by_itself.keypoint_oks[index].tolist() == pytest.approx(expected.keypoint_oks.tolist(), nan_ok=True)


def test_the_command_scores_sources_and_writes_one_at_a_time(
    checkpoint: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "crowd.json"
    one = ["--checkpoint", checkpoint, "--data.eval", f"{root}/crowd/val2017", "--out", str(out)]
    assert evaluate_job(one) == 0
    scored = json.loads(out.with_suffix(".metrics.json").read_text())
    assert scored["val2017/AP_keypoint/neck"] == pytest.approx(scored["AP_keypoint/neck"], nan_ok=True)
    assert out.exists() and "val2017 " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate_job(["--checkpoint", checkpoint, "--out", str(out)])
    assert "poses are written by image id, which coco, crowd may share" in capsys.readouterr().err


def test_a_given_schema_leaves_out_keypoints_and_must_be_learned(
    settings: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    check_data(build_experiment({**settings, "schema": "coco17"}))
    assert "source crowd: schema coco17 leaves out head, neck" in caplog.text
    assert "source own: schema coco17 leaves out helmet" in caplog.text
    sample = training_set(build_experiment({**settings, "schema": "coco17"})).samples(range(4))
    assert {s.people.visibility.shape[1] for s in sample} == {17}
    with pytest.raises(SchemaError, match=r"no source labels .* of schema halpe26"):
        check_data(build_experiment({**settings, "schema": "halpe26"}))


def test_bad_sources_are_errors_before_anything_starts(settings: dict[str, Any], root: Path, tmp_path: Path) -> None:
    coco, own = f"{root}/coco/train2017", f"{root}/own/train2017"
    alike = [{"path": coco}, {"path": own, "rename": {"L_Wrist": "left_nose_ring", "R_Wrist": "bell"}}]
    with pytest.raises(
        ValueError, match=r"coco-train2017 shares no keypoint with the others: .* helmet, bell, left_nose"
    ):
        build_experiment(changed(settings, train=alike))
    other = tmp_path / "own.yaml"
    other.write_text("{name: worker, keypoints: [helmet, right_wrist, left_wrist], sigmas: 0.1}")
    with pytest.raises(ValueError, match=r"sigma of left_wrist: coco-train2017 has 0\.062, own-train2017 has 0\.1"):
        build_experiment(changed(settings, train=[{"path": coco}, {"path": own, "schema": str(other)}]))
    wrong = [{"path": coco}, {"path": own, "schema": "coco17"}]
    with pytest.raises(DataError, match=r"schema coco17 and .*own/train2017 differ"):
        check_data(build_experiment({**changed(settings, train=wrong), "schema": "coco17"}))


def test_a_source_without_people_is_an_error_that_names_it(
    settings: dict[str, Any], root: Path, people_coco: Path, tmp_path: Path
) -> None:
    document = json.loads((people_coco / "annotations" / "person_keypoints_train2017.json").read_text())
    found = with_keypoints(document, COCO17.keypoints, range(1, 5), "nobody")
    found["annotations"] = [person for person in found["annotations"] if person["image_id"] > 1]
    file = tmp_path / "nobody.json"
    file.write_text(json.dumps(found))
    source = find_source(str(file), "x", str(people_coco / "train2017"))
    shard_coco(source, f"{tmp_path}/empty", COCO17, parallel=False, limit=1)
    train = [{"path": f"{root}/coco/train2017"}, {"path": f"{tmp_path}/empty"}]
    with pytest.raises(DataError, match=f"{tmp_path}/empty: no images with a labelled person"):
        check_data(build_experiment(changed(settings, train=train, labelled_only=True)))


def test_the_same_keypoints_from_two_folders_are_one_data_set(settings: dict[str, Any], root: Path) -> None:
    coco = f"{root}/coco/train2017"
    experiment = build_experiment(changed(settings, train=[coco, f"{root}/coco/val2017"], eval=""))
    assert experiment.schema == "coco17" and experiment.keypoints == COCO17
    source = training_set(experiment)
    assert len(source) == 16
    samples = source.samples(range(16))
    assert all(sample.people.supervised is None for sample in samples)  # nothing to leave out
    ids = [sample.image_id for sample in samples]
    assert sorted(ids) == sorted([*TRAIN["coco"], *EVAL["coco"]])  # without weights every image once an epoch


def test_a_model_of_several_sources_is_scored_on_files_of_one(
    settings: dict[str, Any], checkpoint: str, root: Path, people_coco: Path
) -> None:
    """As by `evaluate --source`, and by the gate before the registry."""
    model, experiment = load_model(checkpoint)
    worker = LocalWorker(device="cpu")
    file, images = str(root / "crowd-val2017.json"), str(people_coco / "val2017")
    found = Split.named(file, "val2017", images, shards="", partial=experiment.data.several)
    assert found.faults(experiment.keypoints) == []
    by_files = evaluate(model, experiment, worker, open_split=found.view)
    shards = Split.named("", "", "", shards=f"{root}/crowd/val2017", partial=experiment.data.several)
    by_shards = evaluate(model, experiment, worker, open_split=shards.view)
    one = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, eval=f"{root}/crowd/val2017"))
    expected = evaluate(model, one, worker)
    assert by_files is not None and by_shards is not None and expected is not None
    for scored in (by_files, by_shards):
        assert scored.statistics == pytest.approx(expected.statistics, nan_ok=True)
    with pytest.raises(DataError, match=r"schema coco17\+crowdpose14\+own and .*differ"):
        Split.named("", "", "", shards=f"{root}/crowd/val2017").view(EvalTransform(Resize(), experiment.keypoints))
