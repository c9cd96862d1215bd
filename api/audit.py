"""The audit log over HTTP: every request's row, filtered, in pages, as JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Response

from api.bodies import JsonResponse
from api.listing import MAX_PAGE, WantedJobs, after_cursor, cursor_of
from api.node import CurrentNode
from scheduler.jobs import Job
from scheduler.store import JOB_COLUMNS

router = APIRouter(prefix="/v1/audit", tags=["audit"])

NEXT_HEADER = "farm-next"
"""Where pages that are no JSON object tell the next `after`."""


@router.get("/requests")
async def list_requests(
    node: CurrentNode,
    wanted: WantedJobs,
    format: Annotated[Literal["json", "jsonl", "csv"], Query(description="Shape of the page.")] = "json",
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
    after: Annotated[str | None, Query(description="The `next` of the page before.")] = None,
) -> Response:
    """Rows of the table `jobs`, newest first. Times are ms since 1970, durations ms, sizes tokens."""
    jobs = await node.store.jobs(wanted, after=after_cursor(after), limit=limit + 1)
    page = [_row(job) for job in jobs[:limit]]
    following = cursor_of(jobs[limit - 1]) if len(jobs) > limit else None
    if format == "json":
        return JsonResponse(
            {"object": "list", "data": page, "has_more": following is not None, "next": following},
        )
    headers = {NEXT_HEADER: following} if following else {}
    if format == "jsonl":
        lines = b"".join(orjson.dumps(row) + b"\n" for row in page)
        return Response(lines, headers=headers, media_type="application/x-ndjson")
    return Response(_csv(page), headers=headers, media_type="text/csv; charset=utf-8")


def _row(job: Job) -> dict[str, Any]:
    return asdict(job) | {"state": job.state.value, "lane": job.lane.value}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, JOB_COLUMNS)
    writer.writeheader()
    for row in rows:
        nested = {name: orjson.dumps(row[name]).decode() for name in ("params", "routing")}
        writer.writerow(row | nested)
    return text.getvalue()
