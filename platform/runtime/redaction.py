"""Hides secrets in text that leaves the process, and completes an address that was written without its password."""

import logging
import os
import re
from urllib.parse import quote

HIDDEN = "***"

_USER_AND_PASSWORD = re.compile(r"(?<=://)(?P<user>[^\s:/@'\"]*):[^\s/'\"]*(?=@)")
_USER_ALONE = re.compile(r"(?i)(?:(?<=https://)|(?<=http://))[^\s:/@?#'\"]+(?=@)")
"""In an http address it is a token. A database's user name is none: ``postgresql://mlflow@/db?host=/run``."""

_TOKEN_AS_USER = re.compile(r"[\w.~-]{20,}")
"""A user name as long as this is taken for a token: ``https://TOKEN:x-oauth-basic@host``."""

_QUERY = re.compile(
    r"(?i)(?P<before>[?&](?:x-amz-[\w-]*|sig\w*|pwd|passwd"
    r"|[\w-]*(?:password|token|secret|signature|credential|api_?key|access_?key(?:_?id)?))=)[^\s&'\"]*"
)
_BEARER = re.compile(r"(?i)(?P<before>\bbearer\s+)[\w.~+/=-]+")
_AUTHORIZATION = re.compile(
    r"(?i)(?P<before>\bauthorization['\"]?\s*[:=]\s*(?:b?['\"])?)"
    r"(?:(?P<scheme>(?:basic|bearer|token)\s+)[^\s'\",]+|[^\r\n'\"]+)"
)

_SECRET_NAME = re.compile(r"(?i)(token|password|passwd|_pass|_pwd|secret|(api|access|secret|private)_?key)$")
_FEWEST_LETTERS = 8
"""A shorter value of a variable may be a word of any sentence."""
_NO_SECRET = "posefleet"
"""Used as a password on test clusters; hidden, it would change logger names and the default MLflow experiment."""


def redact(text: str) -> str:
    """``text`` with every secret replaced by ``***``; applied twice, it changes nothing more.

    Hidden are: passwords in ``scheme://user:password@host`` (the user name stays unless it is 20 letters or longer, as
    tokens are), the user of ``https://TOKEN@host``, query values whose names say secret (``?password=``, ``?sig=``,
    every ``X-Amz-...``), bearer tokens, Authorization headers, and values of at least 8 letters of environment
    variables whose names end in a word such as TOKEN or PASSWORD, also percent-encoded.
    """
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)} - {_NO_SECRET}
    for value in sorted(secrets, key=len, reverse=True):  # the longest first: a secret may contain another
        if len(value) >= _FEWEST_LETTERS:
            text = text.replace(value, HIDDEN).replace(quote(value, safe=""), HIDDEN)
    return _hide_patterns(text)


def _hide_patterns(text: str) -> str:
    """What :func:`redact` hides whatever the environment holds."""
    text = _USER_AND_PASSWORD.sub(lambda m: f"{_TOKEN_AS_USER.sub(HIDDEN, m['user'])}:{HIDDEN}", text)
    text = _USER_ALONE.sub(HIDDEN, text)
    text = _QUERY.sub(rf"\g<before>{HIDDEN}", text)
    text = _AUTHORIZATION.sub(lambda m: f"{m['before']}{m['scheme'] or ''}{HIDDEN}", text)
    return _BEARER.sub(rf"\g<before>{HIDDEN}", text)


def redact_logs(*handlers: logging.Handler | None) -> None:
    """Let these handlers show messages and tracebacks without secrets; the filter may be added twice."""
    for handler in handlers:
        if handler is not None:
            handler.addFilter(_redact_record)


def _redact_record(record: logging.LogRecord) -> bool:
    try:
        record.msg, record.args = redact(record.getMessage()), None
    except (TypeError, ValueError):  # the arguments do not fit the message; the handler reports it, as it always does
        return True
    if record.exc_info:  # formatters use this text where there is one
        record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
    return True


def restored(kept: str, *known: str) -> str:
    """The whole address that was written as ``kept``.

    Args:
        kept: From :func:`redact`, of this version or an earlier one that hid less; an address in which nothing is
            hidden comes back as it is.
        known: Addresses to choose from, besides $MLFLOW_TRACKING_URI.

    Raises:
        ValueError: It is none of them.
    """
    if HIDDEN not in kept:
        return kept
    for address in (*known, os.environ.get("MLFLOW_TRACKING_URI", "")):
        whole = address.rstrip("/")
        # Redacted once more, an earlier version's form is this version's. The environment may have changed since.
        if redact(whole) == redact(kept) or _hide_patterns(whole) == _hide_patterns(kept):
            return whole
    raise ValueError(f"{kept} is kept without its password; give the whole address in $MLFLOW_TRACKING_URI")
