"""The way to MLflow: addresses, clients, and errors that say where.

Only ``MlflowClient`` is used: active runs and MLFLOW_EXPERIMENT_ID, MLFLOW_RUN_ID or MLFLOW_TRACKING_URI of the
environment change nothing.
"""

import contextlib
import fcntl
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from posefleet.platform.runtime.paths import STORAGE, resolve_path
from posefleet.platform.runtime.redaction import redact, restored

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASES = ("postgresql", "mysql", "mssql")


class TrackingError(RuntimeError):
    """MLflow refused or could not be reached; the message says where and why, without passwords."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))  # it may pass through other processes before it is shown


def default_uri(storage: str) -> str:
    """The tracking database beside the runs under ``storage``, an absolute path or ``file://`` URI.

    Raises:
        ValueError: The storage is relative or remote (a database cannot live in a bucket).
    """
    path = Path(storage.removeprefix("file://"))
    if "://" in storage.removeprefix("file://") or not path.is_absolute():
        raise ValueError(
            f"no tracking database can be kept under {storage!r}: give an absolute local path as storage, or a "
            "tracking URI such as http://host:5000 (start one with `mlflow server`)"
        )
    return f"sqlite:///{path / 'mlflow.db'}"


def tracking_uri(uri: str) -> str:
    """``uri`` as MLflow wants it: a relative sqlite path becomes absolute, for workers have other current folders.

    Raises:
        ValueError: MLflow would refuse it, or lose what it is given.
    """
    scheme, _, rest = uri.partition(":")
    if scheme in ("http", "https") or scheme.partition("+")[0] in DATABASES:
        return uri.rstrip("/")
    if scheme == "sqlite" and rest.startswith("///") and not rest.startswith("///:memory:") and len(rest) > 3:
        return f"sqlite:///{Path(rest[3:]).absolute()}"
    advice = "use sqlite:////absolute/path/mlflow.db or the http(s):// address of an MLflow server"
    if scheme == "file" or not rest:
        raise ValueError(f"tracking URI {redact(uri)!r}: MLflow no longer writes runs to a folder; {advice}")
    known = ", ".join(("sqlite", "http", "https", *DATABASES))
    raise ValueError(f"tracking URI {redact(uri)!r} is not one of {known}; {advice}")


def store_uri(given: str = "", storage: str = STORAGE) -> str:
    """The store that ``given`` names, else $MLFLOW_TRACKING_URI, else the database beside the runs under ``storage``.

    Raises:
        ValueError: It cannot be used, see :func:`tracking_uri`, :func:`default_uri` and
            :func:`~posefleet.platform.runtime.redaction.restored`.
    """
    uri = restored(given) or os.environ.get("MLFLOW_TRACKING_URI", "")
    return tracking_uri(uri) if uri else default_uri(resolve_path(storage))


def pages(uri: str) -> str:
    """Where a person sees the pages of a store: its address, or the command that serves them; passwords are hidden."""
    return redact(uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}")


def connect(uri: str) -> "MlflowClient":
    """A client of a tracking server or database, which is made if it is new."""
    settle_mlflow()
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_suffix(".lock").open("w") as lock, warnings.catch_warnings():
        fcntl.flock(lock, fcntl.LOCK_EX)  # MLflow lets two processes create the tables at once, and one of them fails
        if not database.exists():
            warnings.simplefilter("ignore")  # of the migrations
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def settle_mlflow() -> None:
    """Make MLflow quiet, silent to third parties and quick to give up (it retries for minutes), unless told otherwise.

    It reads these settings from the environment only, some of them when it is imported. The import takes over a
    second: no function here does it before it must.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turn what MLflow raises inside into a :class:`TrackingError`."""
    settle_mlflow()
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise TrackingError(f"MLflow at {uri}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of ``error``, short enough for a log; redacted before a cut could split an address."""
    return redact((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def clean_name(name: object) -> str:
    """``name`` with what MLflow refuses in names replaced."""
    return re.sub(r"[^\w/.\- :]", "_", str(name))[:250]
