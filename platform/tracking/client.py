"""Connects to MLflow: tracking URIs, clients, and errors that name the server.

The package uses only ``MlflowClient``, so an active run, MLFLOW_EXPERIMENT_ID and MLFLOW_RUN_ID have no effect.
MLFLOW_TRACKING_URI is read by :func:`store_uri` alone, and by ``redaction.restored`` for a redacted address.
"""

import contextlib
import fcntl
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from posefleet.platform.runtime.errors import PlatformError
from posefleet.platform.runtime.paths import STORAGE, resolve_path
from posefleet.platform.runtime.redaction import redact, restored

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASES = ("postgresql", "mysql", "mssql")

_OTHER_STORE = "give another store (run.tracking or $MLFLOW_TRACKING_URI)"


class TrackingError(PlatformError):
    """MLflow refused or could not be reached; the message says where and why, without passwords."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))  # redacted here, as other processes may receive it before it is shown


def default_uri(storage: str) -> str:
    """URI of the tracking database beside the runs under ``storage``, an absolute path or ``file://`` URI.

    Raises:
        ValueError: The storage is relative or remote (a database cannot live in a bucket), or has a ``?`` in its name.
    """
    path = Path(storage.removeprefix("file://"))
    if "://" in storage.removeprefix("file://") or not path.is_absolute():
        raise ValueError(
            f"no tracking database can be kept under {storage!r}: give an absolute local path as storage, or a "
            "tracking URI such as http://host:5000 (start one with `mlflow server`)"
        )
    if "?" in str(path):  # an address of a database has its options behind it
        raise ValueError(
            f"no tracking database can be kept under {storage!r}: in its address, '?' would begin options; rename the "
            "folder, or give a tracking URI (run.tracking)"
        )
    return f"sqlite:///{path / 'mlflow.db'}"


def tracking_uri(uri: str) -> str:
    """``uri`` in the form that MLflow needs.

    A relative sqlite path becomes absolute, because workers have other current folders.

    Raises:
        ValueError: MLflow would refuse the URI, or lose the data logged to it.
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
    """URI of the MLflow store: ``given``, else $MLFLOW_TRACKING_URI, else the database beside the runs in ``storage``.

    Raises:
        ValueError: The URI cannot be used, see :func:`tracking_uri`, :func:`default_uri` and
            :func:`~posefleet.platform.runtime.redaction.restored`.
    """
    uri = restored(given) or os.environ.get("MLFLOW_TRACKING_URI", "")
    return tracking_uri(uri) if uri else default_uri(resolve_path(storage))


def pages(uri: str) -> str:
    """How to open MLflow's pages of a store: its http address, or the command that serves them; without passwords."""
    return redact(uri if uri.startswith("http") else f"mlflow ui --backend-store-uri {uri}")


def connect(uri: str) -> "MlflowClient":
    """A client of a tracking server or of a database; a new sqlite database is created.

    Raises:
        TrackingError: The database cannot be opened, or is not MLflow's.
    """
    settle_mlflow()
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:"):
        if not uri.startswith("http"):
            _check_database(uri)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database = Path(uri.removeprefix("sqlite:///"))
    if database.is_dir():
        raise TrackingError(f"MLflow at {uri}: {database} is a folder, not a database; {_OTHER_STORE}")
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        lock = database.with_suffix(".lock").open("w")
    except OSError as error:
        raise TrackingError(f"MLflow at {uri}: the database cannot be kept there ({error}); {_OTHER_STORE}") from None
    with lock, warnings.catch_warnings():
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two processes that create MLflow's tables at the same time, one fails
        if database.exists() and database.stat().st_size:
            _check_database(uri)
        else:
            warnings.simplefilter("ignore")  # the migrations warn
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _check_database(uri: str) -> None:
    """Raise ``TrackingError`` unless the database opens and is empty or MLflow's; MLflow would retry for minutes."""
    import sqlalchemy

    advice = f"check the address and that the database is up, or {_OTHER_STORE.removeprefix('give ')}"
    try:
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        tables = sqlalchemy.inspect(engine).get_table_names()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, UnicodeError) as error:
        if "database is locked" in str(error):  # another process is writing; MLflow waits for it
            return
        if uri.startswith("sqlite:"):
            advice = f"move that file away, or {_OTHER_STORE}"
        raise TrackingError(f"MLflow at {uri}: {first_line(error)}; {advice}") from None
    if tables and not {"experiments", "alembic_version"} & set(tables):
        shown = ", ".join(sorted(tables)[:5])
        raise TrackingError(f"MLflow at {uri}: the database is not MLflow's, it has the tables {shown}; {_OTHER_STORE}")


def check_answer(uri: str, found: object, expected: object = None) -> None:
    """Raise ``TrackingError`` if ``found``, an id in an answer of the server, is empty or not the ``expected`` one.

    A server that is not MLflow may answer every request with 200 and nothing; MLflow's client takes that for ids that
    are empty.
    """
    if not found or (expected is not None and found != expected):
        raise TrackingError(
            f"{uri} answers, but not as an MLflow server does (an id is {found or 'empty'}"
            + (f", not {expected})" if expected is not None else ")")
            + "; check the address: http://HOST:PORT of `mlflow server`"
        )


def settle_mlflow() -> None:
    """Set environment variables that MLflow reads, unless they are set already: few log lines, no telemetry, one retry.

    Without them MLflow retries for minutes. It reads some of them when it is imported, so this must run first. The
    import takes over a second; functions here import MLflow only where they use it.
    """
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")


@contextlib.contextmanager
def explained(uri: str) -> Iterator[None]:
    """Context that turns errors of MLflow and its database into a :class:`TrackingError` that names the store."""
    settle_mlflow()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        raise TrackingError(f"MLflow at {uri}: {first_line(error)}") from error


@contextlib.contextmanager
def asking(uri: str) -> Iterator["MlflowClient"]:
    """Context with a client of the store ``uri``; errors of MLflow become a :class:`TrackingError` that names it."""
    with explained(uri):
        yield connect(uri)


def first_line(error: Exception) -> str:
    """The first line of ``error``, at most 300 characters; redacted before the cut, which may split an address."""
    return redact((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def clean_name(name: object) -> str:
    """``name`` for MLflow: characters that it refuses become ``_``, at most 250 characters."""
    return re.sub(r"[^\w/.\- :]", "_", str(name))[:250]
