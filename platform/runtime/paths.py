"""Where relative paths of settings and options start; imports nothing that takes time."""

import os
from pathlib import Path

STORAGE = "runs"
"""Folder under which runs are kept unless something else is said."""

MODELS = "models:/"
"""What names of models in the registry begin with, as in ``models:/smpr@champion``."""


def resolve_path(path: str) -> str:
    """An absolute path (or the URI, unchanged) for ``path``.

    Relative paths start at $POSEFLEET_HOME, else at the current folder; in a Ray job that folder is temporary, so
    there they start at the home folder.
    """
    if not path or "://" in path or path.startswith(MODELS):
        return path
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = os.environ.get("POSEFLEET_HOME") or (Path.home() if in_ray_job else Path.cwd())
    return str(Path(base, Path(path).expanduser()).absolute())
