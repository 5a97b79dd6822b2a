"""Clusters and runs that the cases share, and the table of what they found."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from case import Case, Ending, place
from nodes import Cluster, running_cluster
from small_settings import small_settings

COLUMNS = ("fault", "what it took", "steps done again", "lost", "goes on after")


@pytest.fixture(scope="session")
def one_node() -> Iterator[Cluster]:
    """A node of two CPUs, for faults that leave nodes alone."""
    with running_cluster() as cluster:
        cluster.add(cpus=2)
        yield cluster


@pytest.fixture(scope="session")
def two_workers(people_shards: Path) -> dict[str, Any]:
    """Twelve steps of two workers; checkpoints at 4, 6, 8 and 12, evaluations at 6 and 12, looks at every second."""
    settings = small_settings(people_shards, Path("of its own"))
    settings["data"] |= {"batch_size": 2, "eval_batch_size": 2}
    settings["train"] |= {"epochs": 2, "log_every": 2, "eval_every": 1, "checkpoint_every": 4}
    settings["scaling"] = {"num_workers": 2, "cpus_per_worker": 1, "max_failures": 2}
    return settings


@pytest.fixture(scope="session")
def undisturbed(
    two_workers: dict[str, Any], one_node: Cluster, new_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Ending:
    """What the run of ``two_workers`` leaves when nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    case = Case(place(two_workers, folder, new_database), folder / "log", one_node)
    assert case.run() == 0, case.said
    case.assert_nothing_lost(case.ending())
    return case.ending()


@pytest.fixture
def case(two_workers: dict[str, Any], one_node: Cluster, new_database: Path, tmp_path: Path) -> Case:
    """The same run, in a folder of this test's own."""
    return Case(place(two_workers, tmp_path, new_database), tmp_path / "log", one_node)


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Gives the table a row: fault, what it took, steps done again, what was lost, seconds until it went on."""

    def row(fault: str, took: str, again: int | str, lost: str, seconds: float | None) -> None:
        record_property("fault", [fault, took, str(again), lost, "" if seconds is None else f"{seconds:.0f} s"])

    return row


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table, as Markdown."""
    reports = terminalreporter.getreports("passed")
    rows = [value for report in reports for name, value in report.user_properties if name == "fault"]
    if rows:
        terminalreporter.section("faults")
        for cells in (COLUMNS, ["---"] * len(COLUMNS), *rows):
            terminalreporter.write_line(f"| {' | '.join(cells)} |")
