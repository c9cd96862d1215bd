"""`/v1/batches`: create, look, list, cancel. What runs them is api/batches."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.batches.asking import webhook_of, window_s
from api.bodies import JsonResponse, JsonRoute
from api.call import CurrentCall, PageId
from api.errors import ApiError, InvalidParameter
from api.node import CurrentNode, Node
from api.openai.batch_lines import PROTOCOL, endpoints
from api.openai.files import MAX_EXPIRY_S, MIN_EXPIRY_S, list_object
from scheduler.batches.records import Batch, new_batch_id
from scheduler.batches.states import CANCELLABLE, BatchState
from scheduler.errors import UnknownFile
from scheduler.jobs import Lane

MAX_METADATA_PAIRS = 16
MAX_METADATA_KEY_CHARS = 64
MAX_METADATA_VALUE_CHARS = 512

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=JsonRoute)


class OutputExpiry(BaseModel):
    """When the result files go."""

    model_config = ConfigDict(strict=True)

    anchor: Literal["created_at"]
    seconds: int = Field(ge=MIN_EXPIRY_S, le=MAX_EXPIRY_S)


class NewBatch(BaseModel):
    """OpenAI's batch; a `completion_window` other than 24h is our extension."""

    model_config = ConfigDict(strict=True, extra="allow")

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None
    output_expires_after: OutputExpiry | None = None


@router.post("")
async def create_batch(body: NewBatch, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """Accept a batch: it is validated next, runs in the low lane, and ends within its window.

    `Farm-Webhook: https://…` is told of the end.
    """
    _check(body)
    call.caller.lane(Lane.LOW, Lane.LOW)
    await _check_input(node, call.caller.tenant, body.input_file_id)
    expiry, created_ms = body.output_expires_after, time.time_ns() // 1_000_000
    batch = Batch(
        id=new_batch_id("batch"),
        tenant=call.caller.tenant,
        protocol=PROTOCOL,
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        completion_window=body.completion_window,
        created_ms=created_ms,
        expires_ms=created_ms + window_s(body.completion_window) * 1000,
        options={
            "metadata": body.metadata,
            "key_id": call.caller.key_id,
            "webhook": webhook_of(request, node.settings),
            "result_ttl_s": expiry.seconds if expiry else node.settings.batch_result_ttl_s,
        },
    )
    await node.batches.add(batch)
    ignored = sorted(body.model_extra or {})
    headers = {"farm-ignored-params": ", ".join(ignored)} if ignored else {}
    return JsonResponse(batch_object(batch), headers=headers)


@router.get("")
async def list_batches(
    node: CurrentNode,
    call: CurrentCall,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: PageId = None,
) -> Response:
    """Newest first, in pages: `after` is the `last_id` of the page before."""
    found = await node.batches.page(call.caller.tenant, PROTOCOL, limit=limit + 1, after=after)
    return JsonResponse(list_object([batch_object(batch) for batch in found], limit))


@router.get("/{batch_id}")
async def get_batch(batch_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """A batch's state and counts."""
    return JsonResponse(batch_object(await node.batches.get(call.caller.tenant, PROTOCOL, batch_id)))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Stop a batch: what is done is kept, the rest gets no answer. Repeating it is a no-op."""
    batch = await node.batches.get(call.caller.tenant, PROTOCOL, batch_id)
    if batch.state in CANCELLABLE:
        batch = await node.batches.cancel(batch)
    if batch.state not in (BatchState.CANCELLING, BatchState.CANCELLED):
        text = f"Cannot cancel a batch with status '{batch.state.value}'."
        raise ApiError(409, text, kind="conflict_error", code="batch_not_cancellable")
    return JsonResponse(batch_object(batch))


def batch_object(batch: Batch) -> dict[str, Any]:
    """A batch in OpenAI's words. Requests that were cancelled or have expired count as failed."""
    counts, asked = batch.counts, batch.models.get("asked") or []
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": asked[0] if len(asked) == 1 else None,
        "errors": {"object": "list", "data": batch.errors["data"]} if batch.errors else None,
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.state.value,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_ms // 1000,
        "in_progress_at": _seconds(batch.in_progress_ms),
        "expires_at": batch.expires_ms // 1000,
        "finalizing_at": _seconds(batch.finalizing_ms),
        "cancelling_at": _seconds(batch.cancelling_ms),
        **{
            f"{state.value}_at": _seconds(batch.ended_ms) if batch.state is state else None
            for state in (BatchState.COMPLETED, BatchState.FAILED, BatchState.EXPIRED, BatchState.CANCELLED)
        },
        "request_counts": {
            "total": counts.total,
            "completed": counts.succeeded,
            "failed": counts.done - counts.succeeded,
        },
        "usage": _usage(batch.usage),
        "metadata": batch.options.get("metadata"),
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any] | None:
    if not usage:
        return None
    return {
        "input_tokens": usage["input"],
        "input_tokens_details": {"cached_tokens": usage["cached"]},
        "output_tokens": usage["output"],
        "output_tokens_details": {"reasoning_tokens": usage["reasoning"]},
        "total_tokens": usage["input"] + usage["output"],
    }


def _check(body: NewBatch) -> None:
    if body.endpoint not in endpoints():
        raise InvalidParameter("endpoint", f"Known: {', '.join(endpoints())}.")
    window_s(body.completion_window)
    metadata = body.metadata or {}
    if len(metadata) > MAX_METADATA_PAIRS:
        raise InvalidParameter("metadata", f"{MAX_METADATA_PAIRS} pairs at most.")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY_CHARS or len(value) > MAX_METADATA_VALUE_CHARS:
            text = f"Keys have {MAX_METADATA_KEY_CHARS}, values {MAX_METADATA_VALUE_CHARS} characters at most."
            raise InvalidParameter(f"metadata.{key[:MAX_METADATA_KEY_CHARS]}", text)


async def _check_input(node: Node, tenant: str, file_id: str) -> None:
    try:
        file = await node.files.get(tenant, file_id)
    except UnknownFile as error:
        raise InvalidParameter("input_file_id", str(error)) from error
    if file.purpose != "batch":
        raise InvalidParameter("input_file_id", f"The file's purpose is {file.purpose!r}, not 'batch'.")
    limit_bytes = node.settings.batch_input_bytes
    if file.size_bytes > limit_bytes:
        raise InvalidParameter("input_file_id", f"A batch has {limit_bytes} bytes at most. Split the file.")


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000
