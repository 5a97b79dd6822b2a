"""Passwords of addresses: where they may not be seen, and how a run goes on without them being kept."""

import copy
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Server
from small_settings import untrained_checkpoint
from tracked_runs import find_runs

from posefleet.command_line import fail, report_error
from posefleet.platform.checkpoints.format import read_content
from posefleet.platform.config.cli import override
from posefleet.platform.config.loading import build_experiment, to_dict, to_yaml
from posefleet.platform.runtime.redaction import redact, restored
from posefleet.platform.tracking.__main__ import sync_spool
from posefleet.platform.tracking.client import TrackingError, pages, store_uri, tracking_uri
from posefleet.platform.tracking.registry import find_version
from posefleet.platform.tracking.runs import flatten, read_metrics, start_run
from posefleet.platform.tracking.runs import read_run as read_mlflow_run
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
        ("https://host/file?X-Amz-Signature=abc&x=1", "https://host/file?X-Amz-Signature=***&x=1"),
        ("https://host/file?sig=abc&x=1", "https://host/file?sig=***&x=1"),
        ("h?X-Amz-Credential=AK%2F1&X-Amz-Date=2&part=3", "h?X-Amz-Credential=***&X-Amz-Date=***&part=3"),
        ("/v1?pwd=a&passwd=b&api_key=c&auth-token=d#x", "/v1?pwd=***&passwd=***&api_key=***&auth-token=***"),
        ("https://ghp_t0ken@host/x.git", "https://***@host/x.git"),
        ("git+https://ghp_0123456789abcdefXYZ:x-oauth-basic@h/x", "git+https://***:***@h/x"),
        ("Authorization: Bearer abc.def-1 refused", "Authorization: Bearer *** refused"),
        ("{'Authorization': 'Basic bWU6aHVudGVy', 'a': 1}", "{'Authorization': 'Basic ***', 'a': 1}"),
        ("authorization: AWS4-HMAC-SHA256 Credential=A, Signature=b\nHost: h", "authorization: ***\nHost: h"),
        ("with bearer  abc.def", "with bearer  ***"),
        ("token opensesame! was refused", "token *** was refused"),
        ("https://host/opensesame%21/x", "https://host/***/x"),
        ("http://host:5000/ has 3 tokens of width 256", "http://host:5000/ has 3 tokens of width 256"),
        ("write to me@example.org", "write to me@example.org"),
        ("photos/me@home.jpg", "photos/me@home.jpg"),
        ("https://host/find?mail=me@example.org", "https://host/find?mail=me@example.org"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
        ("models:/smpr@champion", "models:/smpr@champion"),
        ("sqlite:////tmp/x@y/mlflow.db", "sqlite:////tmp/x@y/mlflow.db"),
        ("postgresql://mlflow@/postgres?host=/tmp/a", "postgresql://mlflow@/postgres?host=/tmp/a"),
        ("ratio 3:4 @ home", "ratio 3:4 @ home"),
    ],
)
def test_secrets_are_hidden_and_nothing_else(text: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSEFLEET_TOKEN", "opensesame!")
    assert redact(text) == shown
    assert redact(shown) == shown, "once more changes nothing"


def test_an_address_that_an_earlier_version_wrote_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those hid less: user names of any length, tokens as users and X-Amz-... stood in run.json."""
    user = "service-account-for-training"
    for whole, kept in (
        (DATABASE, HIDDEN),
        (f"postgresql://{user}:p@db/x", f"postgresql://{user}:***@db/x"),
        ("https://h/x?token=a&X-Amz-Date=2", "https://h/x?token=***&X-Amz-Date=2"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
        assert restored(kept) == restored(redact(whole)) == whole


def test_errors_of_commands_and_warnings_without_logging_hide_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        fail(f"no run of {DATABASE}")
    report_error(ValueError(DATABASE))
    assert capsys.readouterr().err == f"error: no run of {HIDDEN}\nerror: {HIDDEN}\n"
    command = (
        "import logging, sys; from posefleet.jobs.evaluate import Options; from posefleet.command_line import parse;"
        "parse(Options, ['--checkpoint', 'x'], about='');"
        f"logging.getLogger('posefleet').warning('%s is away', {DATABASE!r})"
    )
    shown = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert shown.stderr == f"{HIDDEN} is away\n"


def test_tags_and_parameters_in_mlflow_hide_secrets(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = start_run(uri, "x", "y", params={"a": {"b": DATABASE}}, tags={"c": "Bearer t0ken"})
    with Tracker(uri, run_id, tmp_path / "spool", system_every=0) as tracker:
        tracker.set_tags({"d": DATABASE})
    run = read_mlflow_run(uri, run_id)
    assert run.params["a.b"] == run.tags["d"] == HIDDEN and run.tags["c"] == "Bearer ***"
    assert PASSWORD.encode() not in b"".join(path.read_bytes() for path in (tmp_path / "spool").rglob("*.*"))


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
    messages = [pages(away), pages(DATABASE)]
    for uri in (f"ftp://mlflow:{PASSWORD}@host/x", f"file://mlflow:{PASSWORD}@host/x"):
        with pytest.raises(ValueError) as bad:
            tracking_uri(uri)
        messages.append(str(bad.value))
    for ask in (
        lambda: start_run(away, "x", "y", params={}, tags={}),
        lambda: read_metrics(away, "0" * 32, ["loss"]),
        lambda: find_version("models:/smpr@champion", away),
    ):
        with pytest.raises(TrackingError) as refused:
            ask()
        messages.append(str(refused.value))
    with caplog.at_level(logging.INFO):
        tracker = Tracker(away, "0" * 32, tmp_path / "spool", send_every=0.1, system_every=0)
        tracker.log_metrics({"loss": 1.0}, 1)
        tracker.close(timeout=3.0)
    messages.append(caplog.text)
    assert "mlflow:***@127.0.0.1:9" in caplog.text
    assert all(PASSWORD not in text and "***" in text for text in messages), messages
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

    captured = capfd.readouterr()
    assert "kept without its password" in captured.err and "mlflow:***@127.0.0.1" in captured.err
    files = [path for folder in ("runs", "store", "artifacts") for path in (tmp_path / folder).rglob("*")]
    kept = {str(path): path.read_bytes() for path in files if path.is_file()}
    assert any(path.endswith("meta.json") for path in kept) and any(path.endswith("mlflow.db") for path in kept)
    for where, data in {**kept, "output": (captured.out + captured.err).encode()}.items():
        assert b"s3cr3t" not in data, where
