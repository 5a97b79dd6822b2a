"""A Ray cluster on this machine whose nodes are processes of their own, so that each can die like a machine.

Every node is one ``ray start --block`` with all that it starts. Nodes share this machine's address, or stand in network
namespaces of their own with a cable to a common switch (:class:`Network`), which can be pulled.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import family, free_port, kill_family, wait_for
from psutil import Process

TESTS = Path(__file__).resolve().parents[1]


def environment() -> dict[str, str]:
    """Variables of nodes and of the commands that use them."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return variables | {
        "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'support'}",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_DEDUP_LOGS": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # beside other work they would starve
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # every evaluation waits for it
    }


@dataclass(frozen=True)
class Host:
    """Where a node runs: this machine, or a network namespace of it."""

    address: str = "127.0.0.1"
    namespace: str = ""

    @property
    def prefix(self) -> list[str]:
        """What a command line begins with to run here."""
        return ["ip", "netns", "exec", self.namespace] if self.namespace else []

    @property
    def variables(self) -> dict[str, str]:
        """Gloo would look for its interface by the host's name, which in a namespace is another's."""
        return {"GLOO_SOCKET_IFNAME": "eth0"} if self.namespace else {}


HERE = Host()


class Node:
    """One ``ray start``."""

    def __init__(self, command: list[str], host: Host, address: str, log: Path) -> None:
        self.host = host
        # Ray Train's cleaner of places looks for the head's address here; else it finds those of all Rays around.
        variables = environment() | host.variables | {"RAY_ADDRESS": address}
        self._log = log
        start = [*host.prefix, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *command]
        for _ in range(3):  # Ray gives a node 30 s to start, and a busy machine may need longer
            with log.open("w") as file:
                self._process = subprocess.Popen(start, stdout=file, stderr=file, start_new_session=True, env=variables)
            wait_for(lambda: self._started or self._process.poll() is not None, 240, log.read_text)
            if self._started:
                return
        raise AssertionError(log.read_text())

    @property
    def _started(self) -> bool:
        return "Ray runtime started" in self._log.read_text()

    def processes(self, title: str = "") -> list[Process]:
        """Those of the node whose title holds ``title``."""
        return family(self._process.pid, title)

    def kill(self) -> None:
        """As if its power were cut."""
        if self._process.poll() is None:
            kill_family(self._process.pid)
            self._process.wait(20)


@dataclass
class Cluster:
    """Nodes that know each other; the first is the head."""

    folder: Path
    nodes: list[Node] = field(default_factory=list)
    address: str = ""
    dashboard: str = ""

    @property
    def head(self) -> Node:
        """The node with the state of the cluster."""
        return self.nodes[0]

    def add(self, cpus: int, host: Host = HERE) -> Node:
        """Start a node and wait until it belongs to the cluster."""
        ports = {"dashboard-agent-listen-port": free_port(), "min-worker-port": 0, "max-worker-port": 0}
        options = {"num-cpus": cpus, "node-ip-address": host.address, "object-store-memory": 200 * 2**20, **ports}
        if self.nodes:
            options |= {"address": self.address}
        else:
            port = free_port()
            self.address = f"{host.address}:{port}"
            pages = free_port()
            self.dashboard = f"http://127.0.0.1:{pages}"
            options |= {"port": port, "dashboard-port": pages, "ray-client-server-port": free_port()}
            options |= {"temp-dir": self.folder}
        command = [f"--{name}={value}" for name, value in options.items()]
        log = self.folder.with_name(f"{self.folder.name}-{len(self.nodes)}.log")
        node = Node(command if self.nodes else ["--head", *command], host, self.address, log)
        self.nodes.append(node)
        return node

    def node_of(self, process: int) -> Node:
        """Where a process runs."""
        return next(node for node in self.nodes if process in {p.pid for p in node.processes()})

    def kill(self) -> None:
        """All nodes at once."""
        for node in reversed(self.nodes):
            node.kill()


@contextmanager
def running_cluster() -> Iterator[Cluster]:
    """A cluster without nodes, and the end of those that it is given."""
    folder = Path(tempfile.mkdtemp(prefix="pf-", dir="/tmp"))  # short: names of sockets have at most 107 characters
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.kill()
        shutil.rmtree(folder, ignore_errors=True)
        for log in folder.parent.glob(f"{folder.name}-*.log"):
            log.unlink()


class Network:
    """Hosts with a cable each to one switch."""

    def __init__(self, name: str) -> None:
        """
        Args:
            name: What the names of its namespaces begin with.

        Raises:
            OSError: This machine has no namespaces, or allows none; nothing is left.
        """
        self._switch = f"{name}-switch"
        self._name = name
        self.hosts: list[Host] = []
        try:
            ip("netns", "add", self._switch)
            ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            ip("-n", self._switch, "link", "set", "dev", "switch", "up")
        except OSError:
            self.remove()
            raise

    def add(self) -> Host:
        """One more host."""
        number = len(self.hosts) + 1
        host = Host(f"10.77.0.{number}", f"{self._name}-{number}")
        self.hosts.append(host)
        ip("netns", "add", host.namespace)
        ip(
            "-n",
            host.namespace,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            f"port{number}",
            "netns",
            self._switch,
        )
        ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            ip("-n", host.namespace, "link", "set", "dev", device, "up")
        ip("-n", self._switch, "link", "set", "dev", f"port{number}", "master", "switch")
        self.plug(host)
        return host

    def plug(self, host: Host) -> None:
        """Put its cable into the switch."""
        self._set(host, "up")

    def pull(self, host: Host) -> None:
        """Pull its cable out of the switch."""
        self._set(host, "down")

    def _set(self, host: Host, state: str) -> None:
        ip("-n", self._switch, "link", "set", "dev", f"port{host.address.rpartition('.')[2]}", state)

    def remove(self) -> None:
        """Hosts, cables and switch."""
        for namespace in (*(host.namespace for host in self.hosts), self._switch):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True)


def ip(*arguments: str) -> None:
    """One command of iproute2.

    Raises:
        OSError: There is none, or it refuses; the message says why.
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)  # FileNotFoundError is an OSError
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
