"""A line of a batch as a job: the same edge code as the synchronous endpoint's, in the low lane."""

from __future__ import annotations

from dataclasses import replace

import structlog

from api.batch_format import RequestLine
from api.bodies import refuse_nul
from api.call import Call
from api.errors import SERVER_ERROR, ApiError, InvalidParameter, api_error
from api.kinds import draft_of
from api.node import Node
from api.serving import serving
from api.submission import prepare
from scheduler.batches.records import Batch
from scheduler.errors import FarmError, QueueUnavailable, RecordUnavailable, UnknownModel
from scheduler.jobs import Lane
from scheduler.queue import NewJob
from scheduler.routing.rules import Asked

log = structlog.get_logger()


class ModelAway(Exception):
    """A model that was served when the batch was validated is not served now: its lines wait."""


def request_id(batch: Batch, number: int) -> str:
    """The id of a line's request, in its result and in the record."""
    return f"{batch.id}-{number}"


async def job_of(node: Node, batch: Batch, number: int, line: RequestLine, now_ms: int) -> NewJob:
    """The job of a line. Raises ApiError for a refused one, ModelAway, QueueUnavailable, RecordUnavailable."""
    try:
        return await _prepared(node, batch, number, line, now_ms)
    except (ApiError, QueueUnavailable, RecordUnavailable):
        raise
    except UnknownModel as error:
        if line.body.get("model") in batch.models.get("served", ()):
            raise ModelAway(str(error)) from error
        raise api_error(error) from error
    except FarmError as error:
        raise api_error(error) from error
    except Exception as error:  # a defect of ours must not stop the lines behind it
        log.exception("a line could not be translated", batch=batch.id, line=number)
        text = "The server made a mistake; its log has the details."
        raise ApiError(500, text, kind=SERVER_ERROR, code="internal_error") from error


async def _prepared(node: Node, batch: Batch, number: int, line: RequestLine, now_ms: int) -> NewJob:
    refuse_nul(line.body, ("body",))
    draft = draft_of(line.kind, line.body)
    if draft.streamed:
        raise InvalidParameter("body.stream", "A batch's answers are not streamed; leave it out.")
    call = Call(
        caller=node.admission.caller_known_as(batch.options.get("key_id", ""), batch.tenant),
        request_id=request_id(batch, number),
        lane=Lane.LOW,
        timeout_s=max(0.001, (batch.expires_ms - now_ms) / 1000),
        patience_s=None,
        responds_async=True,
        idempotency_key="",
        stays=True,
    )
    # also where a routing rule names another lane: a batch never goes before people
    return replace(await prepare(node, draft, call, durable=True), lane=Lane.LOW)


async def served_models(node: Node, tenant: str, names: list[str]) -> list[str]:
    """Those of the names that somebody serves now, by the routing rules. Raises QueueUnavailable."""
    served = []
    for name in names:
        try:
            await serving(node, Asked(model=name, lane=Lane.LOW, tenant=tenant))
        except UnknownModel:
            continue
        served.append(name)
    return served
