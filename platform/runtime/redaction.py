"""Hides secrets in text that leaves the process, and restores the password of an address that was redacted."""

import logging
import os
import re
from urllib.parse import quote

HIDDEN = "***"

_USER_AND_PASSWORD = re.compile(r"(?<=://)(?P<user>[^\s:/@'\"]*):[^\s/'\"]*(?=@)")
_USER_ALONE = re.compile(r"(?i)(?:(?<=https://)|(?<=http://))[^\s:/@?#'\"]+(?=@)")
"""A user without a password. In an http address it is a token; in a database address,
``postgresql://mlflow@/db?host=/run``, it is not."""

_TOKEN_AS_USER = re.compile(r"[\w.~-]{20,}")
"""A user name of 20 or more characters is treated as a token: ``https://TOKEN:x-oauth-basic@host``."""

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
"""Minimum length of an environment variable's value that is hidden; a shorter one may be an ordinary word."""
_NO_SECRET = "posefleet"
"""Password of test clusters. It is not hidden, as it is also in logger names and the default MLflow experiment."""


def redact(text: str) -> str:
    """``text`` with every secret replaced by ``***``; a second call changes nothing more.

    Hides:
        - passwords in ``scheme://user:password@host``; the user name stays unless it has 20 or more characters, as
          tokens have
        - the user of ``https://TOKEN@host``
        - query values with secret names: ``?password=``, ``?sig=``, every ``X-Amz-...``
        - bearer tokens and Authorization headers
        - values of 8 or more characters, plain or percent-encoded, of environment variables whose names end in a word
          such as TOKEN or PASSWORD
    """
    secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name)} - {_NO_SECRET}
    for value in sorted(secrets, key=len, reverse=True):  # longest first: a secret may contain another
        if len(value) >= _FEWEST_LETTERS:
            text = text.replace(value, HIDDEN).replace(quote(value, safe=""), HIDDEN)
    return _hide_patterns(text)


def _hide_patterns(text: str) -> str:
    """Hide the secrets that have a known form, which do not depend on the environment."""
    text = _USER_AND_PASSWORD.sub(lambda m: f"{_TOKEN_AS_USER.sub(HIDDEN, m['user'])}:{HIDDEN}", text)
    text = _USER_ALONE.sub(HIDDEN, text)
    text = _QUERY.sub(rf"\g<before>{HIDDEN}", text)
    text = _AUTHORIZATION.sub(lambda m: f"{m['before']}{m['scheme'] or ''}{HIDDEN}", text)
    return _BEARER.sub(rf"\g<before>{HIDDEN}", text)


def redact_logs(*handlers: logging.Handler | None) -> None:
    """Redact the messages and tracebacks of these handlers; a second call for the same handler is harmless."""
    for handler in handlers:
        if handler is not None:
            handler.addFilter(_redact_record)


def _redact_record(record: logging.LogRecord) -> bool:
    try:
        record.msg, record.args = redact(record.getMessage()), None
    except (TypeError, ValueError):  # the arguments do not fit the message; the handler reports that itself
        return True
    if record.exc_info:  # formatters prefer exc_text to the traceback
        record.exc_text = redact(record.exc_text or logging.Formatter().formatException(record.exc_info))
    return True


def restored(kept: str, *known: str) -> str:
    """The address, with its password, whose redacted form is ``kept``.

    Args:
        kept: Result of :func:`redact`, of this version or of an earlier one that hid less. An address in which nothing
            is hidden is returned unchanged.
        known: Candidate addresses, besides $MLFLOW_TRACKING_URI.

    Raises:
        ValueError: No candidate has this redacted form.
    """
    if HIDDEN not in kept:
        return kept
    for address in (*known, os.environ.get("MLFLOW_TRACKING_URI", "")):
        whole = address.rstrip("/")
        # redact(kept) brings the form of an earlier version up to date. The second test still matches when the
        # environment, and with it what redact hides, has changed since.
        if redact(whole) == redact(kept) or _hide_patterns(whole) == _hide_patterns(kept):
            return whole
    raise ValueError(f"{kept} is kept without its password; give the whole address in $MLFLOW_TRACKING_URI")
