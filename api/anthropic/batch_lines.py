"""Message batches: `{"custom_id", "params"}` in, `{"custom_id", "result": {"type", …}}` out, in one file."""

from __future__ import annotations

import re
from typing import Any

import orjson

from api.anthropic.errors import error_body
from api.anthropic.note import MESSAGES_KIND
from api.batch_format import BadLine, RequestLine
from api.errors import ApiError
from scheduler.batches.states import Outcome
from scheduler.files import INTERNAL

PROTOCOL = "anthropic"

_CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class MessageBatches:
    """Implements BatchFormat."""

    separates_errors = False
    result_purpose = INTERNAL

    def read(self, raw: bytes, endpoint: str) -> RequestLine:
        """One line of what `request_line` wrote."""
        return read_request(orjson.loads(raw))

    def answered(self, custom_id: str, request_id: str, body: dict[str, Any]) -> bytes:
        """A message."""
        return _line(custom_id, {"type": "succeeded", "message": body})

    def refused(self, custom_id: str, request_id: str, error: ApiError) -> bytes:
        """The error that the endpoint would have given."""
        return _line(custom_id, {"type": "errored", "error": error_body(error, request_id)})

    def dropped(self, custom_id: str, request_id: str, outcome: Outcome) -> bytes:
        """The request was not executed."""
        return _line(custom_id, {"type": outcome.value})


def read_request(value: Any) -> RequestLine:
    """One of a batch's `requests`. Raises BadLine."""
    if not isinstance(value, dict):
        raise BadLine("invalid_request", "a request is an object with custom_id and params")
    custom_id = value.get("custom_id")
    if not isinstance(custom_id, str) or not _CUSTOM_ID.fullmatch(custom_id):
        raise BadLine("invalid_custom_id", "custom_id has 1 to 64 letters, digits, '_' and '-'", "custom_id")
    if not isinstance(value.get("params"), dict):
        raise BadLine("invalid_params", "params is what /v1/messages takes", "params")
    return RequestLine(custom_id, MESSAGES_KIND, value["params"])


def request_line(request: RequestLine) -> bytes:
    """A request as a line of the batch's input. Raises TypeError for a number that is too large."""
    return orjson.dumps({"custom_id": request.custom_id, "params": request.body}) + b"\n"


def _line(custom_id: str, result: dict[str, Any]) -> bytes:
    return orjson.dumps({"custom_id": custom_id, "result": result})
