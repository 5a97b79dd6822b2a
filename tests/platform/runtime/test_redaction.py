"""Passwords of addresses: where they may not be seen, and how a run goes on without them being kept."""

import copy
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server
from small_settings import untrained_checkpoint

from posefleet.platform.checkpoints.format import read_content
from posefleet.platform.config.cli import override
from posefleet.platform.config.loading import build_experiment, to_dict, to_yaml
from posefleet.platform.runtime.redaction import redacted, restored
from posefleet.platform.tracking.__main__ import sync_spool
from posefleet.platform.tracking.client import TrackingError, pages, store_uri, tracking_uri
from posefleet.platform.tracking.registry import find_version
from posefleet.platform.tracking.runs import find_runs, flatten, start_run
from posefleet.platform.tracking.spool import Spool
from posefleet.platform.tracking.tracker import Tracker
from posefleet.platform.training.launch import train
from posefleet.platform.training.run import read_run

PASSWORD = "s3cr3t-pass%40word"
DATABASE = f"postgresql://mlflow:{PASSWORD}@db.example:5432/mlflow"
HIDDEN = "postgresql://mlflow:***@db.example:5432/mlflow"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (DATABASE, HIDDEN),
        (f"mlflow ui --backend-store-uri {DATABASE}", f"mlflow ui --backend-store-uri {HIDDEN}"),
        (f"'{DATABASE}' and '{DATABASE}'", f"'{HIDDEN}' and '{HIDDEN}'"),
        ("mysql+pymysql://u:p:q@h/db", "mysql+pymysql://u:***@h/db"),
        ("postgresql://u:p@q@h/db", "postgresql://u:***@h/db"),
        ("postgresql://u:@h/db", "postgresql://u:***@h/db"),
        ("https://:token@host:5000", "https://:***@host:5000"),
        (
            "postgresql://h/db?user=u&password=p&sslmode=require",
            "postgresql://h/db?user=u&password=***&sslmode=require",
        ),
        ("postgresql://u@/db?host=/run&sslpassword=p", "postgresql://u@/db?host=/run&sslpassword=***"),
        ("https://host/file?X-Amz-Signature=abc&x=1", "https://host/file?X-Amz-Signature=abc&x=1"),
        ("https://host/file?sig=abc&x=1", "https://host/file?sig=***&x=1"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
        ("models:/smpr@champion", "models:/smpr@champion"),
        ("sqlite:////tmp/x@y/mlflow.db", "sqlite:////tmp/x@y/mlflow.db"),
        ("postgresql://mlflow@/postgres?host=/tmp/a", "postgresql://mlflow@/postgres?host=/tmp/a"),
        ("ratio 3:4 @ home", "ratio 3:4 @ home"),
    ],
)
def test_passwords_of_addresses_are_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert redacted(text) == shown


def test_a_kept_address_is_made_whole_by_one_that_differs_only_in_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert restored("http://127.0.0.1:5000") == "http://127.0.0.1:5000"
    assert restored(HIDDEN, "http://other:5000", DATABASE) == DATABASE
    with pytest.raises(ValueError, match=r"kept without its password; give the whole address in \$MLFLOW_TRACKING_URI"):
        restored(HIDDEN, DATABASE.replace("5432", "5433"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", DATABASE + "/")
    assert restored(HIDDEN) == store_uri(HIDDEN) == DATABASE


def test_what_is_kept_of_an_experiment_has_no_password(people_shards: Path, small_run: dict[str, Any]) -> None:
    small_run["run"] |= {"tracking": DATABASE, "init_from": "https://me:t0ken@host/run"}
    experiment = build_experiment(small_run)
    assert to_dict(experiment)["run"]["tracking"] == HIDDEN
    assert to_dict(experiment, passwords=True)["run"]["tracking"] == DATABASE
    assert override(experiment, {"seed": ["3"]}).run.tracking == DATABASE, "the run itself needs it"
    content = read_content(untrained_checkpoint(small_run, Path(small_run["run"]["storage"])))
    for kept in (to_yaml(experiment), str(flatten({"a": {"b": DATABASE}, "c": [DATABASE]})), str(content)):
        assert PASSWORD not in kept and "t0ken" not in kept and "mlflow:***@" in kept


def test_messages_have_no_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = f"http://mlflow:{PASSWORD}@127.0.0.1:9"
    told = [pages(away), pages(DATABASE)]
    for uri in (f"ftp://mlflow:{PASSWORD}@host/x", f"file://mlflow:{PASSWORD}@host/x"):
        with pytest.raises(ValueError) as bad:
            tracking_uri(uri)
        told.append(str(bad.value))
    for ask in (
        lambda: start_run(away, "x", "y", params={}, tags={}),
        lambda: find_runs(away, "x"),
        lambda: find_version("models:/smpr@champion", away),
    ):
        with pytest.raises(TrackingError) as refused:
            ask()
        told.append(str(refused.value))
    with caplog.at_level(logging.INFO):
        tracker = Tracker(away, "0" * 32, tmp_path / "spool", send_every=0.1, system_every=0)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.close(timeout=3.0)
    told.append(caplog.text)
    assert "mlflow:***@127.0.0.1:9" in caplog.text
    assert all(PASSWORD not in text and "***" in text for text in told), told
    assert Spool(tmp_path / "spool").header()["uri"] == "http://mlflow:***@127.0.0.1:9"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match="kept without its password"):
        sync_spool(tmp_path / "spool")


@pytest.fixture
def server(store: str, tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path, store)
    server.start()
    yield server
    server.stop()


def test_a_run_goes_on_at_an_address_with_a_password_and_leaves_it_nowhere(
    server: Server, small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """MLflow's server asks for no password here, and does not mind that one comes."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def address(password: str) -> str:
        return server.uri.replace("//", f"//mlflow:{password}@")

    small_run["run"]["tracking"] = address(PASSWORD)
    assert train(build_experiment(small_run)) == 0
    again = copy.deepcopy(small_run)
    again["train"]["epochs"] = 2
    again["run"]["tracking"] = ""
    assert train(build_experiment(again)) == 1, "nobody said the password"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address("another-s3cr3t"))
    assert train(build_experiment(again)) == 0
    (run,) = find_runs(server.uri, "posefleet")
    assert run.status == "FINISHED" and run.metrics["epoch"] == 2
    known = read_run(str(tmp_path / "runs" / "small"))
    assert known is not None and known.tracking_uri == address("another-s3cr3t")

    told = capfd.readouterr()
    assert "kept without its password" in told.err and "mlflow:***@127.0.0.1" in told.err
    files = [path for folder in ("runs", "store", "artifacts") for path in (tmp_path / folder).rglob("*")]
    kept = {str(path): path.read_bytes() for path in files if path.is_file()}
    assert any(path.endswith("meta.json") for path in kept) and any(path.endswith("mlflow.db") for path in kept)
    for where, data in {**kept, "output": (told.out + told.err).encode()}.items():
        assert b"s3cr3t" not in data, where
