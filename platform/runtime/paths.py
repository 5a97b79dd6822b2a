"""Resolves relative paths of settings and options; imports only the standard library, so that ``--help`` is fast."""

import os
from pathlib import Path

STORAGE = "runs"
"""Default folder that holds the runs."""

MODELS = "models:/"
"""Prefix of addresses in the model registry, as in ``models:/smpr@champion``."""


def resolve_path(path: str) -> str:
    """The absolute form of ``path``; a URI, a registry address and an empty string stay as they are.

    Relative paths start at $POSEFLEET_HOME if it is set. Otherwise they start at the current folder, or in a Ray job,
    whose current folder is temporary, at the home folder.
    """
    if not path or "://" in path or path.startswith(MODELS):
        return path
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = os.environ.get("POSEFLEET_HOME") or (Path.home() if in_ray_job else Path.cwd())
    return str(Path(base, Path(path).expanduser()).absolute())
