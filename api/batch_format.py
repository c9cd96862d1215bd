"""What a protocol says about batches: how a line is read, and how its outcome is written. One machinery serves all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from api.errors import ApiError
from scheduler.batches.states import Outcome


@dataclass(frozen=True, slots=True)
class RequestLine:
    """One request of a batch: `body` is what the endpoint of a job of this `kind` takes."""

    custom_id: str
    kind: str
    body: dict[str, Any]


class BadLine(Exception):
    """A line that is no request of its batch, which fails for it before anything runs."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class BatchFormat(Protocol):
    """One protocol's batches. Results are whole lines of JSON, without the line's end."""

    separates_errors: bool
    """Do lines that did not succeed go into a file of their own?"""

    result_purpose: str
    """The purpose of result files."""

    def read(self, raw: bytes, endpoint: str) -> RequestLine:
        """One line of the input. Raises BadLine."""

    def answered(self, custom_id: str, request_id: str, body: dict[str, Any]) -> bytes:
        """The result of a request that was answered."""

    def refused(self, custom_id: str, request_id: str, error: ApiError) -> bytes:
        """The result of a request that was refused or has failed."""

    def dropped(self, custom_id: str, request_id: str, outcome: Outcome) -> bytes:
        """The result of a request whose batch has ended before it could."""
