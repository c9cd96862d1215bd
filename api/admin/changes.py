"""Who changed what of the farm, for admins."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.bodies import JsonResponse
from api.listing import MAX_PAGE
from api.node import CurrentNode
from scheduler.admin_log import admin_changes

router = APIRouter(prefix="/admin/changes", tags=["admin"])

ChangeId = Annotated[str, Query(pattern=r"^[0-9a-f]{0,40}$", description="The `next` of the page before.")]


@router.get("")
async def list_changes(
    node: CurrentNode, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100, after: ChangeId = ""
) -> Response:
    """Changes of keys and rules, newest first, in pages."""
    changes = await admin_changes(node.store.engine, before_id=after, limit=limit + 1)
    page, more = changes[:limit], len(changes) > limit
    data = [asdict(change) for change in page]
    return JsonResponse({"object": "list", "data": data, "has_more": more, "next": page[-1].id if more else None})
