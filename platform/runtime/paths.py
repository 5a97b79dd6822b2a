"""Resolves relative paths of settings and options, and checks names of runs and models.

It imports only the standard library, so that ``--help`` is fast.
"""

import os
import unicodedata
from pathlib import Path

STORAGE = "runs"
"""Default folder that holds the runs."""

MODELS = "models:/"
"""Prefix of addresses in the model registry, as in ``models:/smpr@champion``."""


LONGEST_NAME = 200
"""Maximum bytes of a name, so that files beside it may add a suffix to it."""

_MEANINGFUL = "/\\:?#*[]{}~%|<>\"'"
"""Characters with a meaning in paths, URLs, patterns or registry addresses, for one of the storage libraries."""


def check_name(name: str, what: str) -> str:
    """``name``, if it is a plain name: one that means itself as a folder, an object in a bucket and a part of a URL.

    Args:
        name: Name of a run or model.
        what: What takes the name, for the error: ``run.name``.

    Raises:
        ValueError: The name is empty, too long, ``..`` or hidden, begins like an option, begins or ends with a space,
            or has a separator, a line break, a control character or a character of patterns and URLs.
    """
    problem = ""
    if not name or name != name.strip():
        problem = "is empty, or begins or ends with a space"
    elif name[0] in "-." or ".." in name:
        problem = "begins with '-' or '.', or has '..' in it"
    elif found := [c for c in name if c in _MEANINGFUL or unicodedata.category(c)[0] == "C" or c in "\u2028\u2029"]:
        problem = f"has the character {found[0]!r}"
    elif len(name.encode(errors="replace")) > LONGEST_NAME:
        problem = f"is longer than {LONGEST_NAME} bytes"
    if problem:
        raise ValueError(f"{what} {name[:50]!r} {problem}; use letters, digits, spaces, '.', '_', '-', '+' and '='")
    return name


def resolve_path(path: str) -> str:
    """The absolute form of ``path``; a URI, a registry address and an empty string stay as they are.

    Relative paths start at $POSEFLEET_HOME if it is set. Otherwise they start at the current folder, or in a Ray job,
    whose current folder is temporary, at the home folder.

    Raises:
        ValueError: A local path has ``::`` in it, which the storage library would read as several addresses, or a line
            break or zero byte.
    """
    if not path or "://" in path or path.startswith(MODELS):
        return path
    if "::" in path:
        raise ValueError(
            f"path {path!r}: the storage library takes '::' for the end of an address; rename that folder, or give a "
            "symbolic link to it"
        )
    if any(c in path for c in "\n\r\0"):
        raise ValueError(f"path {path!r} has a line break or zero byte in it; rename that file or folder")
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    base = os.environ.get("POSEFLEET_HOME") or (Path.home() if in_ray_job else Path.cwd())
    return str(Path(base, Path(path).expanduser()).absolute())
