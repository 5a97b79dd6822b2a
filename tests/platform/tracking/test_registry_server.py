"""From training to a champion that is found again, through an MLflow server that keeps its files to itself."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow_server import Server
from postgres import Postgres, find_program

from posefleet.jobs import promote
from posefleet.platform.checkpoints.format import verify
from posefleet.platform.checkpoints.load import load_model
from posefleet.platform.checkpoints.resolve import find_checkpoint
from posefleet.platform.config.loading import build_experiment
from posefleet.platform.tracking.registry import find_model
from posefleet.platform.training.launch import train


@pytest.fixture(params=[pytest.param("sqlite", marks=pytest.mark.slow), "postgresql"])
def server(request: pytest.FixtureRequest, store: str, tmp_path: Path) -> Iterator[Server]:
    database = None
    if request.param == "postgresql":
        if not find_program("initdb") or not find_program("postgres"):
            pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
        if importlib.util.find_spec("psycopg") is None:
            pytest.skip("psycopg is not installed (pip install 'psycopg[binary]')")
        database = Postgres()
    try:
        server = Server(tmp_path, database.uri if database else store)
        server.start()
        yield server
        server.stop()
    finally:
        if database:
            database.stop()


def test_a_trained_run_becomes_a_champion_that_any_machine_finds(
    server: Server, small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small_run["run"]["tracking"] = server.uri
    assert train(build_experiment(small_run)) == 0
    run = tmp_path / "runs" / "small"
    arguments = ["--run", str(run), "--gate.latency_people", "1", "--gate.served_images", "1"]
    assert promote.main([*arguments, "--to", "champion"]) == 0

    found = find_model("models:/smpr@champion", server.uri)
    assert found.startswith(str(tmp_path / "cache")), "a copy, for the server's files are not this machine's"
    assert find_model("models:/smpr/1", server.uri) == found
    verify(found)
    (model, experiment), (trained, _) = load_model(found), load_model(find_checkpoint(str(run)))
    assert experiment.method == "smpr"
    for one, other in zip(model.state_dict().values(), trained.state_dict().values(), strict=True):
        assert torch.equal(one, other)

    client = MlflowClient(server.uri, server.uri)
    version = client.get_model_version_by_alias("smpr", "champion")
    training = client.get_run(version.run_id)
    assert training.info.run_name == "small" and "loss" in training.data.metrics
    (model,) = client.search_logged_models([training.info.experiment_id])
    assert model.source_run_id == version.run_id and "AP" in {metric.key for metric in model.metrics}
    files = {entry.path for entry in client.list_logged_model_artifacts(model.model_id)}
    assert files == {"MLmodel", "checkpoint", "evaluation", "experiment.yaml", "gate.txt"}
