"""What listings of jobs have in common: filters, times, and the keyset cursor `<submitted ms>.<job id>`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Query, Request

from api.errors import InvalidParameter
from scheduler.jobs import Job, JobState, Lane
from scheduler.store import JobFilter

MAX_PAGE = 1000

_AGO = re.compile(r"(\d+)([smhdw])")
_UNIT_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}
_SECONDS_UNTIL = 100_000_000_000
"""A number below this is in seconds (until the year 5138), above it in ms (since 1973)."""


async def wanted_jobs(
    request: Request,
    state: Annotated[JobState | None, Query(description="Only jobs in this state.")] = None,
    status: Annotated[JobState | None, Query(description="Another name of state.")] = None,
    model: Annotated[str | None, Query(description="The model that served.")] = None,
    lane: Annotated[Lane | None, Query()] = None,
    tenant: Annotated[str | None, Query()] = None,
    since: Annotated[str | None, Query(description="ISO 8601, Unix time, or an age such as 24h.")] = None,
    until: Annotated[str | None, Query(description="As since; jobs before it.")] = None,
) -> JobFilter:
    """The filter of the query string, within the caller's tenant. Raises InvalidParameter."""
    own = request.state.caller.tenant
    if tenant is not None and tenant != own:
        raise InvalidParameter("tenant", f"This key sees the jobs of tenant {own!r} only.")
    return JobFilter(
        tenant=own,
        model=model,
        state=state or status,
        lane=lane,
        since_ms=time_ms("since", since),
        until_ms=time_ms("until", until),
    )


WantedJobs = Annotated[JobFilter, Depends(wanted_jobs)]


def time_ms(param: str, text: str | None) -> int | None:
    """Read a time as ms since 1970. Raises InvalidParameter."""
    if not text:
        return None
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return time.time_ns() // 1_000_000 - int(ago[1]) * _UNIT_MS[ago[2]]
    try:
        if text.isascii() and text.isdigit() and len(text) <= 15:
            number = int(text)
            return number * 1000 if number < _SECONDS_UNTIL else number
        moment = datetime.fromisoformat(text.replace(" ", "+"))  # a "+" of a zone that was not escaped
    except ValueError as error:
        raise InvalidParameter(
            param, f"{text!r} is no time: use ISO 8601, Unix time, or an age such as 24h."
        ) from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def cursor_of(job: Job) -> str:
    """The `after` that continues behind this job."""
    return f"{job.submitted_ms}.{job.id}"


def after_cursor(text: str | None) -> tuple[int, str] | None:
    """Inverse of `cursor_of`. Raises InvalidParameter."""
    if not text:
        return None
    submitted_ms, dot, job_id = text.partition(".")
    if not dot or not submitted_ms.isdecimal() or len(submitted_ms) > 15 or not job_id:
        raise InvalidParameter("after", "'after' is the 'next' of the page before.")
    return int(submitted_ms), job_id
