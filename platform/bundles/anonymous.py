"""Takes out of settings and texts where things lie on a machine: a bundle goes to people who do not know it."""

import re
from typing import Any

from posefleet.platform.runtime.paths import MODELS
from posefleet.platform.runtime.redaction import HIDDEN, redact

_URI = re.compile(r"[A-Za-z][\w+.-]*://[^\s'\",;()]*")
_PATH = re.compile(r"(?<![\w./~@])~?(?:/[^\s/'\",;:()]+)+/?")
_HOME = re.compile(r"(/home|/Users)/[^/]+/?|~[^/]*/?")
"""Folder of a user, whose last part is a name."""


def without_places(value: Any) -> Any:
    """``value``, of plain values, in which each absolute path and URI in a text is replaced by its last part.

    Secrets are hidden too, see :func:`posefleet.platform.runtime.redaction.redact`, and so are folders of users.
    """
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(item) for item in value]
    return _without_places(value) if isinstance(value, str) else value


def _without_places(text: str) -> str:
    text = redact(text)
    if text.startswith(MODELS):
        return text
    if text.startswith(("/", "~")):  # a path may have spaces in it
        return _last(text)
    return _PATH.sub(lambda found: _last(found[0]), _URI.sub(lambda found: _last(found[0].partition("?")[0]), text))


def _last(path: str) -> str:
    if _HOME.fullmatch(path):
        return HIDDEN
    return path.rstrip("/").rpartition("/")[2]
