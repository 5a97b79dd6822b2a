"""Opens the archive of files that an earlier version wrote; ``make.py`` made it.

The files name each other by absolute paths below :data:`ROOT`, where they were made: in run.json, in the settings of
checkpoints, in the plan of the search and in MLflow's database. :func:`extract` writes the new folder in its place.
"""

import contextlib
import dataclasses
import sqlite3
import tarfile
from pathlib import Path
from typing import Any

ROOT = "/tmp/posefleet-written-before"
"""Folder in which the files were made."""

ARCHIVE = Path(__file__).with_name("written.tar.xz")
REFERENCE = Path(__file__).with_name("reference.npz")
STATE_DICTS = Path(__file__).with_name("state_dicts.json.xz")

METHODS = ("detposenet", "inspose", "logocap", "pfs", "smpr")

SPACE = {"model.score.exponent": {"low": 0.3, "high": 0.8}}
"""What the search varies."""

BINARY = {".safetensors", ".pt", ".tar", ".jpg", ".png", ".db"}
"""Endings of files that hold no paths, or (the database) not as text."""


def extract(folder: Path) -> Path:
    """The files of the archive in the empty ``folder``, whose path must hold nothing that a URI quotes."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix not in BINARY and ROOT.encode() in (data := path.read_bytes()):
            path.write_bytes(data.replace(ROOT.encode(), str(folder).encode()))
    move_database(folder / "runs" / "mlflow.db", str(folder))
    return folder


def move_database(path: Path, root: str) -> None:
    """Replace :data:`ROOT` in every text of an SQLite database."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for _, column, kind, *_ in database.execute(f'PRAGMA table_info("{table}")').fetchall():
                if kind.upper().startswith(("VARCHAR", "TEXT", "CLOB")):
                    database.execute(
                        f'UPDATE "{table}" SET "{column}" = replace("{column}", ?, ?) WHERE instr("{column}", ?)',
                        (ROOT, root, ROOT),
                    )


def one_step_more(experiment: Any) -> Any:
    """The settings of a run of two steps, but for three, and without another evaluation."""
    return dataclasses.replace(
        experiment,
        train=dataclasses.replace(experiment.train, epochs=1.0),
        data=dataclasses.replace(experiment.data, eval=""),
    )
