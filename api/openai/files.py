"""`/v1/files`: uploads streamed to disk, listed in pages, read back, deleted; each tenant sees its own."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from api.bodies import JsonResponse
from api.call import CurrentCall, PageId
from api.errors import ApiError, InvalidParameter
from api.node import CurrentNode
from api.uploads import Form, read_form
from scheduler.errors import QuotaExceeded
from scheduler.files import StoredFile, new_file_id

router = APIRouter(prefix="/v1/files", tags=["files"])

PURPOSES = ("batch", "user_data")
"""What an upload may be for. `batch_output` is the farm's own."""

MIN_EXPIRY_S, MAX_EXPIRY_S = 3600, 2_592_000
_FIELDS = {"purpose", "expires_after[anchor]", "expires_after[seconds]"}


@router.post("")
async def upload_file(node: CurrentNode, call: CurrentCall, request: Request) -> Response:
    """Keep a file: multipart/form-data with `purpose` and `file`, optionally `expires_after[anchor|seconds]`."""
    tenant, quota_bytes = call.caller.tenant, node.settings.files_quota_bytes
    used_bytes = await node.files.used_bytes(tenant)
    if used_bytes >= quota_bytes:
        raise QuotaExceeded(used_bytes, quota_bytes)
    incoming = node.files.receive(node.settings.file_limit_bytes)
    try:
        form = await read_form(request, incoming)
        now_ms = time.time_ns() // 1_000_000
        file = StoredFile(
            id=new_file_id(),
            tenant=tenant,
            purpose=_purpose(form),
            filename=_filename(form),
            size_bytes=incoming.size_bytes,
            sha256=incoming.sha256,
            created_ms=now_ms,
            expires_ms=_expires_ms(form, now_ms),
        )
        await asyncio.to_thread(node.files.publish, file, incoming)
    finally:
        incoming.discard()
    await node.files.add(file, quota_bytes)
    ignored = sorted(form.fields.keys() - _FIELDS)
    headers = {"farm-ignored-params": ", ".join(ignored)} if ignored else {}
    return JsonResponse(file_object(file), headers=headers)


@router.get("")
async def list_files(
    node: CurrentNode,
    call: CurrentCall,
    purpose: Annotated[str | None, Query(pattern="^[a-z_-]{1,32}$")] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    after: PageId = None,
) -> Response:
    """Files in pages: `after` is the `last_id` of the page before."""
    found = await node.files.page(
        call.caller.tenant, purpose=purpose, after=after, limit=limit + 1, newest_first=order == "desc"
    )
    return JsonResponse(list_object([file_object(file) for file in found], limit))


@router.get("/{file_id}")
async def get_file(file_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """What is known of a file."""
    return JsonResponse(file_object(await node.files.get(call.caller.tenant, file_id)))


@router.get("/{file_id}/content")
async def get_content(file_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """The bytes of a file; `Range` is honoured."""
    file = await node.files.get(call.caller.tenant, file_id)
    headers = {"x-content-type-options": "nosniff"}
    return FileResponse(
        node.files.path(file.id), headers=headers, media_type="application/octet-stream", filename=file.filename
    )


@router.delete("/{file_id}")
async def delete_file(file_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Delete a file; not while a batch still reads it."""
    file = await node.files.get(call.caller.tenant, file_id)
    if batch_id := await node.batches.reader_of(file.id):
        text = f"Batch {batch_id} still reads this file. Cancel it or wait for its end."
        raise ApiError(409, text, kind="conflict_error", code="file_in_use")
    await node.files.delete([file.id])
    return JsonResponse({"id": file.id, "object": "file", "deleted": True})


def file_object(file: StoredFile) -> dict[str, Any]:
    """A file in OpenAI's words, with its hash."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_ms // 1000,
        "expires_at": None if file.expires_ms is None else file.expires_ms // 1000,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
        "sha256": file.sha256,
    }


def list_object(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    """A page of things with an `id`; `found` has one more than `limit` where more follow."""
    page = found[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > limit,
    }


def _purpose(form: Form) -> str:
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise InvalidParameter("purpose", f"Say what the file is for: {' or '.join(PURPOSES)}.")
    if purpose not in PURPOSES:
        raise InvalidParameter("purpose", f"{purpose!r} is not served here; known: {', '.join(PURPOSES)}.")
    return purpose


def _filename(form: Form) -> str:
    if form.filename is None:
        raise InvalidParameter("file", "The form has no file: -F file=@requests.jsonl.")
    return form.filename


def _expires_ms(form: Form, now_ms: int) -> int | None:
    anchor, seconds = form.fields.get("expires_after[anchor]"), form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise InvalidParameter("expires_after.anchor", "The only anchor is created_at.")
    if not seconds or not seconds.isdecimal() or not MIN_EXPIRY_S <= int(seconds) <= MAX_EXPIRY_S:
        raise InvalidParameter("expires_after.seconds", f"From {MIN_EXPIRY_S} to {MAX_EXPIRY_S} seconds.")
    return now_ms + int(seconds) * 1000
