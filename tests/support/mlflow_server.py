"""An MLflow server for tests that need a real one."""

import contextlib
import os
import signal
import time
import urllib.request
from pathlib import Path

from processes import Forked, free_port


class Server:
    """An ``mlflow server`` on a free port of this machine."""

    def __init__(self, folder: Path, backend: str, artifacts: str = "") -> None:
        """``folder`` gets the log, and artifacts unless ``artifacts`` says where; ``backend`` is the database."""
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.folder, self.backend = folder, backend
        self.artifacts = artifacts or str(folder / "artifacts")

    def start(self) -> None:
        command = f"server --host 127.0.0.1 --port {self.port} --workers 1"
        stores = ["--backend-store-uri", self.backend, "--artifacts-destination", self.artifacts]
        variables = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # eight processes that nobody needs
        errors = self.folder / "server.log"
        self._process = Forked(_mlflow, ([*command.split(), *stores],), environment=variables, errors=errors)
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=1):
                    return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may not have started
            os.killpg(self._process.pid, signal.SIGKILL)  # with the workers that it started
        self._process.wait(20)


def _mlflow(arguments: list[str]) -> int:
    from mlflow.cli import cli

    cli(arguments, standalone_mode=False)
    return 0
