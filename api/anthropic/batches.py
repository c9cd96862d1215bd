"""`/v1/messages/batches`: create, look, list, cancel, delete, results as JSON lines. What runs them is api/batches.

The body of a batch never is in memory as a whole: it is written to disk, and read from there one request at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import ijson
from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from api.anthropic.batch_lines import PROTOCOL, read_request, request_line
from api.batch_format import BadLine
from api.batches.asking import webhook_of
from api.bodies import JsonResponse
from api.call import CurrentCall, PageId
from api.errors import ApiError, InvalidParameter
from api.middleware import is_json
from api.node import CurrentNode, Node
from scheduler.batches.records import Batch, new_batch_id
from scheduler.batches.states import CANCELLABLE, ENDED, BatchState, Counts
from scheduler.errors import QuotaExceeded
from scheduler.files import INTERNAL, IncomingFile, StoredFile, new_file_id
from scheduler.jobs import Lane

WINDOW_S = 86_400
ENDPOINT = "/v1/messages"

router = APIRouter(prefix="/v1/messages/batches", tags=["anthropic"])


@router.post("")
async def create_batch(node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """Accept `{"requests": [{"custom_id", "params"}, …]}`; it runs in the low lane and ends within 24 hours.

    `Farm-Webhook: https://…` is told of the end.
    """
    call.caller.lane(Lane.LOW, Lane.LOW)
    webhook = webhook_of(request, node.settings)
    tenant, quota_bytes = call.caller.tenant, node.settings.files_quota_bytes
    used_bytes = await node.files.used_bytes(tenant)
    if used_bytes >= quota_bytes:
        raise QuotaExceeded(used_bytes, quota_bytes)
    file, total = await _receive(node, tenant, request)
    created_ms = time.time_ns() // 1_000_000
    batch = Batch(
        id=new_batch_id("msgbatch"),
        tenant=tenant,
        protocol=PROTOCOL,
        endpoint=ENDPOINT,
        input_file_id=file.id,
        completion_window="24h",
        created_ms=created_ms,
        expires_ms=created_ms + WINDOW_S * 1000,
        counts=Counts(total=total),
        options={
            "key_id": call.caller.key_id,
            "webhook": webhook,
            "result_ttl_s": node.settings.batch_result_ttl_s,
        },
    )
    await node.batches.add(batch, file)
    return JsonResponse(await batch_object(node, batch, request))


@router.get("")
async def list_batches(
    node: CurrentNode,
    call: CurrentCall,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
    after_id: PageId = None,
    before_id: PageId = None,
) -> Response:
    """Newest first; `after_id` is the `last_id` of the page before, `before_id` the `first_id` of the page behind."""
    found = await node.batches.page(call.caller.tenant, PROTOCOL, limit=limit + 1, after=after_id, before=before_id)
    page = found[:limit]
    if before_id is not None:
        page.reverse()
    return JsonResponse(
        {
            "data": [await batch_object(node, batch, request) for batch in page],
            "has_more": len(found) > limit,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


@router.get("/{batch_id}")
async def get_batch(batch_id: str, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """A batch's state and counts."""
    batch = await node.batches.get(call.caller.tenant, PROTOCOL, batch_id)
    return JsonResponse(await batch_object(node, batch, request))


@router.post("/{batch_id}/cancel")
async def cancel_batch(batch_id: str, node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """Stop a batch: what is done is kept, the rest is canceled. Of an ended batch a no-op."""
    batch = await node.batches.get(call.caller.tenant, PROTOCOL, batch_id)
    if batch.state in CANCELLABLE:
        batch = await node.batches.cancel(batch)
    return JsonResponse(await batch_object(node, batch, request))


@router.delete("/{batch_id}")
async def delete_batch(batch_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Forget an ended batch with its results."""
    batch = await node.batches.get(call.caller.tenant, PROTOCOL, batch_id)
    if batch.state not in ENDED:
        raise ApiError(409, f"Batch {batch.id} has not ended; cancel it first.", kind="conflict_error")
    await node.batches.delete(batch)
    await node.files.delete([batch.input_file_id, *filter(None, [batch.output_file_id])])
    return JsonResponse({"id": batch.id, "type": "message_batch_deleted"})


@router.get("/{batch_id}/results")
async def get_results(batch_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """One line of JSON for each request."""
    batch = await node.batches.get(call.caller.tenant, PROTOCOL, batch_id)
    if batch.state not in ENDED or batch.output_file_id is None:
        raise ApiError(409, f"Batch {batch.id} has not ended; its results are not there yet.", kind="conflict_error")
    if not await node.batches.has_file(batch.output_file_id):
        raise ApiError(404, f"The results of batch {batch.id} were archived; their time is over.")
    return FileResponse(node.files.path(batch.output_file_id), media_type="application/x-jsonl")


async def batch_object(node: Node, batch: Batch, request: Request) -> dict[str, Any]:
    """A batch in Anthropic's words."""
    counts, ended = batch.counts, batch.state in ENDED
    has_results = batch.output_file_id is not None
    kept = has_results and await node.batches.has_file(str(batch.output_file_id))
    status = "ended" if ended else "canceling" if batch.state is BatchState.CANCELLING else "in_progress"
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": status,
        "request_counts": {
            "processing": counts.total - counts.done,
            "succeeded": counts.succeeded,
            "errored": counts.errored,
            "canceled": counts.canceled,
            "expired": counts.expired,
        },
        "created_at": _moment(batch.created_ms),
        "expires_at": _moment(batch.expires_ms),
        "ended_at": _moment(batch.ended_ms),
        "cancel_initiated_at": _moment(batch.cancelling_ms),
        "archived_at": None if kept or not has_results else _moment(_archived_ms(batch)),
        "results_url": f"{str(request.base_url).rstrip('/')}{router.prefix}/{batch.id}/results" if kept else None,
    }


async def _receive(node: Node, tenant: str, request: Request) -> tuple[StoredFile, int]:
    """The body's requests as a file of lines, on the disk, and how many they are. Raises ApiError, FileTooLarge."""
    if not is_json(request.headers.get("content-type", "")):
        raise ApiError(415, "The body must be JSON and say so: add -H 'Content-Type: application/json'.")
    body = node.files.receive(node.settings.batch_input_bytes)
    lines = node.files.receive(2 * node.settings.batch_input_bytes)
    try:
        async for chunk in request.stream():
            body.write(chunk)
        total = await asyncio.to_thread(_rewrite, body, lines, node.settings.batch_max_requests)
        file = StoredFile(
            id=new_file_id(),
            tenant=tenant,
            purpose=INTERNAL,
            filename="requests.jsonl",
            size_bytes=lines.size_bytes,
            sha256=lines.sha256,
            created_ms=time.time_ns() // 1_000_000,
            expires_ms=time.time_ns() // 1_000_000 + round((WINDOW_S + node.settings.batch_result_ttl_s) * 1000),
        )
        await asyncio.to_thread(node.files.publish, file, lines)
    finally:
        body.discard()
        lines.discard()
    return file, total


def _rewrite(body: IncomingFile, lines: IncomingFile, max_requests: int) -> int:
    """The requests of a body, one a line; return how many. Blocks. Raises ApiError by the place of a bad request."""
    body.flush()
    known: set[bytes] = set()
    try:
        with body.path.open("rb") as file:
            for index, value in enumerate(ijson.items(file, "requests.item", use_float=True)):
                if index == max_requests:
                    raise InvalidParameter("requests", f"A batch has {max_requests} requests at most.")
                request = read_request(value)
                digest = hashlib.blake2b(request.custom_id.encode(), digest_size=16).digest()
                if digest in known:
                    raise BadLine("duplicate_custom_id", f"{request.custom_id!r} comes twice", "custom_id")
                known.add(digest)
                lines.write(request_line(request))
    except BadLine as error:
        raise InvalidParameter(f"requests.{len(known)}", f"{error}.") from error
    except (ijson.JSONError, UnicodeError, TypeError) as error:
        raise ApiError(400, f"The body is not valid JSON: {error}.", code="invalid_json") from error
    if not known:
        raise InvalidParameter("requests", "A batch has one request at least.")
    return len(known)


def _archived_ms(batch: Batch) -> int | None:
    return None if batch.ended_ms is None else batch.ended_ms + round(float(batch.options["result_ttl_s"]) * 1000)


def _moment(ms: int | None) -> str | None:
    """RFC 3339."""
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")
