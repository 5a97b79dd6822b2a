"""Requests for checkpoints, on their way from Ray to the loop; whole clusters are in tests/cluster/."""

import re
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from small_settings import small_settings

from posefleet.platform.config.loading import build_experiment
from posefleet.platform.training import elastic
from posefleet.platform.training import ray_trainer as train
from posefleet.platform.training.run import Run


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

    callback = elastic.SaveBeforeResize(run)
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

    monkeypatch.setattr(elastic, "GROWTH_SECONDS", 0.2)
    growing = ResizingState(scaling_decision=ResizeDecision(num_workers=2, resources_per_worker={"CPU": 1}))
    elastic.SaveBeforeResize(run).after_controller_state_update(RunningState(), growing)
    assert not run.requested("save"), "the next workers would answer a request that nobody waits for"


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
    run.request("stop")
    assert worker.stop_requested()
    monkeypatch.setattr(train, "ASK_SECONDS", 60.0)
    assert worker.stop_requested(), "the loop asks twice: whether to look, and when it looks"


def test_a_ray_without_the_private_modules_ends_an_elastic_run_with_advice(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings(tmp_path, tmp_path)
    settings["scaling"] |= {"num_workers": 2, "min_workers": 1}
    monkeypatch.delitem(sys.modules, "posefleet.platform.training.elastic")
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.execution.callback", None)
    monkeypatch.setattr(train, "start_ray", lambda: pytest.fail("it must be output before anything starts"))
    outcome = train.train_on_ray(build_experiment(settings), run, None)
    assert "scaling.min_workers 1" in outcome.error
    assert f"Ray {ray.__version__} " in outcome.error and f"Ray {train.RAY_TRIED}:" in outcome.error


def test_only_elastic_runs_import_private_modules_of_ray() -> None:
    """Else a Ray that has moved them would also end runs with a fixed number of workers."""
    folder = Path(train.__file__).parent
    private = re.compile(r"^\s*(from|import) ray\S*\._", re.MULTILINE)
    assert [path.name for path in folder.rglob("*.py") if private.search(path.read_text())] == ["elastic.py"]
    top = re.compile(r"^(from|import) \S*elastic\b", re.MULTILINE)
    assert not top.search(Path(train.__file__).read_text())


def test_reports_are_logged_under_the_name_that_training_silences() -> None:
    from ray.train.v2._internal.execution import context

    assert context.__file__ == train.REPORT_LOGGER == context.logger.name
