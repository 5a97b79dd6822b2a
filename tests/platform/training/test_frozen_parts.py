"""Tests trainings that start from a checkpoint: frozen parts, slower copied parts, and an early end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fit_process import StoppingWorker, in_processes
from small_settings import untrained_checkpoint, with_settings

from posefleet.models import load_method
from posefleet.platform.checkpoints.format import read_meta, read_state
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.runtime.worker import FatalError, LocalWorker
from posefleet.platform.training.loop import Stopped, fit
from posefleet.platform.training.optim import Freezing
from posefleet.platform.training.state import check_start


@pytest.fixture
def start(small_run: dict[str, Any], tmp_path: Path) -> str:
    return untrained_checkpoint(small_run, tmp_path / "start", seed=3)


def settings_of(small_run: dict[str, Any], start: str, **train: Any) -> dict[str, Any]:
    return with_settings(small_run, run={"init_from": start}, train={"log_every": 1, **train}, data={"eval": ""})


def weights(path: str | None) -> dict[str, torch.Tensor]:
    return load_model(str(path))[0].state_dict()


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    """First words of the names of the weights that differ."""
    words = (name.split(".")[:2] if name.startswith("head") else name.split(".")[:1] for name in before)
    named = zip(before, words, strict=True)
    return {".".join(word) for name, word in named if not torch.equal(before[name], after[name])}


def test_frozen_parts_stay_until_they_thaw_and_resume_exactly(
    small_run: dict[str, Any], start: str, tmp_path: Path, one_thread: None
) -> None:
    thawing = settings_of(
        small_run, start, freeze=["backbone", "towers"], freeze_epochs=0.5, ema_decay=0.9, checkpoint_every=3
    )
    thawing["train"]["keep_checkpoints"] = 9
    whole, parts = CheckpointStore(str(tmp_path / "whole"), keep=9), CheckpointStore(str(tmp_path / "parts"), keep=9)
    fit(build_experiment(thawing), LocalWorker(device="cpu"), whole)
    assert whole.names() == ["step-00000003", "step-00000006"]
    frozen, end = (weights(f"{whole.root}/{name}") for name in whole.names())
    origin = weights(start)
    assert changed(origin, frozen) >= {"neck", "head.init"}
    assert not changed(origin, frozen) & {"backbone", "head.cls_tower", "head.pose_tower"}
    assert changed(origin, end) >= {"backbone", "neck", "head.cls_tower", "head.pose_tower"}
    for looks in (2, 2, 1):  # stops at steps 2, 4 and 5: before and after the thaw
        with pytest.raises(Stopped):
            fit(build_experiment(thawing), StoppingWorker(looks), parts)
    fit(build_experiment(thawing), LocalWorker(device="cpu"), parts)
    resumed = weights(parts.latest())
    assert all(torch.equal(end[name], resumed[name]) for name in end)
    first, second = (read_state(str(store.latest())) for store in (whole, parts))
    assert all(torch.equal(first["raw"][name], second["raw"][name]) for name in first["raw"])


def test_workers_that_train_together_thaw_together(small_run: dict[str, Any], start: str, tmp_path: Path) -> None:
    """DDP must neither wait for frozen parameters nor leave thawed ones alone."""
    sgd = {"name": "sgd", "lr": 0.01, "schedule": "constant", "warmup_steps": 0}
    one = settings_of(small_run, start, freeze=["backbone"], freeze_epochs=1 / 6, epochs=1 / 3)
    one["optim"] = sgd
    two = with_settings(one, data={"batch_size": 2})
    fit(build_experiment(one), LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "one")))
    in_processes(2, two, tmp_path / "two")
    first, second = (CheckpointStore(str(tmp_path / path)).latest() for path in ("one", "two/checkpoints"))
    before, alone, together = weights(start), weights(first), weights(second)
    assert changed(before, together) >= {"backbone", "neck"}
    for part in ("backbone", "neck", "head"):
        names = [name for name in alone if name.startswith(part) and alone[name].is_floating_point()]
        way = sum((alone[name] - before[name]).norm() for name in names)
        assert sum((alone[name] - together[name]).norm() for name in names) < 1e-3 * way


def test_a_run_ends_after_its_patience_and_stays_ended(
    small_run: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    still = with_settings(small_run, optim={"lr": 1e-12}, train={"epochs": 5, "eval_every": 1 / 6, "patience": 2})
    experiment, store = build_experiment(still), CheckpointStore(str(tmp_path / "c"))
    worker = StoppingWorker(3)
    with pytest.raises(Stopped):
        fit(experiment, worker, store)
    metrics = fit(experiment, LocalWorker(device="cpu"), store)
    meta, state = read_meta(str(store.latest())), read_state(str(store.latest()))
    assert "ended after 0.5 of 5 epochs: 2 evaluations without a higher AP (train.patience)" in caplog.text
    assert meta.step == 3  # one evaluation that is the best, and two that are no better
    assert (state["best"], state["stale"]) == (metrics["AP"], 2)
    again = LocalWorker(device="cpu")
    fit(experiment, again, store)
    assert read_meta(str(store.latest())).step == 3 and not again.reports


def test_copied_parameters_learn_at_their_own_rate_also_after_a_restart(
    small_run: dict[str, Any], start: str, tmp_path: Path
) -> None:
    experiment = build_experiment(with_settings(settings_of(small_run, start), optim={"copied_lr": 0.1}))
    store = CheckpointStore(str(tmp_path / "c"))
    with pytest.raises(Stopped):
        fit(experiment, StoppingWorker(2), store)
    stored = read_state(str(store.latest()))
    assert {group["lr_factor"] for group in stored["optimizer"]["param_groups"]} == {0.1}
    fit(experiment, LocalWorker(device="cpu"), store)
    assert read_state(str(store.latest()))["copied"] == stored["copied"]


@pytest.mark.parametrize(
    ("parts", "new", "message"),
    [
        (("nec",), (), r"train.freeze 'nec' is no part of this model; it has backbone, neck, head, towers"),
        (("backbone", "neck", "head"), (), "leaves nothing to learn"),
        (("head",), ("head.init.weight",), r"train.freeze head holds head.init.weight, which run.init_from leaves"),
    ],
)
def test_parts_that_cannot_be_frozen_are_named(
    small_run: dict[str, Any], parts: tuple[str, ...], new: tuple[str, ...], message: str
) -> None:
    experiment = build_experiment({**small_run, "schema": "coco17"})
    model = load_method("smpr").Model(experiment.model, experiment.keypoints)
    with pytest.raises(ValueError, match=message):
        Freezing(model, parts, new=new)


def test_a_part_that_no_model_has_is_an_error_before_and_in_the_training(
    small_run: dict[str, Any], start: str, tmp_path: Path
) -> None:
    experiment = build_experiment(settings_of(small_run, start, freeze=["necks"]))
    with pytest.raises(ValueError, match="'necks' is no part"):
        check_start(experiment)
    with pytest.raises(FatalError, match="'necks' is no part"):
        fit(experiment, LocalWorker(device="cpu"), CheckpointStore(str(tmp_path / "c")))


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"train": {"freeze_epochs": 1}}, ("train.freeze_epochs", "train.freeze")),
        ({"train": {"freeze": ["neck"]}}, ("train.freeze neck", "run.init_from")),
        ({"train": {"freeze": ["backbone"]}}, ("train.freeze backbone", "run.init_from", "model.backbone.pretrained")),
        ({"train": {"freeze": ["neck"], "freeze_epochs": 9}}, ("train.freeze_epochs 9", "train.epochs 1")),
        ({"train": {"patience": 2}, "data": {"eval": ""}}, ("train.patience 2", "data.eval")),
        ({"optim": {"copied_lr": 0.1}}, ("optim.copied_lr 0.1", "run.init_from")),
        ({"optim": {"copied_lr": 0.0}, "run": {"init_from": "/x"}}, ("optim.copied_lr", "train.freeze")),
        ({"run": {"init_map": "nose=snout"}}, ("run.init_map", "run.init_from")),
        ({"run": {"init_map": "nose", "init_from": "/x"}}, ("run.init_map", "CHECKPOINT=MODEL")),
        ({"run": {"init_map": "nose=a,tail=a", "init_from": "/x"}}, ("a gets two keypoints, nose and tail",)),
    ],
    ids=json.dumps,
)
def test_contradictions_name_both_settings(
    small_run: dict[str, Any], settings: dict[str, dict[str, Any]], names: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as refused:
        build_experiment(with_settings(small_run, **settings))
    assert all(name in str(refused.value) for name in names)
