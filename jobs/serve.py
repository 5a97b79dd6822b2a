"""Serve models over HTTP with Ray Serve: on this machine until Ctrl-C, or on a running cluster.

posefleet serve                                       the shipped serve/config.yaml, on http://127.0.0.1:8000
posefleet serve my.yaml
posefleet serve my.yaml --deploy http://HEAD:8265     on a cluster; run it again to update

They run `serve run CONFIG` and `serve deploy CONFIG` of Ray Serve. docs/serving.md explains the config.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from posefleet.command_line import Argument, fail, parse

CONFIG = Path(__file__).resolve().parents[1] / "serve" / "config.yaml"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to serve, and where."""

    config: Annotated[Path, Argument("CONFIG")] = CONFIG
    """YAML file: models, batching, replicas, host and port."""
    deploy: Annotated[str, "URL"] = ""
    """Deploy to the cluster with this dashboard address, http://HEAD:8265, instead of serving from this machine."""


def command(options: Options) -> list[str]:
    """The command line of Ray Serve that does what the options ask for."""
    serve = [sys.executable, "-m", "ray.serve.scripts"]
    if options.deploy:
        return [*serve, "deploy", "--address", options.deploy, str(options.config)]
    return [*serve, "run", str(options.config)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve or deploy. Exit status: that of Ray Serve, or 2 on bad arguments."""
    options, _ = parse(Options, arguments, command="serve", about=__doc__ or "")
    if not options.config.is_file():
        fail(f"no config file {options.config}; the shipped one is {CONFIG}")
    program, *rest = command(options)
    os.execv(program, [program, *rest])  # replaces this process, so that Ray Serve receives its signals


if __name__ == "__main__":
    raise SystemExit(main())
