"""Dead letters over HTTP: list them, run them again or discard them, one or all."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from api.again import run_again
from api.bodies import JsonResponse, JsonRoute
from api.call import Call, CurrentCall
from api.errors import ApiError, api_error
from api.job_object import find_job, job_object
from api.listing import MAX_PAGE
from api.node import CurrentNode, Node
from scheduler.dead_letters import DeadLetters
from scheduler.errors import FarmError
from scheduler.jobs import JobState

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=JsonRoute)

ALL_AT_ONCE = 1000
"""One call deals with no more; `has_more` says that there are."""


@router.get("/dead")
async def list_dead(
    node: CurrentNode, call: CurrentCall, limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50
) -> Response:
    """Dead jobs that wait for a decision, the longest dead first."""
    ids = await DeadLetters(node.queue).ids(call.caller.tenant, limit + 1)
    page = [await job_object(node, call.caller, job_id) for job_id in ids[:limit]]
    return JsonResponse({"object": "list", "data": page, "has_more": len(ids) > limit})


@router.post("/dead/retry")
async def retry_all(node: CurrentNode, call: CurrentCall) -> Response:
    """Run every dead job again as a new async job; those that cannot be run stay where they are."""
    retried, failed = [], []
    ids = await DeadLetters(node.queue).ids(call.caller.tenant, ALL_AT_ONCE + 1)
    for job_id in ids[:ALL_AT_ONCE]:
        try:
            retried.append({"id": job_id, "new_id": await _retry(node, call, job_id)})
        except FarmError as error:
            failed.append({"id": job_id, "error": api_error(error).body()["error"]})
        except ApiError as error:
            failed.append({"id": job_id, "error": error.body()["error"]})
    return JsonResponse({"retried": retried, "failed": failed, "has_more": len(ids) > ALL_AT_ONCE})


@router.post("/dead/discard")
async def discard_all(node: CurrentNode, call: CurrentCall) -> Response:
    """Discard every dead job."""
    letters = DeadLetters(node.queue)
    ids = await letters.ids(call.caller.tenant, ALL_AT_ONCE + 1)
    discarded = [job_id for job_id in ids[:ALL_AT_ONCE] if await letters.discard(job_id)]
    return JsonResponse({"discarded": discarded, "has_more": len(ids) > ALL_AT_ONCE})


@router.post("/{job_id}/discard")
async def discard(job_id: str, node: CurrentNode, call: CurrentCall) -> Response:
    """Discard one dead job: it leaves the list, and its body goes after the usual time."""
    job = await find_job(node, call.caller, job_id)
    if job.state is not JobState.DEAD:
        raise ApiError(409, f"Job {job_id} is {job.state}; only dead jobs can be discarded.", code="job_not_dead")
    await DeadLetters(node.queue).discard(job_id)
    return JsonResponse(await job_object(node, call.caller, job_id))


async def _retry(node: Node, call: Call, job_id: str) -> str:
    return (await run_again(node, call, await find_job(node, call.caller, job_id))).id
