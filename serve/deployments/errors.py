"""Why a request fails, as replicas report it and as HTTP routes raise it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Why a replica or the version controller did not do what was asked; plain values, so that Ray can send it."""

    reason: str
    """A key of ``REASONS`` in ``serve/http/problems.py``."""
    detail: str
    """For the client: the value, what was expected, what to do."""


class ApiError(Exception):
    """Ends a request with an error response; ``reason`` and ``detail`` as in :class:`ErrorDetail`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail
