"""The audit log over HTTP: requests, and what was decided about models; in pages, as JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Query, Response

from api.bodies import JsonResponse
from api.errors import InvalidParameter
from api.listing import MAX_PAGE, WantedJobs, after_cursor, cursor_of, time_ms
from api.node import CurrentNode
from scheduler.jobs import Job
from scheduler.model_events import ModelEvent
from scheduler.model_record import ModelEventFilter, recorded_model_events
from scheduler.store import JOB_COLUMNS

router = APIRouter(prefix="/v1/audit", tags=["audit"])

NEXT_HEADER = "farm-next"
"""Where pages that are no JSON object tell the next `after`."""


Format = Annotated[Literal["json", "jsonl", "csv"], Query(description="Shape of the page.")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
After = Annotated[str | None, Query(description="The `next` of the page before.")]
Time = Annotated[str | None, Query(description="ISO 8601, Unix time, or an age such as 24h.")]

MODEL_EVENT_COLUMNS = ("at_ms", "seq", "agent", "event", "model", "data")


@router.get("/requests")
async def list_requests(
    node: CurrentNode, wanted: WantedJobs, format: Format = "json", limit: Limit = 100, after: After = None
) -> Response:
    """Rows of the table `jobs`, newest first. Times are ms since 1970, durations ms, sizes tokens."""
    jobs = await node.store.jobs(wanted, after=after_cursor(after), limit=limit + 1)
    following = cursor_of(jobs[limit - 1]) if len(jobs) > limit else None
    return _page([_row(job) for job in jobs[:limit]], JOB_COLUMNS, ("params", "routing"), following, format)


@router.get("/models")
async def list_model_events(
    node: CurrentNode,
    model: str | None = None,
    agent: str | None = None,
    event: ModelEvent | None = None,
    since: Time = None,
    until: Time = None,
    format: Format = "json",
    limit: Limit = 100,
    after: After = None,
) -> Response:
    """Rows of the table `model_events`, newest first: what node agents decided, and why."""
    wanted = ModelEventFilter(
        model=model,
        agent=agent,
        event=event.value if event else None,
        since_ms=time_ms("since", since),
        until_ms=time_ms("until", until),
    )
    rows = await recorded_model_events(node.store.engine, wanted, before=_place(after), limit=limit + 1)
    page = rows[:limit]
    following = f"{page[-1]['at_ms']}.{page[-1]['seq']}" if len(rows) > limit else None
    return _page(page, MODEL_EVENT_COLUMNS, ("data",), following, format)


def _place(after: str | None) -> tuple[int, int] | None:
    """The place of an event in the log. Raises InvalidParameter."""
    cursor = after_cursor(after)
    if cursor is None:
        return None
    at_ms, seq = cursor
    if not (seq.isascii() and seq.isdecimal() and len(seq) <= 15):
        raise InvalidParameter("after", "'after' is the 'next' of the page before.")
    return at_ms, int(seq)


def _page(
    page: Sequence[dict[str, Any]], columns: Sequence[str], nested: Sequence[str], following: str | None, format: str
) -> Response:
    """Rows in the shape asked for; `nested` columns are JSON in a CSV's cells."""
    if format == "json":
        return JsonResponse(
            {"object": "list", "data": page, "has_more": following is not None, "next": following},
        )
    headers = {NEXT_HEADER: following} if following else {}
    if format == "jsonl":
        lines = b"".join(orjson.dumps(row) + b"\n" for row in page)
        return Response(lines, headers=headers, media_type="application/x-ndjson")
    return Response(_csv(page, columns, nested), headers=headers, media_type="text/csv; charset=utf-8")


def _row(job: Job) -> dict[str, Any]:
    return asdict(job) | {"state": job.state.value, "lane": job.lane.value}


def _csv(rows: Sequence[dict[str, Any]], columns: Sequence[str], nested: Sequence[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {name: orjson.dumps(row[name]).decode() for name in nested})
    return text.getvalue()
