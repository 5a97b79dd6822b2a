"""Weights that others publish on the internet: finds out in seconds that one cannot be fetched, and says what helps."""

import dataclasses
import os
import socket
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

CONNECT_S = 10.0
"""Seconds after which a server that does not answer counts as out of reach. The libraries that download would try
again for a minute, or wait for ever."""


@dataclass(frozen=True, slots=True)
class PublishedFile:
    """A file of weights on the internet."""

    url: str
    copy: Path
    """Where the library that downloads it keeps its copy."""
    setting: str
    """Settings that ask for it, as on the command line: ``model.backbone``."""
    content: str
    """What a local file in its place must hold."""
    fresh: Mapping[str, str]
    """Fields beside ``pretrained`` that should have these values to start from random weights."""

    def check(self) -> None:
        """Raise ``ValueError`` unless there is a copy, or the server can be connected to."""
        if self.copy.exists():
            return
        with self.explained():
            if os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE", "ON", "on", "yes", "YES"):
                raise OSError("HF_HUB_OFFLINE is set")
            _connect(self.url)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Context that turns an error of the network into a ``ValueError`` that names the file and what helps."""
        try:
            yield
        except OSError as error:
            fresh = "".join(f" --{self.setting}.{name} {value}" for name, value in self.fresh.items())
            reason = (str(getattr(error, "reason", "") or error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"{self.url} cannot be fetched ({reason[:200]}), and there is no copy in {self.copy.parent}. Give a "
                f"local file with {self.content}: --{self.setting}.pretrained false --{self.setting}.weights FILE; or "
                f"start from random weights: --{self.setting}.pretrained false{fresh}"
            ) from None


@runtime_checkable
class Published(Protocol):
    """Settings of a part whose weights may be fetched."""

    def published(self) -> PublishedFile | None:
        """The file to fetch; None: these settings fetch nothing."""


def check_published(config: Any, name: str = "model") -> None:
    """Check that what a method's settings want to fetch is here or within reach; takes ``CONNECT_S`` at most for each.

    Settings that have parts without effect name them by a property ``unused``.

    Args:
        config: The settings, with those of their parts.
        name: Name of the settings on the command line.

    Raises:
        ValueError: A file is not; the message names it and what helps.
    """
    if isinstance(config, Published) and (file := config.published()):
        dataclasses.replace(file, setting=name).check()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and field.name not in getattr(config, "unused", ()):
            check_published(value, f"{name}.{field.name}")


def _connect(url: str) -> None:
    """Open a connection to the server of ``url``, or to the proxy that the environment names for it, and close it."""
    parts = urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
