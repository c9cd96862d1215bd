"""Errors as HTTP: one table from error class to status and code, and OpenAI's error object with all four keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from fastapi import HTTPException, Response

from api.limit_headers import limit_headers
from scheduler.errors import (
    AgentSilent,
    AnswerDiverged,
    ContextTooLong,
    FarmError,
    FileTooLarge,
    Forbidden,
    IdempotencyConflict,
    ImagesMisplaced,
    InvalidKey,
    InvalidProvider,
    InvalidQuery,
    InvalidRule,
    InvalidTerms,
    KeyEnded,
    LogRewritten,
    ModelFailed,
    NoTokenizer,
    OrderRefused,
    OverLimit,
    PepperUnusable,
    ProviderExists,
    QueueFull,
    QueueUnavailable,
    QuotaExceeded,
    RateLimited,
    RecordUnavailable,
    RulesMoved,
    TemplateRefused,
    TooManyFailures,
    UnknownBatch,
    UnknownFile,
    UnknownJob,
    UnknownKey,
    UnknownModel,
    UnknownProvider,
    UnknownRules,
    VaultUnusable,
)
from scheduler.frames import End
from scheduler.jobs import JobState

PROVIDER_FAILED = "provider_"
"""How codes of errors begin that are a provider's."""

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"


class ApiError(HTTPException):
    """A refusal in HTTP's terms. `param` is the dotted path of the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.kind = kind
        self.param = param
        self.code = code

    @property
    def message(self) -> str:
        """What went wrong and what to do."""
        return str(self.detail)

    def body(self) -> dict[str, Any]:
        """OpenAI's error object; the spec requires all four keys."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The error as a whole response."""
        return Response(orjson.dumps(self.body()), self.status_code, self.headers, media_type="application/json")


class Unsupported(ApiError):
    """A documented parameter, or a value of it, that this server cannot honour."""

    def __init__(self, param: str, hint: str = "") -> None:
        message = f"This server does not support {param!r}{' here' if not hint else ''}.{' ' + hint if hint else ''}"
        super().__init__(400, message, param=param, code="unsupported_parameter")


class InvalidParameter(ApiError):
    """A field whose value cannot be right."""

    def __init__(self, param: str, message: str, code: str | None = None) -> None:
        super().__init__(400, f"Invalid {param!r}: {message}", param=param, code=code)


class JobEnded(ApiError):
    """A job that did not end well."""

    def __init__(self, end: End, status: int, message: str, **more: Any) -> None:
        super().__init__(status, message, **more)
        self.end = end


class Draining(ApiError):
    """This node is about to stop; jobs go on without it."""

    def __init__(self, job_id: str = "") -> None:
        message = "This server node is shutting down; try again, another node or its successor will answer."
        headers = {"retry-after": "1", "retry-after-ms": "1000", "x-should-retry": "true"}
        if job_id:
            message = f"This server node is shutting down. The job goes on: GET /v1/jobs/{job_id} has its result."
            headers |= {"farm-job-id": job_id, "location": f"/v1/jobs/{job_id}"}
        super().__init__(503, message, kind=SERVER_ERROR, code="engine_draining", headers=headers)


@dataclass(frozen=True, slots=True)
class _Answer:
    """How one error class looks to the client."""

    status: int
    code: str | None
    kind: str = INVALID_REQUEST
    param: str | None = None


_ANSWERS: Mapping[type[FarmError], _Answer] = {
    QueueUnavailable: _Answer(503, "queue_unavailable", SERVER_ERROR),
    QueueFull: _Answer(429, "rate_limit_exceeded", "rate_limit_error"),
    RateLimited: _Answer(429, "rate_limit_exceeded", "rate_limit_error"),
    OverLimit: _Answer(429, "rate_limit_exceeded", "rate_limit_error"),
    IdempotencyConflict: _Answer(422, "idempotency_key_reused", param="Idempotency-Key"),
    UnknownJob: _Answer(404, "job_not_found"),
    AnswerDiverged: _Answer(500, "answer_diverged", SERVER_ERROR),
    LogRewritten: _Answer(409, "log_rewritten", "conflict_error"),
    UnknownModel: _Answer(404, "model_not_found", param="model"),
    NoTokenizer: _Answer(400, "model_not_supported", param="model"),
    ModelFailed: _Answer(503, "model_failed", SERVER_ERROR, param="model"),
    AgentSilent: _Answer(504, "agent_silent", "timeout_error"),
    OrderRefused: _Answer(409, "order_refused", "conflict_error", param="model"),
    ContextTooLong: _Answer(400, "context_length_exceeded"),
    ImagesMisplaced: _Answer(400, "images_misplaced", param="messages"),
    TemplateRefused: _Answer(400, "template_refused", param="messages"),
    InvalidKey: _Answer(401, "invalid_api_key", "authentication_error"),
    TooManyFailures: _Answer(429, "too_many_wrong_keys", "authentication_error"),
    Forbidden: _Answer(403, "permission_denied", "permission_error"),
    InvalidTerms: _Answer(400, "invalid_key_terms"),
    UnknownKey: _Answer(404, "key_not_found"),
    PepperUnusable: _Answer(500, "pepper_unusable", SERVER_ERROR),
    InvalidProvider: _Answer(400, "invalid_provider"),
    UnknownProvider: _Answer(404, "provider_not_found"),
    ProviderExists: _Answer(409, "provider_exists", "conflict_error"),
    VaultUnusable: _Answer(500, "vault_unusable", SERVER_ERROR),
    KeyEnded: _Answer(409, "key_ended", "conflict_error"),
    RecordUnavailable: _Answer(503, "record_unavailable", SERVER_ERROR),
    UnknownFile: _Answer(404, "file_not_found"),
    FileTooLarge: _Answer(413, "request_too_large", param="file"),
    QuotaExceeded: _Answer(403, "files_quota_exceeded"),
    UnknownBatch: _Answer(404, "batch_not_found"),
    InvalidQuery: _Answer(400, "invalid_query"),
    InvalidRule: _Answer(400, "invalid_rule"),
    UnknownRules: _Answer(404, "rules_not_found"),
    RulesMoved: _Answer(409, "rules_moved", "conflict_error"),
}
_OTHER = _Answer(500, "internal_error", SERVER_ERROR)


def api_error(error: FarmError) -> ApiError:
    """An error of the core as HTTP; subclasses answer like their nearest listed class."""
    answer = next((_ANSWERS[cls] for cls in type(error).__mro__ if cls in _ANSWERS), _OTHER)
    param = error.param if isinstance(error, InvalidTerms | InvalidProvider) else answer.param
    return ApiError(answer.status, str(error), kind=answer.kind, param=param, code=answer.code, headers=_headers(error))


def end_error(end: End) -> JobEnded:
    """A job's end that is not `finished`, as the error that its caller gets."""
    code = str(end.data.get("error_code") or "")
    message = str(end.data.get("error") or "")
    final = {"x-should-retry": "false"}
    if code.startswith(PROVIDER_FAILED):  # in every way in which a job can end by it
        return JobEnded(end, 502, message, kind=SERVER_ERROR, code=code, headers=final)
    match end.state:
        case JobState.CANCELLED:
            text = "The job was cancelled."
            return JobEnded(end, 409, text, kind="conflict_error", code="cancelled", headers=final)
        case JobState.EXPIRED:
            text = message or "The job's deadline passed before it was done."
            return JobEnded(end, 504, text, kind="timeout_error", code="timeout")
        case JobState.DEAD:
            text = message or "Workers died while running this job."
            return JobEnded(end, 500, text, kind=SERVER_ERROR, code=code or "worker_lost", headers=final)
        case _ if code in ("context_length_exceeded", "invalid_request"):
            return JobEnded(end, 400, message, code=code)
        case _ if code == "model_failed":
            return JobEnded(end, 503, message, kind=SERVER_ERROR, code=code, headers=final)
        case _:
            text = message or "The engine failed."
            return JobEnded(end, 500, text, kind=SERVER_ERROR, code=code or "engine_error", headers=final)


def _headers(error: FarmError) -> dict[str, str]:
    if isinstance(error, TooManyFailures):
        return {"retry-after": str(math.ceil(error.retry_after_s)), "x-should-retry": "false"}
    if isinstance(error, InvalidKey):
        return {"www-authenticate": "Bearer"}
    standing = limit_headers(error.standing) if isinstance(error, RateLimited | OverLimit) else {}
    if isinstance(error, QueueUnavailable | QueueFull | RateLimited | RecordUnavailable):
        wait_s = max(0.001, error.retry_after_s)
        return {
            "retry-after": str(math.ceil(wait_s)),
            "retry-after-ms": str(round(wait_s * 1000)),
            "x-should-retry": "true",
            **standing,
        }
    final = isinstance(error, OverLimit | ModelFailed)
    return {"x-should-retry": "false", **standing} if final else {}
