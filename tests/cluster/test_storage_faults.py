"""Storage that is full, read-only or slow, and shards that go bad, while training runs."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from case import Case, Ending, place
from nodes import Cluster
from processes import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 800 MB of this test's own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=800m", "none", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk of its own: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def on_disk(two_workers: dict[str, Any], disk: Path, new_database: Path, log: Path, cluster: Cluster) -> Case:
    return Case(place(two_workers, disk, new_database), log, cluster)


def test_a_full_disk_ends_the_run_with_advice_and_the_same_command_goes_on(
    two_workers: dict[str, Any],
    disk: Path,
    new_database: Path,
    tmp_path: Path,
    one_node: Cluster,
    undisturbed: Ending,
    tell: Callable[..., None],
) -> None:
    case = on_disk(two_workers, disk, new_database, tmp_path / "log", one_node)
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    with (disk / "filler").open("wb") as filler:
        os.posix_fallocate(filler.fileno(), 0, shutil.disk_usage(disk).free)
    assert case.wait(command) == 1
    assert_explained(case, "No space left on device")
    (disk / "filler").unlink()
    case.happens()
    assert case.run() == 0, case.said
    case.assert_nothing_lost(undisturbed)
    tell("the disk is full", "room, and the same command", case.repeated(), "nothing", case.recovery())


def test_a_disk_that_becomes_read_only_does_the_same(
    two_workers: dict[str, Any],
    disk: Path,
    new_database: Path,
    tmp_path: Path,
    one_node: Cluster,
    undisturbed: Ending,
    tell: Callable[..., None],
) -> None:
    case = on_disk(two_workers, disk, new_database, tmp_path / "log", one_node)
    shutil.copy(new_database, tmp_path)
    case.settings["run"]["tracking"] = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "logs").mkdir()
    case.folder.mkdir()
    (case.folder / "logs").symlink_to(tmp_path / "logs")  # a log is open all the time: no remount would be allowed
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    wait_for(lambda: remounted(disk, "ro"), 20, lambda: "a file stays open for writing")
    assert case.wait(command) == 1
    assert_explained(case, "Read-only file system")
    assert remounted(disk, "rw")
    case.happens()
    assert case.run() == 0, case.said
    case.assert_nothing_lost(undisturbed)
    tell("the disk is read-only", "repair, and the same command", case.repeated(), "nothing", case.recovery())


def remounted(disk: Path, how: str) -> bool:
    return not subprocess.run(["mount", "-o", f"remount,{how}", disk], capture_output=True).returncode


def assert_explained(case: Case, reason: str) -> None:
    last = case.last_words()
    assert reason in last and "step-00000004 is intact" in last and "start the same command again" in last, case.said
    assert "Traceback" not in last, case.said


def test_a_slow_disk_costs_its_time(case: Case, undisturbed: Ending, tell: Callable[..., None]) -> None:
    assert case.run(slow_disk=2.0) == 0, case.said
    case.assert_nothing_lost(undisturbed)
    assert case.repeated() == 0
    tell("every file takes 2 s to reach the disk", "nothing", 0, "nothing", None)


@pytest.mark.parametrize(
    ("name", "spoil", "reason", "fault"),
    [
        ("train2017/shard-000001.tar", lambda shard: os.truncate(shard, 1000), "truncated", "a shard is truncated"),
        ("val2017/shard-000000.tar", os.unlink, "cannot open it", "a shard of the evaluation is gone"),
    ],
    ids=["truncated", "gone"],
)
def test_a_bad_shard_is_named_and_the_same_command_goes_on_once_it_is_good(
    name: str,
    spoil: Callable[[Path], None],
    reason: str,
    fault: str,
    case: Case,
    people_shards: Path,
    tmp_path: Path,
    undisturbed: Ending,
    tell: Callable[..., None],
) -> None:
    shards = Path(shutil.copytree(people_shards, tmp_path / "shards"))
    case.settings["data"] |= {"train": str(shards / "train2017"), "eval": str(shards / "val2017")}
    case.settings["scaling"]["max_failures"] = 1
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    spoil(shards / name)
    assert case.wait(command) == 1
    assert name in case.last_words() and reason in case.last_words(), case.said
    shutil.copy(people_shards / name, shards / name)
    case.happens()
    assert case.run() == 0, case.said
    case.assert_nothing_lost(undisturbed)
    tell(fault, "the shard, and the same command", case.repeated(), "nothing", case.recovery())
