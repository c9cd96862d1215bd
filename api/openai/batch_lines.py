"""OpenAI's batch files: `{"custom_id", "method", "url", "body"}` in, `{"id", "custom_id", "response", "error"}` out."""

from __future__ import annotations

from typing import Any

import orjson

from api.batch_format import BadLine, RequestLine
from api.errors import ApiError
from api.kinds import known_kinds
from scheduler.batches.states import Outcome

PROTOCOL = "openai"

MAX_CUSTOM_ID_CHARS = 512

BATCHED_KINDS = ("chat.completions", "completions", "responses", "embeddings")
"""Kinds of jobs that OpenAI takes in batches; those of them that this server has are served."""

_DROPPED = {
    Outcome.EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
    Outcome.CANCELED: ("batch_cancelled", "This request was not executed because the batch was cancelled."),
}


def endpoints() -> dict[str, str]:
    """The URLs that a batch may name, and the kinds of jobs that they make."""
    return {f"/v1/{kind.replace('.', '/')}": kind for kind in BATCHED_KINDS if kind in known_kinds()}


class OpenAIBatches:
    """Implements BatchFormat."""

    separates_errors = True
    result_purpose = "batch_output"

    def read(self, raw: bytes, endpoint: str) -> RequestLine:
        """One line of the input. Raises BadLine with the codes of OpenAI's validation."""
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BadLine("invalid_json_line", f"This line is not parseable as valid JSON: {error}.") from error
        if not isinstance(value, dict):
            raise BadLine("invalid_json_line", "This line is not a JSON object.")
        custom_id = value.get("custom_id")
        if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS or "\0" in custom_id:
            text = f"custom_id must be a string of 1 to {MAX_CUSTOM_ID_CHARS} characters."
            raise BadLine("missing_required_parameter" if custom_id is None else "invalid_custom_id", text, "custom_id")
        if value.get("method") != "POST":
            raise BadLine("invalid_method", "method must be POST.", "method")
        if value.get("url") != endpoint:
            text = f"The url {value.get('url')!r} is not the batch's endpoint {endpoint!r}."
            raise BadLine("mismatched_endpoint", text, "url")
        if not isinstance(value.get("body"), dict):
            raise BadLine("invalid_body", "body must be a JSON object.", "body")
        return RequestLine(custom_id, endpoints()[endpoint], value["body"])

    def answered(self, custom_id: str, request_id: str, body: dict[str, Any]) -> bytes:
        """For the output file."""
        return _line(custom_id, request_id, response=_response(200, request_id, body))

    def refused(self, custom_id: str, request_id: str, error: ApiError) -> bytes:
        """For the error file: the response that the endpoint would have given."""
        return _line(custom_id, request_id, response=_response(error.status_code, request_id, error.body()))

    def dropped(self, custom_id: str, request_id: str, outcome: Outcome) -> bytes:
        """For the error file: there was no response."""
        code, message = _DROPPED[outcome]
        return _line(custom_id, request_id, error={"code": code, "message": message})


def _response(status: int, request_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"status_code": status, "request_id": request_id, "body": body}


def _line(
    custom_id: str, request_id: str, *, response: dict[str, Any] | None = None, error: dict[str, Any] | None = None
) -> bytes:
    line_id = f"batch_req_{request_id.removeprefix('batch_')}"
    return orjson.dumps({"id": line_id, "custom_id": custom_id, "response": response, "error": error})
