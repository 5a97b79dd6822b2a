"""Errors of a request that a replica reports to the gateway."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Why something is not done; plain, so that it travels between replicas."""

    reason: str
    """A key of ``REASONS``."""
    detail: str
    """For the person who asked: the value, what was expected, what to do."""


class ApiError(Exception):
    """Raised where a request ends."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.refusal = ErrorDetail(reason, detail)
