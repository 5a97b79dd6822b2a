"""Addresses that hold a password: what of them may be shown, logged or kept, and how a kept one is made whole again."""

import os
import re

HIDDEN = "***"

_USER = re.compile(r"(?P<before>\w[\w+.-]*://[^\s:/@'\"]*:)[^\s/'\"]*(?=@)")
_QUERY = re.compile(r"(?P<before>[?&](?:\w*password|passwd|pwd|\w*token|\w*secret|sig\w*)=)[^\s&'\"]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """``text`` with the password of every address in it hidden, in ``user:password@host`` and in ``?password=...``."""
    if "://" not in text:
        return text
    return _QUERY.sub(rf"\g<before>{HIDDEN}", _USER.sub(rf"\g<before>{HIDDEN}", text))


def restored(kept: str, *known: str) -> str:
    """The whole address of which ``kept`` is what was kept.

    Args:
        kept: From :func:`redacted`; one that had no password comes back as it is.
        known: Addresses to choose from, besides $MLFLOW_TRACKING_URI.

    Raises:
        ValueError: It is none of them.
    """
    if HIDDEN not in kept:
        return kept
    for address in (*known, os.environ.get("MLFLOW_TRACKING_URI", "")):
        if redacted(address.rstrip("/")) == kept:
            return address.rstrip("/")
    raise ValueError(f"{kept} is kept without its password; give the whole address in $MLFLOW_TRACKING_URI")


_SECRETS = (
    re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"),  # user:password of an address
    re.compile(r"(?i)(?<=bearer )[\w.~+/=-]+"),
    re.compile(r"(?i)(?<=[?&])(?:[\w-]*(?:token|signature|secret|credential|password))=[^&\s]+"),
)


_SECRET_NAME = re.compile(r"(?i)(token|password|passwd|secret|api_?key|access_key)$")


_FEWEST_LETTERS = 8
"""A shorter value of a variable may be a word of any sentence."""


def redact(text: str) -> str:
    """``text`` without passwords in addresses, tokens, signatures, and values of variables whose names say secret."""
    for name, value in os.environ.items():
        if len(value) >= _FEWEST_LETTERS and _SECRET_NAME.search(name):
            text = text.replace(value, HIDDEN)
    for pattern in _SECRETS:
        text = pattern.sub(HIDDEN, text)
    return text
