"""From a draft to an accepted job: route, render, bound, submit; or commit to SQL first for an async one."""

from __future__ import annotations

import hashlib
import math
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog
from ulid import ULID

from api.call import Call
from api.draft import Draft
from api.errors import ApiError
from api.kinds import check_task
from api.node import Node
from api.serving import Serving, asked_of, serving
from scheduler.admission import cache_salt_of
from scheduler.backpressure import Limits, Standing
from scheduler.errors import (
    ContextTooLong,
    IdempotencyConflict,
    ModelFailed,
    QueueFull,
    QueueUnavailable,
    RecordUnavailable,
    TemplateRefused,
)
from scheduler.job_ids import new_job_id
from scheduler.models import Served
from scheduler.queue import NewJob
from scheduler.requests import JobRequest
from scheduler.store import KeptInput
from scheduler.tokens import Backlog

log = structlog.get_logger()

UNASKED_COST_TOKENS = 1024
"""What admission counts for an answer whose length the caller left open."""

LATE_S = 60.0
"""A job may end so long after its deadline: its worker has to notice."""

UNBOUNDED_S = 7 * 86400.0
"""A job without a deadline takes one of its key's places no longer than this, should its end be lost."""

ASYNC_KEYS = "async/"
"""Async jobs have their own space of idempotency keys: SQL is their authority, Redis that of the others."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job that the farm has taken on. `again`: an earlier request with the same key has made it."""

    id: str
    request: JobRequest
    job: NewJob
    again: bool = False
    backlog: Backlog | None = None
    standing: Standing | None = None


async def prepare(node: Node, draft: Draft, call: Call, *, durable: bool, awaited: bool = False) -> NewJob:
    """Everything before the queue; `awaited`: somebody waits for the answer of a durable job.

    Raises ApiError, Forbidden, UnknownModel, ModelFailed, ContextTooLong, TemplateRefused, QueueUnavailable.
    """
    found = await serving(node, asked_of(draft, call))
    route, card = found.route, found.card
    await check_place(node, card.name)
    keep_alive_s = draft.keep_alive_s
    if keep_alive_s is not None and node.places.of(card.name) is None:
        draft.ignore("keep_alive")  # the model has a worker of its own, which keeps it
    request = await requested(node, draft, call, found)
    key = call.idempotency_key
    return NewJob(
        id=_job_id(node.settings.shards, call.caller.tenant, key),
        request=request,
        pool=card.name,
        tenant=call.caller.tenant,
        lane=route.lane,
        route=route.rule,
        rule_version=route.rule_version,
        model_asked=draft.model,
        request_id=call.request_id,
        durable=durable,
        deadline_ms=_deadline_ms(node, draft, call, found.target.timeout_s, awaited=awaited or not durable),
        node="" if durable else node.name,
        idempotency_key=(ASYNC_KEYS if durable else "") + key if key else "",
        body_hash=draft.body_hash if key else "",
        cost_tokens=_open_cost(request) if draft.open_ended else 0,
        budget=call.caller.budget,
        routing=found.record(),
    )


async def requested(node: Node, draft: Draft, call: Call, found: Serving) -> JobRequest:
    """The job's body for who serves it, with those for whoever takes over should that one fail.

    Only between the farm and providers: models of the farm do not take over from each other, because what is read out
    of a text depends on the model that wrote it. Nor does anybody who cannot honour the request, or needs its images.
    """
    first = await _request_for(node, draft, call, found, Served(found.card, found.adapter))
    local = None if found.card.provider else first
    others: list[JobRequest] = []
    for served in found.others:
        if not served.card.provider and (local is not None or draft.shown.named):
            continue
        with suppress(ApiError, ContextTooLong, TemplateRefused):
            others.append(await _request_for(node, draft, call, found, served))
            local = local if served.card.provider else others[-1]
    if not others:
        return first
    rendering = (local or first).rendering  # how to read what the farm's own model writes; providers tell by themselves
    alike = [replace(request, rendering=rendering) for request in (first, *others)]
    return replace(alike[0], fallbacks=tuple(request.without_images().encode() for request in alike[1:]))


async def _request_for(node: Node, draft: Draft, call: Call, found: Serving, served: Served) -> JobRequest:
    card, route = served.card, found.route
    check_task(draft.kind, card)
    if card.provider:
        return draft.hosted(card, route, found.asked.prompt_tokens)
    await node.images.load(draft.shown, card)
    request = await draft.request(card, await node.formats.get(card), route)
    places, salt = node.places, cache_salt_of(call.caller.tenant, shared=node.settings.share_prefixes)
    keep_alive_s = None if places.of(card.name) is None else draft.keep_alive_s
    return replace(request, adapter=served.adapter, cache_salt=salt, keep_alive_s=keep_alive_s)


async def check_place(node: Node, model: str) -> None:
    """Raise ModelFailed where the model cannot be loaded: no agent has it any more, and no other worker serves it."""
    if not node.places.failed(model):
        return
    await node.places.look()  # it may have been loaded by hand since
    reason = node.places.failed(model)
    if reason and not any(figures.get("model") == model for figures in await node.board.list()):
        raise ModelFailed(model, reason)


async def submit(node: Node, job: NewJob, limits: Limits) -> Accepted:
    """Charge the caller's limits, listen, then give a job to the queue.

    Raises RateLimited, OverLimit, QueueFull, IdempotencyConflict, QueueUnavailable, ApiError.
    """
    standing = await _charge(node, job, limits)
    backlog = node.listener.expect(job.id)
    job_id = ""
    try:
        job_id = await node.queue.submit(job)
    finally:
        if job_id != job.id:
            node.listener.forget(job.id, backlog)
            await _uncharge(node, job)
    if job_id == job.id:
        return Accepted(job_id, job.request, job, backlog=backlog, standing=standing)
    request = await node.queue.body(job_id)
    if request is None:
        raise ApiError(409, f"The result of job {job_id} (same Idempotency-Key) is no longer kept.", code="conflict")
    request = replace(request, images=job.request.images)  # the same body: what Redis may have to be told again
    return Accepted(job_id, request, replace(job, id=job_id, request=request), again=True, standing=standing)


async def accept(node: Node, job: NewJob, limits: Limits, kept: KeptInput | None = None) -> Accepted:
    """Charge the caller's limits, commit an async job with what is kept of its input, then tell the queue.

    A relay tells it later where that fails.

    Raises RateLimited, OverLimit, RecordUnavailable, IdempotencyConflict, QueueFull; nothing was accepted then.
    """
    standing = await _charge(node, job, limits)
    job_id = ""
    try:
        job_id = await _commit(node, job, kept)
    finally:
        if job_id != job.id:
            await _uncharge(node, job)
    return Accepted(job_id, job.request, job, again=job_id != job.id, standing=standing)


async def _commit(node: Node, job: NewJob, kept: KeptInput | None) -> str:
    """Return the id of the job, or of an earlier one with the same idempotency key."""
    with suppress(QueueUnavailable):  # then the relay will see whether there is room
        await node.queue.require_room(job)
    try:
        job_id = await node.store.accept(job, kept)
    except IdempotencyConflict as error:
        raise IdempotencyConflict(job.idempotency_key.removeprefix(ASYNC_KEYS)) from error
    if job_id != job.id:
        return job_id
    try:
        await node.queue.submit(job)
        await node.store.relayed(job.id)
    except (QueueUnavailable, QueueFull, RecordUnavailable) as error:
        log.warning("accepted, to be relayed later", job=job.id, error=str(error))
    return job_id


def _job_id(shards: int, tenant: str, key: str) -> str:
    """A new id; with an idempotency key in the key's shard, where its first use is remembered."""
    if not key:
        return new_job_id(shards)
    digest = hashlib.sha256(f"{tenant}:{key}".encode()).digest()
    return f"{int.from_bytes(digest[:8]) % shards}-{ULID()}"


def _deadline_ms(node: Node, draft: Draft, call: Call, target_s: float | None, *, awaited: bool) -> int:
    """How long the job may take: what the caller said; a unary caller's SDK says how long it will wait. 0: no limit.

    The target's own bound, `target_s`, is for jobs that somebody waits for.
    """
    longest_s = target_s if awaited and target_s is not None else math.inf
    if call.timeout_s is not None:
        return round(min(call.timeout_s, longest_s) * 1000)
    if not awaited:
        return 0
    patience_s = call.patience_s if call.patience_s and not draft.streamed and not call.stays else math.inf
    return round(min(patience_s, node.settings.request_timeout_s if target_s is None else target_s) * 1000)


async def _charge(node: Node, job: NewJob, limits: Limits) -> Standing | None:
    """None for a caller without limits. Raises RateLimited, OverLimit, QueueUnavailable."""
    if not limits:
        return None
    prompt_tokens = job.request.prompt_tokens
    return await node.limiter.admit(
        job.budget,
        limits,
        job.id,
        input_tokens=prompt_tokens,
        output_tokens=job.cost - prompt_tokens,
        keep_s=job.deadline_ms / 1000 + LATE_S if job.deadline_ms else UNBOUNDED_S,
    )


async def _uncharge(node: Node, job: NewJob) -> None:
    """The job was not accepted. Without Redis its place stays taken until its time is over."""
    if job.budget:
        with suppress(QueueUnavailable):
            await node.limiter.forget(job.budget, job.id)


def _open_cost(request: JobRequest) -> int:
    """What an answer of open length counts for in the queue: not the whole context that it may fill."""
    length = min(request.stopping.max_tokens, UNASKED_COST_TOKENS)
    return request.prompt_tokens + length * request.choices
