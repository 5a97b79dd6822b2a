"""Nodes that die, and cables that are pulled."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from case import Case, Ending, place
from nodes import Cluster, Network, running_cluster
from processes import wait_for

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A cluster without nodes."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def on_nodes(two_workers: dict[str, Any], cluster: Cluster, new_database: Path, tmp_path: Path) -> Case:
    """The run of two workers on that cluster."""
    return Case(place(two_workers, tmp_path, new_database), tmp_path / "log", cluster)


def test_a_killed_node_is_replaced_by_another(
    on_nodes: Case, cluster: Cluster, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    case = on_nodes
    cluster.add(cpus=0)
    for _ in range(3):
        cluster.add(cpus=1)
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    assert cluster.node_of(case.worker(0)) is not cluster.node_of(case.worker(1))
    cluster.node_of(case.worker(0)).kill()
    case.happens()
    assert case.wait(command) == 0, case.said
    case.assert_nothing_lost(undisturbed)
    tell(
        "power cut of the node of rank 0; a spare node is there", "nothing", case.repeated(), "nothing", case.recovery()
    )


def test_head_and_command_die_and_the_same_command_goes_on_on_a_new_cluster(
    on_nodes: Case, cluster: Cluster, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    case = on_nodes
    cluster.add(cpus=2)
    command = case.start(pace=0.5)
    case.wait_for_step(7)
    members = cluster.head.processes()
    command.kill()
    cluster.kill()
    case.happens()
    assert psutil.wait_procs(members, 20)[1] == []
    case.wait(command)
    with running_cluster() as other:
        other.add(cpus=2)
        case.cluster = other
        assert case.run() == 0, case.said
    case.assert_nothing_lost(undisturbed)
    tell("power cut of the head with the command", "the same command on a new cluster", case.repeated(), "nothing",
         case.recovery())  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ network


@pytest.fixture
def network() -> Iterator[Network]:
    """A switch of this test's own."""
    try:
        network = Network(f"pf{os.getpid()}")
    except OSError as refused:
        pytest.skip(f"no network namespaces here: {refused}")
    yield network
    network.remove()


def test_a_cable_that_is_out_for_some_seconds_ends_nothing(
    network: Network, on_nodes: Case, cluster: Cluster, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    case = on_nodes
    for _ in range(2):
        cluster.add(cpus=1, host=network.add())
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    network.pull(network.hosts[1])
    case.happens()
    time.sleep(8)
    network.plug(network.hosts[1])
    assert case.wait(command) == 0, case.said
    case.assert_nothing_lost(undisturbed)
    assert case.repeated() == 0
    tell("the cable between two nodes is out for 8 s", "nothing", 0, "nothing", case.recovery())


def test_a_cable_that_stays_out_costs_the_node_behind_it(
    network: Network, on_nodes: Case, cluster: Cluster, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    case = on_nodes
    for _ in range(2):
        cluster.add(cpus=1, host=network.add())
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    cut = cluster.nodes[1]
    cut_off = psutil.Process(next(pid for pid in map(case.worker, (0, 1)) if cluster.node_of(pid) is cut))
    network.pull(cut.host)
    case.happens()
    cluster.add(cpus=1, host=network.hosts[0])
    assert case.wait(command) == 0, case.said
    case.assert_nothing_lost(undisturbed)
    wait_for(lambda: not cut_off.is_running(), 600, lambda: "the worker that was cut off still lives")
    tell("the cable between two nodes stays out; a spare node comes", "nothing", case.repeated(), "nothing",
         case.recovery())  # fmt: skip
