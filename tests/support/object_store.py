"""An S3 server on this machine (moto's), and a proxy before it that makes the faults that real ones have."""

import contextlib
import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlparse

import fsspec

import posefleet.data  # noqa: F401  (makes s3:// ours)

BUCKET = "bucket"

SECRET = "hunter2SecretAccessKey/abcdefgh+0123456789"
"""Of the account that tests use; must be seen nowhere."""


class ObjectStore:
    """``moto_server`` in a process of its own, with one empty bucket."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._log = (folder / "moto.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdout=self._log, stderr=self._log, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/moto-api/", timeout=1):
                request = urllib.request.Request(f"{self.address}/{BUCKET}", method="PUT")
                urllib.request.urlopen(request, timeout=5).close()
                return
            time.sleep(0.1)
        raise AssertionError((folder / "moto.log").read_text())

    def objects(self) -> dict[str, bytes]:
        """All objects of the bucket, read with s3fs and not with the code under test."""
        fs = fsspec.filesystem("s3", endpoint_url=self.address, skip_instance_cache=True)
        return {path: fs.cat_file(path) for path in fs.find(BUCKET)}

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(20)
        self._log.close()


@contextlib.contextmanager
def environment(address: str) -> Iterator[None]:
    """Within, this process and those it starts use the S3 server at ``address``."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("AWS_", "MLFLOW_S3_"))]:
        del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "posefleet-tests",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    fsspec.get_filesystem_class("s3").clear_instance_cache()  # else the endpoint of an earlier test is used on
    try:
        yield
    finally:
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        os.environ.clear()
        os.environ |= before


class FaultyProxy:
    """Passes requests on to a server, but answers those that :attr:`fails` names with 503 SlowDown or 500."""

    def __init__(self, address: str) -> None:
        self.times = 0
        """So often, each object's first requests of a method are refused; -1: always."""
        self.methods = {"GET", "PUT", "POST", "HEAD", "DELETE"}
        """What is refused."""
        self.refused = 0
        """So many requests were."""
        self._seen: dict[tuple[str, str], int] = {}
        self._lock = threading.Lock()
        proxy, target = self, urlparse(address).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle_one_request()

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fault := proxy.fault(self.command, self.path):
                    status, code = fault
                    content = f"<Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>".encode()
                    self.send(status, [("Content-Type", "application/xml")], content)
                    return
                connection = http.client.HTTPConnection(target, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
                connection.request(self.command, self.path, body, headers)
                reply = connection.getresponse()
                content = reply.read()
                kept = [(name, value) for name, value in reply.getheaders() if name.lower() not in DROPPED]
                length = reply.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
                self.send(reply.status, [*kept, ("Content-Length", length)], content)
                connection.close()

            def send(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if not any(name == "Content-Length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def seen(self) -> set[tuple[str, str]]:
        """Method and path of every request so far."""
        return set(self._seen)

    def fault(self, method: str, path: str) -> tuple[int, str] | None:
        """The status and code that a request is refused with."""
        with self._lock:
            key = (method, path.partition("?")[0])
            seen = self._seen[key] = self._seen.get(key, 0) + 1
            if method not in self.methods or 0 <= self.times < seen:
                return None
            self.refused += 1
            return (503, "SlowDown") if seen % 2 else (500, "InternalError")

    def fail(self, times: int, *methods: str) -> None:
        """From now on, refuse the first ``times`` requests (-1: all) of these methods for each object."""
        with self._lock:
            self._seen.clear()
            self.times, self.methods, self.refused = times, set(methods) or {"GET", "PUT", "POST", "HEAD", "DELETE"}, 0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


DROPPED = {"connection", "transfer-encoding", "content-length", "server", "date"}
