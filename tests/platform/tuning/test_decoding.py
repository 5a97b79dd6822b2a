"""Decoding again from kept network outputs gives what a whole evaluation gives."""

import dataclasses
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from small_models import small

from posefleet.data.evaluation.evaluate import Evaluation
from posefleet.models import available_methods, load_method
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.inference.evaluate import evaluate
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.loop import fit
from posefleet.platform.tuning.decoding import Redecoder
from posefleet.platform.tuning.space import apply

CPU = torch.device("cpu")
OTHER: dict[str, dict[str, Any]] = {
    "smpr": {"model.score.exponent": 0.3, "model.decode.nms": "hard", "model.decode.score_floor": 0.001},
    "pfs": {"model.quality": "none", "model.decode.nms_threshold": 0.5},
    "inspose": {"model.maps.bicubic": False, "model.decode.max_poses": 3},
    "logocap": {"model.adapt.top_weight": 1.0, "model.decode.flip_average": True},
    "detposenet": {"model.filter.mode": "none", "model.output.keypoint_floor": 0.0},
}
"""Settings of decoding that change the poses of an untrained network."""


@pytest.fixture
def checkpoint(small_run: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, Experiment]:
    """A model of a method after a fifth of an epoch, with settings under which it finds poses."""
    method: str = request.param
    settings = small_run | {"method": method, "model": dataclasses.asdict(small(method))}  # type: ignore[call-overload]
    split, settings["data"]["eval"], settings["train"]["epochs"] = settings["data"]["eval"], "", 0.2
    store = CheckpointStore(str(tmp_path / "checkpoints"))
    fit(build_experiment(settings), LocalWorker(device="cpu"), store)
    settings["data"]["eval"] = split
    path = store.latest()
    assert path is not None
    return path, build_experiment(settings)


def whole(path: str, experiment: Experiment) -> Evaluation:
    model, _ = load_model(path, experiment=experiment)
    result = evaluate(model, experiment, LocalWorker(device="cpu"))
    assert result is not None
    return result


def assert_equal(ours: Evaluation, theirs: Evaluation) -> None:
    assert ours.statistics == pytest.approx(theirs.statistics, abs=1e-9, nan_ok=True)
    np.testing.assert_allclose(ours.keypoint_oks, theirs.keypoint_oks, atol=1e-9)  # an untrained network has some
    assert ours.protocol == theirs.protocol and ours.notes == theirs.notes


@pytest.mark.parametrize("checkpoint", sorted(OTHER), indirect=True)
def test_other_settings_score_as_in_an_evaluation_of_their_own(checkpoint: tuple[str, Experiment]) -> None:
    path, experiment = checkpoint
    redecoder = Redecoder(path, experiment, CPU)
    first = redecoder.evaluate(experiment)
    assert_equal(first, whole(path, experiment))
    for settings in (OTHER[experiment.method], {"evaluate.flip": True}):
        assert all(redecoder.may_vary(name) for name in settings)
        other = apply(experiment, settings)
        found = redecoder.evaluate(other)
        assert_equal(found, whole(path, other))
        assert found.protocol != first.protocol or not np.array_equal(found.keypoint_oks, first.keypoint_oks)
    assert_equal(redecoder.evaluate(experiment), first)


@pytest.mark.parametrize("checkpoint", ["smpr"], indirect=True)
def test_the_network_runs_once_and_only_for_the_images_asked_for(checkpoint: tuple[str, Experiment]) -> None:
    path, experiment = checkpoint
    experiment = apply(experiment, {"data.eval_batch_size": 2})
    redecoder = Redecoder(path, experiment, CPU, images=3)
    first = redecoder.evaluate(experiment)
    assert first.protocol.images == 4  # whole batches
    assert redecoder.kept_bytes > 0
    with patch.object(redecoder.model.backbone, "forward", side_effect=AssertionError):
        redecoder.evaluate(apply(experiment, {"model.decode.nms": "hard"}))


@pytest.mark.parametrize("checkpoint", ["smpr"], indirect=True)
def test_outputs_that_fill_the_memory_are_refused(checkpoint: tuple[str, Experiment]) -> None:
    path, experiment = checkpoint
    with patch("posefleet.platform.tuning.decoding._free_bytes", return_value=100_000):
        redecoder = Redecoder(path, experiment, CPU)
    with pytest.raises(
        MemoryError, match="GiB for 1 batches, more than half of the memory that was free; give a smaller --images"
    ):
        redecoder.evaluate(experiment)


@pytest.mark.parametrize("method", available_methods())
def test_decoding_names_settings_that_exist(method: str) -> None:
    model = load_method(method).Model
    config = load_method(method).Config()
    for name in getattr(model, "decoding", ()):
        value: Any = config
        for part in name.split("."):
            value = getattr(value, part)
