"""An MLflow server that goes away while training runs."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from case import Case, Ending
from mlflow_server import Server

from posefleet.platform.tracking.client import default_uri

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200), pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def server(case: Case, new_database: Path, tmp_path: Path) -> Iterator[Server]:
    """The server that the case's run is tracked by."""
    store = tmp_path / "store"
    store.mkdir()
    shutil.copy(new_database, store)
    server = Server(store, default_uri(str(store)))
    server.start()
    case.settings["run"]["tracking"] = server.uri
    yield server
    server.stop()


def test_a_server_that_comes_back_has_everything(
    case: Case, server: Server, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    command = case.start(pace=12)
    case.wait_for_step(1)
    server.stop()
    case.wait_for_step(11)
    server.start()
    assert case.wait(command) == 0, case.said
    assert "training goes on, events are kept" in case.said
    case.assert_nothing_lost(undisturbed)
    assert case.repeated() == 0
    tell("MLflow is down for two minutes, steps 1 to 11", "nothing", 0, "nothing", None)


def test_a_server_that_is_down_at_the_end_gets_everything_from_the_same_command(
    case: Case, server: Server, undisturbed: Ending, tell: Callable[..., None]
) -> None:
    command = case.start(pace=0.5)
    case.wait_for_step(5)
    server.stop()
    assert case.wait(command) == 0, case.said
    assert "posefleet.platform.tracking.runs sync" in case.said
    server.start()
    assert case.run() == 0, case.said
    case.assert_nothing_lost(undisturbed)
    assert case.repeated() == 0
    tell("MLflow is down from step 5 on", "the server, and the same command", 0, "nothing", None)
