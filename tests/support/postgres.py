"""A PostgreSQL server for tests, of the Debian package ``postgresql`` or whatever else has initdb."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path


def find_program(name: str) -> str | None:
    """Its path; Debian keeps the programs of a server out of $PATH."""
    found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    return shutil.which(name) or (found[-1] if found else None)


class Postgres:
    """A server in a folder of its own, reached through a socket in that folder only.

    It refuses to run as root; who is root runs it as nobody.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other users
        self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        if self._as:
            shutil.chown(self._folder, "nobody", "nogroup")
        self.uri = f"postgresql://posefleet@/postgres?host={self._folder}"
        self._run("initdb", "-D", "data", "-U", "posefleet", "-A", "trust", "-E", "UTF8", "--no-sync")
        self._process = subprocess.Popen(
            [find_program("postgres"), "-D", "data", "-k", self._folder, "-c", "listen_addresses="],
            cwd=self._folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self._as,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (self._folder / ".s.PGSQL.5432").exists():
            assert time.monotonic() < deadline and self._process.poll() is None, "PostgreSQL does not start"
            time.sleep(0.1)

    def stop(self) -> None:
        """End it and remove its folder."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)
        shutil.rmtree(self._folder)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [find_program(name), *arguments], cwd=self._folder, check=True, capture_output=True, timeout=120, **self._as
        )
