"""The file ``run.json`` in the folder of a run: which MLflow run a restart goes on with, and where its spool is."""

import json
import tempfile
from pathlib import Path

from posefleet.data.io.files import read_json, write_file
from posefleet.platform.runtime.redaction import redact


def read_run_file(folder: str) -> dict[str, str] | None:
    """``run_id``, ``tracking_uri`` (without its password) and ``method`` of the run in ``folder``; None: there is none.

    Raises:
        DataError: The file is damaged.
    """
    known: dict[str, str] | None = read_json(f"{folder}/run.json")
    return known


def write_run_file(folder: str, run_id: str, uri: str, method: str) -> None:
    """Write ``run.json``; ``method`` is empty for a run that is not a training of posefleet's own methods."""
    content = {"run_id": run_id, "tracking_uri": redact(uri), "method": method}
    write_file(f"{folder}/run.json", json.dumps(content, indent=1).encode())


def spool_folder(folder: str, run_id: str) -> str:
    """Local folder in which events wait for MLflow; inside the run's folder if that is on a file system."""
    if "://" in folder:
        return str(Path(tempfile.gettempdir(), "posefleet", run_id))
    return f"{folder}/spool"
