"""Anthropic's error body: `{"type": "error", "error": {"type", "message"}, "request_id"}`, and who gets it."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import Scope

from api.errors import ApiError

OVERLOADED = 529
"""Where other protocols have 503; https://platform.claude.com/docs/en/api/errors."""

THREAD_UNSUPPORTED = "thread_unsupported_request"
"""The SDK's tool runner reads this code, and sends the whole conversation from then on."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    OVERLOADED: "overloaded_error",
}


def speaks_anthropic(scope: Scope) -> bool:
    """Does the caller expect this protocol? /v1/models is in two of them: the version header tells."""
    path = scope["path"]
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return True
    is_models = path == "/v1/models" or path.startswith("/v1/models/")
    return is_models and "anthropic-version" in Headers(scope=scope)


def status_of(error: ApiError) -> int:
    """The status that this protocol has for an error."""
    return OVERLOADED if error.status_code == 503 else error.status_code


def error_object(error: ApiError) -> dict[str, Any]:
    """`type` follows the status; the message says which field is at fault."""
    status = status_of(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    described: dict[str, Any] = {"type": kind, "message": error.message}
    if error.code == THREAD_UNSUPPORTED:
        described["details"] = {"error_code": error.code, "unsupported": [error.param]}
    return described


def error_body(error: ApiError, request_id: str | None) -> dict[str, Any]:
    """The body of a refusal, and the data of an `error` event."""
    return {"type": "error", "error": error_object(error), "request_id": request_id}


def refusal(error: ApiError, scope: Scope) -> Response:
    """An error as a whole response in its caller's protocol."""
    if not speaks_anthropic(scope):
        return error.response()
    body = error_body(error, scope.get("state", {}).get("request_id"))
    return Response(orjson.dumps(body), status_of(error), error.headers, media_type="application/json")
