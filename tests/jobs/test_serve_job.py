"""posefleet serve: the config and the arguments that Ray Serve gets."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml

from posefleet.jobs import serve
from posefleet.serve.deployments.settings import ServerSettings


@pytest.fixture(autouse=True)
def no_variables_are_left() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments that Ray Serve would get, and the content of the config that it would read."""
    found: list[Any] = []

    def record(*arguments: str) -> None:
        found.extend((list(arguments), yaml.safe_load(Path(arguments[-1]).read_text())))

    monkeypatch.setattr(serve, "_ray_serve", record)
    monkeypatch.setattr(serve, "check_models", lambda config: None)
    monkeypatch.setattr(serve, "start_ray", lambda **options: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    return found


def settings(config: dict[str, Any]) -> ServerSettings:
    return ServerSettings.model_validate(config["applications"][0]["args"])


def test_the_proxy_has_time_to_start_on_a_busy_machine(started: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(serve.PROXY_READY, "7")
    serve.main([])
    assert os.environ[serve.PROXY_READY] == "7"
    monkeypatch.delenv(serve.PROXY_READY)
    serve.main([])
    assert os.environ[serve.PROXY_READY] == "30"


def test_a_ray_of_its_own_has_the_variables_of_the_shipped_file(started: list[Any]) -> None:
    """As a shell reads them, and with places that two servers do not share."""
    lines = "\n".join(line for line in serve.RAY_ENV.read_text().splitlines() if not line.startswith("#"))
    shell = subprocess.run(["env", "-i", "-S", lines, "/usr/bin/env", "-0"], capture_output=True, text=True, check=True)
    shipped = dict(pair.split("=", 1) for pair in shell.stdout.split("\0") if pair)
    assert "\n    option http-buffer-request\n" in shipped["RAY_SERVE_HAPROXY_RETRY_ON"]
    ours, theirs = serve.front(Path("/tmp/a")), serve.front(Path("/tmp/b"))
    assert ours.items() >= shipped.items() and theirs.items() >= shipped.items()
    places = ours.keys() - shipped.keys()
    assert len(places) == 6 and all(ours[name] != theirs[name] for name in places)
    assert serve.front(Path("/tmp", "a" * 60)) == {}, "HAProxy could not open its socket there"
    os.environ["RAY_SERVE_HAPROXY_RETRIES"] = "5"
    serve.main([])
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and os.environ["RAY_SERVE_HAPROXY_RETRIES"] == "5"


def test_folders_of_servers_that_were_killed_are_removed(started: list[Any], tmp_path: Path) -> None:
    os.environ["RAY_TMPDIR"] = str(tmp_path)
    folders = [tmp_path / "ray" / f"haproxy-{name}" for name in (os.getppid(), 2**22 + 1, "theirs")]
    for folder in folders:
        folder.mkdir(parents=True)
    serve.main([])
    assert [folder.exists() for folder in folders] == [True, False, True]


def test_a_cluster_has_its_own_variables(started: list[Any]) -> None:
    serve.main(["--deploy", "http://HEAD:8265"])
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ


def test_the_shipped_config_is_served_as_it_is(started: list[Any]) -> None:
    serve.main([])
    assert started[0][-2:] == ["run", str(serve.CONFIG)]
    assert settings(started[1]).models[0].source == "models:/smpr@champion"


def test_models_replace_those_of_the_config(started: list[Any]) -> None:
    serve.main(["--model", "models:/hands@champion", "runs/Dogs 2/checkpoints/step-00000012", "--port", "8123"])
    command, config = started
    hands, dogs = settings(config).models
    assert (hands.name, hands.source) == ("hands", "models:/hands@champion")
    assert (dogs.name, dogs.source) == ("dogs-2", str(Path("runs/Dogs 2/checkpoints/step-00000012").absolute()))
    shipped = settings(yaml.safe_load(serve.CONFIG.read_text())).models[0]
    assert dogs.batching == shipped.batching and dogs.deployment == shipped.deployment
    assert config["http_options"] == {"host": "127.0.0.1", "port": 8123}
    assert command[-2] == "run"


def test_a_cluster_gets_the_same_config(started: list[Any]) -> None:
    serve.main(["--model", "models:/hands@champion", "--deploy", "http://HEAD:8265"])
    command, config = started
    assert command[-4:-1] == ["deploy", "--address", "http://HEAD:8265"]
    assert settings(config).models[0].name == "hands"


def test_sigterm_ends_a_server_as_ctrl_c_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Serve empties its replicas after a KeyboardInterrupt; Ray's own handler of SIGTERM aborts the process."""
    handlers: list[Any] = []

    def serve_until_signal(*arguments: str) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(serve, "_ray_serve", serve_until_signal)
    monkeypatch.setattr(serve, "check_models", lambda config: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        assert serve.main([]) == 130
        assert handlers == [signal.default_int_handler]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("models:/smpr@champion", "smpr"),
        ("models:/smpr/3", "smpr"),
        ("s3://bucket/runs/Big_Dogs/", "big_dogs"),
        ("/runs/a/checkpoints", "a"),
        ("/runs/\u72d7", "model"),
    ],
)
def test_the_name_of_a_model_comes_from_its_source(source: str, name: str) -> None:
    assert serve.model_name(source) == name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "a/x", "b/x"], "the names x, x are not different"),
        (["--port", "70000"], "--port must be 1..65535, not 70000"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        serve.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told_before_ray_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(serve, "ray_starts_here", lambda: True)
    monkeypatch.setattr(serve, "_ray_serve", lambda *arguments: pytest.fail("served"))
    with pytest.raises(SystemExit) as end:
        serve.main(["--model", str(tmp_path / "absent")])
    assert end.value.code == 2
    assert f"no checkpoint in {tmp_path}/absent" in capsys.readouterr().err


def test_an_application_with_an_environment_of_its_own_is_not_checked_in_this_one(tmp_path: Path) -> None:
    config = serve.served_config(yaml.safe_load(serve.CONFIG.read_text()), [str(tmp_path / "absent")], None)
    config["applications"][0]["runtime_env"] = {"env_vars": {"MLFLOW_TRACKING_URI": "http://elsewhere"}}
    serve.check_models(config)


def test_a_config_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "server.yaml"
    config.write_text("applications: []")
    with pytest.raises(SystemExit):
        serve.main([str(config), "--model", "runs/a"])
    assert "--model needs a config with one application and a model in it" in capsys.readouterr().err
