"""What interruptions cost: computed by hand with clocks of the test's own, and counted in trainings that stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from posefleet.platform.monitoring import interruptions
from posefleet.platform.monitoring.interruptions import InterruptionLog, Losses, read_interruptions, summary
from posefleet.platform.runtime.lock import FolderLock


class Clock:
    """A clock of one machine, and what its people call the time."""

    def __init__(self) -> None:
        self.now, self.wall = 100.0, 1000.0

    def pass_(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interruptions, "_clock", lambda: clock.now)
    monkeypatch.setattr(interruptions, "_wall", lambda: clock.wall)
    return clock


@pytest.fixture(params=["disk", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "disk":
        return str(tmp_path / "run")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fsspec.filesystem("memory").store.clear()
    return "memory://bucket/run"


def begun(folder: str, step: int, clock: Clock, *, devices: int, loading: float) -> InterruptionLog:
    """Workers that take ``loading`` seconds until they are ready to go on after ``step``."""
    log = InterruptionLog(folder, devices=devices)
    clock.pass_(loading)
    log.begin(step)
    return log


def take(log: InterruptionLog, steps: range, clock: Clock, seconds: float = 2.0) -> list[Any]:
    found = []
    for step in steps:
        clock.pass_(seconds)
        found.append(log.step_taken(step))
    return found


def test_the_cost_of_an_interruption_by_hand(folder: str, clock: Clock) -> None:
    first = begun(folder, 0, clock, devices=4, loading=10)
    assert take(first, range(1, 6), clock) == [None] * 5
    first.saved(5)
    take(first, range(6, 9), clock)  # three steps of two seconds that no checkpoint has; then it is killed
    clock.pass_(3600)  # nobody has its devices
    second = begun(folder, 5, clock, devices=3, loading=20)
    (found, *rest) = take(second, range(6, 10), clock)
    assert rest == [None] * 3
    assert (found.number, found.reached, found.resumed_from, found.steps_again) == (1, 8, 5, 3)
    assert (found.seconds_again, found.seconds_idle, found.seconds_restart) == (6.0, 0.0, 22.0)
    assert found.device_seconds == 4 * 6 + 3 * 22
    assert read_interruptions(folder) == [found]


def test_steps_that_were_taken_while_a_checkpoint_was_written_are_lost_with_it(tmp_path: Path, clock: Clock) -> None:
    folder = str(tmp_path)
    first = begun(folder, 0, clock, devices=1, loading=10)
    take(first, range(1, 8), clock)  # steps 6 and 7 while the checkpoint of step 5 is written
    first.saved(5, ago=4.0)
    second = begun(folder, 5, clock, devices=1, loading=1)
    (found,) = take(second, range(6, 7), clock)
    assert (found.steps_again, found.seconds_again) == (2, 4.0)


def test_workers_that_the_same_command_replaces_idle_until_they_start(tmp_path: Path, clock: Clock) -> None:
    folder = str(tmp_path)
    with FolderLock(folder, "run a"):
        take(begun(folder, 0, clock, devices=2, loading=1), range(1, 4), clock)
        clock.pass_(7)
        second = begun(folder, 0, clock, devices=2, loading=5)
        (found,) = take(second, range(1, 2), clock)
    assert (found.seconds_again, found.seconds_idle, found.seconds_restart) == (6.0, 7.0, 7.0)
    assert found.device_seconds == 2 * (6 + 7 + 7)


def test_a_clock_that_is_set_back_makes_no_loss_negative(tmp_path: Path, clock: Clock) -> None:
    folder = str(tmp_path)
    with FolderLock(folder, "run a"):
        take(begun(folder, 0, clock, devices=1, loading=1), range(1, 4), clock)
        clock.wall -= 1e6  # rank 0 is on another machine now
        (found,) = take(begun(folder, 0, clock, devices=1, loading=1), range(1, 2), clock)
    assert found.seconds_idle == 0


def test_interruptions_before_the_first_new_checkpoint_count_what_each_attempt_lost(folder: str, clock: Clock) -> None:
    for attempt, last in enumerate((8, 6, 9)):
        log = begun(folder, 4 if attempt else 0, clock, devices=1, loading=1)
        take(log, range(5, last + 1) if attempt else range(1, last + 1), clock)
        if not attempt:
            log.saved(4)  # in truth between steps; what counts is that 5 to 8 are not in it
            log._now.saved = 4
            take(log, range(5, 9), clock)
    assert [one.steps_again for one in read_interruptions(folder)] == [4, 2]
    assert Losses.of(read_interruptions(folder)).steps_again == 6


def test_the_end_is_no_interruption_and_a_stop_with_a_checkpoint_repeats_no_step(folder: str, clock: Clock) -> None:
    log = begun(folder, 0, clock, devices=1, loading=1)
    take(log, range(1, 4), clock)
    log.saved(3)
    log.close()  # stopped on request
    log = begun(folder, 3, clock, devices=1, loading=1)
    take(log, range(4, 7), clock)
    log.saved(6)
    log.ended()
    take(begun(folder, 6, clock, devices=1, loading=1), range(7, 9), clock)  # more epochs
    assert [(one.steps_again, one.seconds_again) for one in read_interruptions(folder)] == [(0, 0.0)]


def test_a_bucket_knows_what_the_node_that_was_lost_had_told_it(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.filesystem("memory").store.clear()
    folder = "memory://bucket/lost"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "one"))
    log = begun(folder, 0, clock, devices=1, loading=1)
    take(log, range(1, 21), clock)  # the bucket is told after 30 s
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "two"))
    (found,) = take(begun(folder, 0, clock, devices=1, loading=1), range(1, 2), clock)
    assert 14 <= found.reached < 20


def test_a_damaged_progress_ends_nothing(tmp_path: Path, clock: Clock) -> None:
    take(begun(str(tmp_path), 0, clock, devices=1, loading=1), range(1, 3), clock)
    (tmp_path / "progress.json").write_text('{"step": ')
    (tmp_path / "interruptions.json").write_text("[1")
    assert take(begun(str(tmp_path), 0, clock, devices=1, loading=1), range(1, 3), clock) == [None, None]
    assert json.loads(summary(str(tmp_path), status="FINISHED"))["interruptions"]["count"] == 0


def test_a_disk_that_fails_ends_nothing(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "progress.json").mkdir()
    assert take(begun(str(tmp_path), 0, clock, devices=1, loading=1), range(1, 3), clock) == [None, None]


@pytest.fixture
def crash_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes a training end as if killed when it has taken so many steps in all."""
    from posefleet.platform.training import loop

    step, taken = loop.train_step, [0]

    def plan(number: int) -> None:
        def counted(*args: Any, **options: Any) -> Any:
            if taken[0] == number:
                raise KeyboardInterrupt
            taken[0] += 1
            return step(*args, **options)

        monkeypatch.setattr(loop, "train_step", counted)

    plan.taken = taken  # type: ignore[attr-defined]
    return plan


def test_a_run_takes_its_last_step_and_those_done_again(
    tracked_run: dict[str, Any], crash_at: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The number of optimiser steps that were really taken is the one that the run reports."""
    from posefleet.platform.config.loading import build_experiment
    from posefleet.platform.tracking.runs import read_metrics
    from posefleet.platform.training.launch import train
    from posefleet.platform.training.run import read_run

    tracked_run["train"] |= {"epochs": 2, "checkpoint_every": 4}
    experiment = build_experiment(tracked_run)
    folder = f"{experiment.run.storage}/small"
    for number in (3, 10, 13):  # no checkpoint yet; after step 7, with one of step 6; after step 9, with one of step 8
        crash_at(number)
        with pytest.raises(KeyboardInterrupt):
            train(experiment)
    crash_at(1000)
    assert train(experiment) == 0
    found = read_interruptions(folder)
    assert [(one.resumed_from, one.reached) for one in found] == [(0, 3), (6, 7), (8, 9)]
    assert crash_at.taken[0] == 12 + sum(one.steps_again for one in found)
    run = read_run(folder)
    assert run
    metrics = read_metrics(run.tracking_uri, run.run_id, ["interruptions/steps_again", "interruptions/device_seconds"])
    assert metrics["interruptions/steps_again"] == [(1, 3.0), (2, 1.0), (3, 1.0)]
    assert metrics["interruptions/device_seconds"] == [(one.number, one.device_seconds) for one in found]
    written = json.loads(Path(folder, "report", "summary.json").read_text())
    assert (written["status"], written["step"]) == ("FINISHED", 12)
    assert written["interruptions"] == {
        "count": 3,
        "steps_again": 5,
        "device_seconds": pytest.approx(sum(one.device_seconds for one in found), abs=0.01),
    }
    assert "interrupted 3 times; 5 steps done again, " in capsys.readouterr().err
    assert train(experiment) == 0 and read_interruptions(folder) == found, "a run that is over is not interrupted"
