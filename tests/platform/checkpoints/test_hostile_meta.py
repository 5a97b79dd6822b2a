"""Checkpoints whose meta.json or state.pt ask for more than the weights are: refused quickly and without memory."""

import hashlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_settings import small_settings, untrained_checkpoint

from posefleet.platform.checkpoints.format import CheckpointError, read_meta, read_state
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.saver import BackgroundSaver
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment, with_settings
from posefleet.platform.runtime.worker import LocalWorker
from posefleet.platform.training.state import initial_state

MEGABYTE = 1024 if sys.platform == "linux" else 2**20
"""Units of ``ru_maxrss``."""


@pytest.fixture
def settings(people_shards: Path, tmp_path: Path) -> dict[str, Any]:
    return small_settings(people_shards, tmp_path / "runs")


@pytest.fixture
def checkpoint(settings: dict[str, Any], tmp_path: Path) -> Path:
    return Path(untrained_checkpoint(settings, tmp_path / "run"))


def change(checkpoint: Path, where: str, value: Any) -> None:
    """Set the value of a dotted key of ``meta.json``."""
    file = checkpoint / "meta.json"
    file.write_text(json.dumps(with_settings(json.loads(file.read_text()), {where: value})))


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        ("experiment.model.head.channels", 2_000_000, "does not fit the configured model: its settings ask for"),
        ("experiment.model.head.channels", 10**400, "no model can be built"),
        ("experiment.model.head.channels", 10**15, "no model can be built"),
        ("experiment.model.head.tower_depth", 3_000, "ask for more than 1,"),
        ("experiment.model.head.heatmap_channels", -1, "no model can be built"),
        ("experiment.model.head.channels", "many", "head.channels"),
        ("experiment.model.head.offset_groups", 0, "by zero"),
    ],
)
def test_settings_that_ask_for_another_size_than_the_weights_have(
    checkpoint: Path, where: str, value: Any, complaint: str
) -> None:
    load_model(str(checkpoint))
    change(checkpoint, where, value)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=complaint):
        load_model(str(checkpoint))
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * MEGABYTE


@pytest.mark.parametrize(
    ("where", "value", "complaint"),
    [
        ("step", -1, "step -1"),
        ("step", True, "step True"),
        ("step", 10**400, "step a number of about 401 digits"),
        ("position", 2**60, "position"),
        ("metrics", {"AP": "0.9"}, "metric 'AP' is '0.9'"),
        ("metrics", {"AP": 10**400}, "metric 'AP' is a number of about 401 digits"),
        ("metrics", {"AP": [1]}, "metric 'AP'"),
        ("provenance", {"run_id": {"a": 1}}, "provenance 'run_id'"),
        ("step", "9" * 5_000, "no usable step"),
    ],
)
def test_numbers_out_of_range(checkpoint: Path, where: str, value: Any, complaint: str) -> None:
    change(checkpoint, where, value)
    with pytest.raises(CheckpointError, match=complaint):
        read_meta(str(checkpoint))
    assert CheckpointStore(str(checkpoint.parent)).best() is None


def test_a_number_of_more_digits_than_python_converts(checkpoint: Path) -> None:
    file = checkpoint / "meta.json"
    file.write_text(file.read_text().replace('"step": 6', f'"step": {"9" * 5_000}'))
    with pytest.raises(CheckpointError, match="no readable meta"):
        read_meta(str(checkpoint))


def put_state(checkpoint: Path, state: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    (checkpoint / "state.pt").write_bytes(buffer.getvalue())
    file = {"bytes": len(buffer.getvalue()), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    meta = json.loads((checkpoint / "meta.json").read_text())
    meta["files"]["state.pt"] = file
    (checkpoint / "meta.json").write_text(json.dumps(meta))


SHARED = torch.zeros(1_000)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ([torch.zeros(1).expand(10**6, 10**6)], r"of shape \(1000000, 1000000\) and strides \(0, 0\)"),
        ([torch.zeros(8).as_strided((10**5, 4), (0, 1))], "of which it stores 32"),
        ([SHARED.view(10, 100) for _ in range(50)], "its tensors take 200,000 bytes"),
        ([torch.eye(3).to_sparse()], "holds a torch.sparse_coo tensor"),
        ([torch.empty(10**6, 10**6, device="meta")], "tensor on meta"),
    ],
)
def test_tensors_that_show_more_than_is_stored(checkpoint: Path, tensors: list[torch.Tensor], complaint: str) -> None:
    put_state(checkpoint, {"optimizer": {"state": {"deep": tuple(tensors)}}})
    with pytest.raises(CheckpointError, match=complaint):
        read_state(str(checkpoint))


def test_tied_tensors_are_read(checkpoint: Path) -> None:
    put_state(checkpoint, {"a": SHARED, "b": SHARED[:10], "c": SHARED.view(10, 100).T})
    assert read_state(str(checkpoint))["c"].shape == (100, 10)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("optimizer"),
        lambda state: state.update(optimizer=[1]),
        lambda state: state["optimizer"]["state"].update({0: {"momentum_buffer": torch.zeros(3)}}),
        lambda state: state.update(stale="often"),
        lambda state: state.update(best=[1]),
    ],
)
def test_a_state_that_does_not_fit_the_run(
    settings: dict[str, Any], tmp_path: Path, spoil: Callable[[Any], Any]
) -> None:
    experiment, store = build_experiment(settings), CheckpointStore(str(tmp_path / "checkpoints"))
    worker = LocalWorker(device="cpu")
    with BackgroundSaver(store) as saver:
        initial_state(experiment, worker, store).save(saver, experiment, {})
        saver.wait()
    path = str(store.latest())
    assert initial_state(experiment, worker, store).step == 0
    state = read_state(path)
    spoil(state)
    put_state(Path(path), state)
    with pytest.raises(CheckpointError, match=r"state\.pt does not fit the configured training"):
        initial_state(experiment, worker, store)
