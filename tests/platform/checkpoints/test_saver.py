"""Checkpoints are written while the training goes on, one at a time, and hold the state of their own step."""

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from posefleet.platform.checkpoints.format import CheckpointError, Meta, read_state, read_weights
from posefleet.platform.checkpoints.resolve import POINTER, find_checkpoint, write_pointer
from posefleet.platform.checkpoints.saver import BackgroundSaver
from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.experiment import Experiment
from posefleet.platform.config.loading import build_experiment


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return build_experiment({"method": "smpr", "schema": "coco17", "data": {"train": "x"}})


class SlowStore(CheckpointStore):
    """Writes nothing before it is told to; can be told to fail."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.error: Exception | None = None
        self.at_once = self.most_at_once = 0

    def save(self, meta: Meta, weights: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> str:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.begun.release()
        self.go.acquire()
        self.at_once -= 1
        if self.error:
            raise self.error
        return super().save(meta, weights, state)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SlowStore]:
    store = SlowStore(str(tmp_path))
    yield store
    for _ in range(9):
        store.go.release()


def begin(saver: BackgroundSaver, experiment: Experiment, step: int, network: torch.nn.Module, optimizer: Any) -> None:
    weights = saver.copy(network.state_dict(), "weights")
    state = saver.copy({"optimizer": optimizer.state_dict(), "copied": ["a"]}, "state")
    saver.save(Meta(experiment=experiment, step=step, position=step, metrics={}, provenance={}), weights, state)


def trained(steps: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    for _ in range(steps):
        step(network, optimizer)
    return network, optimizer


def step(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    network(torch.ones(1, 3, 4, 4)).square().sum().backward()
    optimizer.step()


def test_a_checkpoint_has_the_state_of_its_step_although_training_goes_on(
    store: SlowStore, experiment: Experiment, tmp_path: Path
) -> None:
    """Byte for byte the files that are written while the training waits."""
    network, optimizer = trained(2)
    with BackgroundSaver(store) as saver:
        begin(saver, experiment, 2, network, optimizer)
        store.begun.acquire()
        step(network, optimizer)  # while the checkpoint is being written
        store.go.release()
        saver.wait()
    assert store.names() == ["step-00000002"]
    network, optimizer = trained(2)
    still = CheckpointStore(str(tmp_path / "still"))
    meta = Meta(experiment=experiment, step=2, position=2, metrics={}, provenance={})
    path = still.save(meta, network.state_dict(), {"optimizer": optimizer.state_dict(), "copied": ["a"]})
    assert torch.equal(read_weights(path)["weight"], network.state_dict()["weight"])
    for file in ("model.safetensors", "state.pt", "meta.json"):
        assert Path(path, file).read_bytes() == Path(store.path_of(2), file).read_bytes(), file
    assert read_state(path)["optimizer"]["state"][0]["exp_avg"].is_contiguous(memory_format=torch.channels_last)


def test_one_checkpoint_at_a_time_is_written(store: SlowStore, experiment: Experiment) -> None:
    """The second one waits for the first, so there is one copy in memory, and the order is that of the steps."""
    network, optimizer = trained(1)
    with BackgroundSaver(store) as saver:
        begin(saver, experiment, 1, network, optimizer)
        store.begun.acquire()
        second = threading.Thread(target=begin, args=(saver, experiment, 2, network, optimizer))
        second.start()
        second.join(0.2)
        assert second.is_alive() and store.names() == []
        store.go.release()
        second.join()
        assert store.names() == ["step-00000001"]
        store.go.release()
        saver.wait()
    assert store.names() == ["step-00000001", "step-00000002"] and store.most_at_once == 1


@pytest.mark.parametrize("error", [CheckpointError("the disk is full"), RuntimeError("the disk is full")])
def test_a_failed_write_is_an_error_of_the_next_one(store: SlowStore, experiment: Experiment, error: Exception) -> None:
    network, optimizer = trained(1)
    store.error = error
    with BackgroundSaver(store) as saver:
        begin(saver, experiment, 1, network, optimizer)
        assert not saver.failed
        store.go.release()
        with pytest.raises(CheckpointError, match="the disk is full"):
            begin(saver, experiment, 2, network, optimizer)
        assert not saver.failed
        store.error = None
        store.go.release()
        begin(saver, experiment, 3, network, optimizer)
        saver.wait()
    assert store.names() == ["step-00000003"]


def test_an_error_of_the_training_waits_for_the_checkpoint(store: SlowStore, experiment: Experiment) -> None:
    network, optimizer = trained(1)
    store.go.release()
    with pytest.raises(ZeroDivisionError), BackgroundSaver(store) as saver:
        begin(saver, experiment, 1, network, optimizer)
        raise ZeroDivisionError
    assert store.names() == ["step-00000001"]


def test_a_pointer_stands_for_the_checkpoint(tmp_path: Path, experiment: Experiment) -> None:
    network, _ = trained(1)
    meta = Meta(experiment=experiment, step=1, position=1, metrics={}, provenance={})
    path = CheckpointStore(str(tmp_path / "run")).save(meta, network.state_dict(), {})
    folder = tmp_path / "pointer"
    folder.mkdir()
    write_pointer(str(folder), path)
    assert find_checkpoint(str(folder)) == path
    (folder / POINTER).write_text('["x"]')
    with pytest.raises(CheckpointError, match=rf"{POINTER} does not say where the checkpoint is"):
        find_checkpoint(str(folder))
