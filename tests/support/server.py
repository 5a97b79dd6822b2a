"""A real server for tests: Ray, Serve's proxy, the deployments of ``posefleet.serve.app``, and ways to load it."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from processes import free_port, send, start_ray, wait_for
from ray import serve

from posefleet.jobs.serve import front

TOKEN = "a token of tests"


@dataclass(slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Server:
    """A running server."""

    port: int
    dashboard: str
    config: dict[str, Any]
    folder: Path

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout: float = 60, **headers: str
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, **headers)

    def post(self, path: str, body: bytes = b"", **headers: str) -> Answer:
        return self.request("POST", path, body, **headers)

    def reload(self, model: str) -> Answer:
        return self.post(f"/v1/models/{model}/reload", Authorization=f"Bearer {TOKEN}")

    def deploy(self) -> None:
        """The configuration as it is now; what ``serve deploy`` asks of Ray, without the seconds that it imports."""
        url, body = f"{self.dashboard}/api/serve/applications/", json.dumps(self.config).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="PUT")
        urllib.request.urlopen(request, timeout=240).close()

    def wait_until_ready(self, seconds: float = 600) -> float:
        """How long it took."""
        start = time.monotonic()
        wait_for(lambda: self._ready(), seconds, lambda: json.dumps(_statuses(), indent=1))
        return time.monotonic() - start

    def processes(self, title: str = "") -> list[psutil.Process]:
        """Processes of Ray, its workers and their children whose title contains ``title``."""
        found = []
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if str(self.folder) in " ".join(child.cmdline()):
                    found += [p for p in (child, *child.children(recursive=True)) if title in " ".join(p.cmdline())]
        return found

    def cpu_seconds(self) -> float:
        """What all of it has taken of the processor: unlike time on the clock, the same beside other work."""
        taken = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                taken += times.user + times.system
        return taken

    def replicas(self, model: str) -> list[psutil.Process]:
        """The processes that predict for clients, not for comparison."""
        title = f"ServeReplica:posefleet:{model}"
        return [p for p in self.processes(title) if "challenger" not in " ".join(p.cmdline())]

    def running(self, deployment: str) -> int:
        """How many of its replicas Serve says run."""
        states = serve.status().applications["posefleet"].deployments[deployment].replica_states
        return int(states.get("RUNNING", 0))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """None of its processes takes any time meanwhile."""
        stopped = self.processes()
        try:
            send(stopped, signal.SIGSTOP)
            yield
        finally:
            send(stopped, signal.SIGCONT)
            self.wait_until_ready()
            time.sleep(5)  # Ray catches up on what it missed

    def _ready(self) -> bool:
        try:
            return self.get("/readyz").status == 200
        except OSError:
            return False


def _statuses() -> Any:
    return [
        [name, deployment.status, deployment.message]
        for app in serve.status().applications.values()
        for name, deployment in app.deployments.items()
    ]


@contextmanager
def running_server(
    args: dict[str, Any], *, environment: Mapping[str, str] | None = None, local: bool = False, **options: Any
) -> Iterator[Server]:
    """A server with a Ray of its own, ready.

    Args:
        args: Of ``posefleet.serve.app.build``.
        environment: More variables of all its processes.
        local: Whether Ray has the settings that ``posefleet serve`` gives it: HAProxy, not Serve's proxy.
        options: More of the Serve config.
    """
    before = dict(os.environ)
    folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0", "POSEFLEET_TOKEN": TOKEN}
    os.environ |= {"RAY_prestart_worker_first_driver": "0"}  # eight processes that nobody may need
    os.environ |= front(folder / "haproxy") if local else {}
    os.environ |= environment or {}
    os.environ.pop("RAY_ADDRESS", None)
    context = start_ray(str(folder), num_cpus=8, dashboard_port=free_port())
    port = free_port()
    application = {
        "name": "posefleet",
        "route_prefix": "/",
        "import_path": "posefleet.serve.app:build",
        "args": args,
        "deployments": [{"name": "Versions", "user_config": {"release": 1}}],
    }
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application], **options}
    server = Server(port, f"http://{context.dashboard_url}", config, folder)
    try:
        server.deploy()
        server.wait_until_ready()
        yield server
    finally:
        serve.shutdown()
        ray.shutdown()
        os.environ.clear()
        os.environ |= before
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(slots=True)
class Load:
    """Clients that send one request after another until they are stopped."""

    server: Server
    path: str
    bodies: list[bytes]
    clients: int
    statuses: Counter[int] = field(default_factory=Counter)
    answers: list[tuple[float, int, Any]] = field(default_factory=list)
    """(time of the request, index of its body, JSON) of each answer with status 200."""
    waits: list[tuple[float, float]] = field(default_factory=list)
    """(time of the request, time of the answer) of the same answers."""
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._client, args=(index,)) for index in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    _threads: list[threading.Thread] = field(default_factory=list)

    def _client(self, index: int) -> None:
        while not self._stop.is_set():
            which, begun = index % len(self.bodies), time.monotonic()
            index += 1
            try:
                answer = self.server.post(self.path, self.bodies[which])
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(repr(error))
                time.sleep(0.1)
                continue
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.answers.append((begun, which, answer.json))
                self.waits.append((begun, time.monotonic()))
            else:
                self.errors.append(answer.body.decode())


def misses(answer: Any, keypoints: np.ndarray) -> float:
    """How far an answer's keypoints are from those that were expected, pixels; infinite if there are more or fewer."""
    poses = answer["images"][0]["poses"]
    found = np.array([[[k["x"], k["y"]] for k in pose["keypoints"]] for pose in poses])
    return float(np.abs(found - keypoints).max()) if found.shape == keypoints.shape else float("inf")
