"""Requests for checkpoints, on their way from Ray to the loop; whole clusters are in tests/cluster/."""

import threading
import time
from pathlib import Path

import pytest

from posefleet.platform import train
from posefleet.platform.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(folder=str(tmp_path), run_id="r", tracking_uri="sqlite:///nowhere.db")


@pytest.fixture
def worker(run: Run, monkeypatch: pytest.MonkeyPatch) -> train.RayWorker:
    monkeypatch.setattr(train, "get_device", lambda: "cpu")
    monkeypatch.setattr(train, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(train.ray.train, "get_preemption_info", lambda: None)
    return train.RayWorker(run, None)


def test_workers_save_before_ray_ends_them_to_start_more(run: Run, worker: train.RayWorker) -> None:
    from ray.train.v2._internal.execution.controller.state import ResizingState, RunningState
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

    callback = train._SaveBeforeResize(run)
    callback.after_controller_state_update(RunningState(), RunningState())
    assert not worker.checkpoint_requested()

    growing = ResizingState(scaling_decision=ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1}))
    controller = threading.Thread(target=callback.after_controller_state_update, args=(RunningState(), growing))
    controller.start()
    while not worker.checkpoint_requested():
        time.sleep(0.01)
    assert controller.is_alive(), "the workers were ended before they could save"
    worker.saved()
    controller.join(5)
    assert not controller.is_alive()
    assert not worker.checkpoint_requested()


def test_workers_that_cannot_save_are_not_waited_for_forever(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.controller.state import ResizingState, RunningState
    from ray.train.v2._internal.execution.scaling_policy import ResizeDecision

    monkeypatch.setattr(train, "GROWTH_SECONDS", 0.2)
    growing = ResizingState(scaling_decision=ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1}))
    train._SaveBeforeResize(run).after_controller_state_update(RunningState(), growing)
    assert not run.checkpoint_requested(), "the next workers would answer a request that nobody waits for"


def test_while_a_node_is_about_to_go_checkpoints_follow_each_other(
    worker: train.RayWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.ray.train, "get_preemption_info", object)
    assert worker.checkpoint_requested()
    worker.saved()
    assert not worker.checkpoint_requested()
    monkeypatch.setattr(train, "NOTICE_SECONDS", 0.0)
    assert worker.checkpoint_requested()


def test_a_request_to_stop_is_remembered(run: Run, worker: train.RayWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    run.request_stop()
    assert worker.stop_requested()
    monkeypatch.setattr(train, "ASK_SECONDS", 60.0)
    assert worker.stop_requested(), "the loop asks twice: whether to look, and when it looks"
