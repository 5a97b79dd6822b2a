"""Trainings that stall on purpose."""

import ctypes
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.multiprocessing as mp
from fit_process import in_processes
from small_settings import with_settings

from posefleet.platform.checkpoints.store import CheckpointStore
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.monitoring.watchdog import EXIT_STALLED, RankStatus, Watchdog, describe_stall
from posefleet.platform.runtime import logs
from posefleet.platform.runtime.activity import Activity, Phase


def status(rank: int, step: int, phase: Phase, seconds: float = 60.0) -> RankStatus:
    return RankStatus(rank, f"node{rank}", step, phase.value, seconds)


def test_the_rank_that_does_not_wait_is_behind() -> None:
    output = [status(0, 7, Phase.OTHERS), status(1, 7, Phase.DATA, 61.4), status(2, 7, Phase.OTHERS)]
    assert describe_stall(output, 3) == (
        "rank 1 on node1 is behind, after step 7, in phase 'waiting for data' for 61 s; rank 0, 2 waits for it"
    )


def test_a_rank_that_says_nothing_is_named() -> None:
    assert describe_stall([status(0, 7, Phase.OTHERS)], 2) == (
        "rank 1 says nothing: frozen, gone, or without the run's folder; rank 0 waits for it"
    )


def test_where_all_wait_it_is_the_network() -> None:
    assert "network" in describe_stall([status(rank, 7, Phase.OTHERS) for rank in (0, 1)], 2)


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dog(watch: Activity, folder: Path, *, rank: int = 0, world_size: int = 1, stall_s: float = 0.4) -> Watchdog:
    watch.beat()
    watch.step = 7
    return Watchdog(
        watch, stall_s=stall_s, end_s=0, rank=rank, world_size=world_size, node=f"node{rank}", folder=str(folder)
    )


def wait_for(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def messages(folder: Path, level: str) -> list[str]:
    return [line["message"] for line in logged(folder / "logs" / "rank0.jsonl") if line["level"] == level]


def test_a_stall_is_reported_with_stacks_and_so_is_its_end(tmp_path: Path) -> None:
    watch = Activity()
    watch.enter(Phase.DATA)
    # The next report of the same stall would come two seconds later.
    with logs.log_to_folder(str(tmp_path), "rank0"), dog(watch, tmp_path, stall_s=2.0).watching():
        wait_for(lambda: bool(messages(tmp_path, "ERROR")))
        watch.beat()
        wait_for(lambda: bool(messages(tmp_path, "WARNING")))
    (output,) = messages(tmp_path, "ERROR")
    assert "rank 0 on node0 stands still, after step 7, in phase 'waiting for data'" in output
    stacks = (tmp_path / "logs" / "stall-rank0.txt").read_text()
    assert stacks.startswith("rank 0 on node0: waiting for data")
    assert "thread MainThread" in stacks and "wait_for" in stacks
    assert messages(tmp_path, "WARNING") == ["rank 0 goes on, after step 7"]


def test_ranks_exchange_status_in_the_folder_and_one_reports(tmp_path: Path) -> None:
    first, second = Activity(), Activity()
    first.enter(Phase.OTHERS)
    second.enter(Phase.COMPUTE)
    with (
        logs.log_to_folder(str(tmp_path), "rank0"),
        dog(first, tmp_path, rank=0, world_size=2, stall_s=2.0).watching(),
        dog(second, tmp_path, rank=1, world_size=2, stall_s=2.0).watching(),
    ):
        wait_for(lambda: bool(messages(tmp_path, "ERROR")))
    (output,) = messages(tmp_path, "ERROR")
    assert "rank 1 on node1 is behind, after step 7, in phase 'forward and backward'" in output
    assert "rank 0 waits for it" in output


@pytest.mark.parametrize(
    ("trouble", "phase"),
    [("data", Phase.DATA), ("compute", Phase.COMPUTE)],
)
@pytest.mark.slow
def test_a_hung_rank_is_named_and_its_worker_ends(
    small_run: dict[str, Any], tmp_path: Path, trouble: str, phase: Phase
) -> None:
    train = {"stall_s": 20.0, "stall_end_s": 60.0, "checkpoint_every": 1}
    settings = with_settings(small_run, data={"batch_size": 2, "eval": ""}, train=train)
    with pytest.raises(mp.ProcessExitedException) as ended:
        in_processes(2, settings, tmp_path, trouble=f"hang in {trouble}")
    assert ended.value.exit_code == EXIT_STALLED
    *_, output = [
        line for rank in (0, 1) for line in logged(tmp_path / f"logs/rank{rank}.jsonl") if line["level"] == "ERROR"
    ]
    assert output["rank"] == 0
    assert f"is behind, after step 2, in phase {phase.value!r}" in output["message"]
    assert "rank 1 on" in output["message"] and "rank 0 waits for it" in output["message"]
    assert "fit_process.py" in (tmp_path / "logs" / "stall-rank1.txt").read_text()
    assert CheckpointStore(str(tmp_path / "checkpoints")).latest().endswith("000002")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [("compute", "it computes"), pytest.param("data", "it waits for data", marks=pytest.mark.slow)],
)
def test_a_slow_rank_is_named(small_run: dict[str, Any], tmp_path: Path, trouble: str, cause: str) -> None:
    settings = with_settings(small_run, data={"batch_size": 2, "eval": ""}, train={"epochs": 4 / 3, "log_every": 1})
    in_processes(2, settings, tmp_path, trouble=f"slow in {trouble}")
    lines = logged(tmp_path / "logs" / "rank0.jsonl")
    output = next(line["message"] for line in lines if "is slow" in line["message"])
    assert output.startswith("rank 1 on ") and output.endswith(cause)


def test_a_process_that_holds_the_lock_is_reported_by_faulthandler(tmp_path: Path) -> None:
    with dog(Activity(), tmp_path, rank=1, world_size=2).watching():
        time.sleep(0.2)
        ctypes.PyDLL(None).usleep(1_200_000)  # unlike CDLL, keeps the lock
    output = (tmp_path / "logs" / "frozen-rank1.txt").read_text()
    assert "test_a_process_that_holds_the_lock" in output


def test_nothing_is_left_where_nothing_stood_still(tmp_path: Path) -> None:
    with dog(Activity(), tmp_path, stall_s=60.0).watching():
        pass
    assert list((tmp_path / "logs").iterdir()) == []


def test_limits_that_make_no_sense(small_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"train.stall_end_s 5.0 must be 0, or above train.stall_s \(10.0\)"):
        build_experiment(with_settings(small_run, train={"stall_s": 10.0, "stall_end_s": 5.0}))
