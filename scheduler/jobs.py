"""The states of a job and the only legal moves between them; pure.

The table below is the single source: the Lua scripts get it as data (scripts/__init__.py) and refuse what it refuses.

             ┌───────────────────── requeued ───────────────────┐
             ▼                                                  │
submitted → queued ── claimed → running ── finished/failed/cancelled/expired/died → (terminal)
             ▲                     │
             └── requeued ── delayed (retry due later) ← scheduled
queued → failed: nobody will serve its model; queued → queued by requeued: another model takes over then
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from scheduler.events import Event, EventType


class JobState(StrEnum):
    """Where a job is. A sequence's state (waiting, prefilling, …) is the engine's and never appears here."""

    QUEUED = "queued"
    """In a lane, waiting for a worker."""
    DELAYED = "delayed"
    """Due later: a retry's back-off or a scheduled start."""
    RUNNING = "running"
    """Claimed by one worker that holds its token."""
    FINISHED = "finished"
    """Ended as asked; tokens and usage are complete."""
    FAILED = "failed"
    """Ended for a reason of its own (a refused grammar, an engine error), or lost; never retried by itself."""
    CANCELLED = "cancelled"
    """Ended because the client, an operator or a disconnect asked for it."""
    EXPIRED = "expired"
    """Its deadline passed, waiting or running."""
    DEAD = "dead"
    """Workers died on it, or it failed, too often; kept for an operator."""


class Lane(StrEnum):
    """A priority class of the queue. A waiting job moves up by age, so that none starves."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


TERMINAL = frozenset({JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED, JobState.DEAD})

_WAITING = frozenset({JobState.QUEUED, JobState.DELAYED})
_ALIVE = _WAITING | {JobState.RUNNING}

TRANSITIONS: dict[EventType, tuple[frozenset[JobState | None], JobState]] = {
    # again while it is alive: the queue had lost its memory (the submit script calls a job that it knows a duplicate)
    EventType.SUBMITTED: (frozenset({None}) | _ALIVE, JobState.QUEUED),
    EventType.SCHEDULED: (frozenset({None}) | _ALIVE, JobState.DELAYED),
    EventType.CLAIMED: (frozenset({JobState.QUEUED}), JobState.RUNNING),
    EventType.REQUEUED: (frozenset(_ALIVE), JobState.QUEUED),
    EventType.DELAYED: (frozenset({JobState.RUNNING}), JobState.DELAYED),
    EventType.FINISHED: (frozenset({JobState.RUNNING}), JobState.FINISHED),
    EventType.LOST: (frozenset(_ALIVE), JobState.FAILED),
    EventType.FAILED: (frozenset({JobState.RUNNING, JobState.QUEUED}), JobState.FAILED),
    EventType.CANCELLED: (frozenset(_ALIVE), JobState.CANCELLED),
    EventType.EXPIRED: (frozenset(_ALIVE), JobState.EXPIRED),
    EventType.DIED: (frozenset({JobState.RUNNING}), JobState.DEAD),
}

FAILOVER = "failover"
"""Why a job is queued again, where another model takes over."""

ENDS = {state: event for event, (_, state) in TRANSITIONS.items() if state in TERMINAL and event is not EventType.LOST}
"""The event that brings a job to each end, when the queue has it."""


class IllegalMove(ValueError):
    """An event that the table does not allow in the job's state."""

    def __init__(self, job_id: str, state: JobState | None, event: EventType) -> None:
        super().__init__(f"job {job_id}: {event} is not legal in state {state}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as its events tell it; times are Redis' clock in ms since 1970. `routing`: as in queue.NewJob.

    `model` is who has it now, or had it last. `cost_usd`: what a provider takes for it, None for models of the farm.
    """

    id: str
    state: JobState
    tenant: str
    lane: Lane
    kind: str
    model_asked: str
    model: str
    route: str
    rule_version: int
    request_id: str
    params: dict[str, Any]
    durable: bool
    prompt_tokens: int
    submitted_ms: int
    claimed_ms: int | None = None
    ended_ms: int | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = None
    ttft_ms: float | None = None
    prefill_ms: float | None = None
    decode_ms: float | None = None
    finish_reason: str | None = None
    error_code: str | None = None
    error: str | None = None
    worker: str | None = None
    attempts: int = 0
    crashes: int = 0
    last_event: str = ""
    routing: dict[str, Any] = field(default_factory=dict)


def apply(job: Job | None, event: Event) -> Job:
    """Return the job after `event`; `job` is None before its first event.

    Raises IllegalMove when the table does not allow the event in the job's state.
    """
    allowed, state = TRANSITIONS[event.type]
    if (job.state if job else None) not in allowed:
        raise IllegalMove(event.job_id, job.state if job else None, event.type)
    if event.type in (EventType.SUBMITTED, EventType.SCHEDULED):
        fresh = _submitted(event, state)
        return fresh if job is None else replace(fresh, submitted_ms=job.submitted_ms)
    assert job is not None  # nothing else is legal before the first event
    job = replace(job, state=state, last_event=event.id)
    if event.type is EventType.CLAIMED:
        first = event.at_ms if job.claimed_ms is None else job.claimed_ms
        return replace(job, claimed_ms=first, worker=event.data["worker"], attempts=int(event.data["attempt"]))
    if event.type in (EventType.REQUEUED, EventType.DELAYED):
        return _moved(replace(job, crashes=int(event.data.get("crashes", job.crashes))), event)
    return _ended(job, event)


def apply_after_loss(job: Job, event: Event) -> Job:
    """`apply` for a job whose last moves the queue has lost with its memory and the record has kept.

    The queue's word on where a job is stands, until the job has ended: an end is final. Raises IllegalMove.
    """
    allowed, _ = TRANSITIONS[event.type]
    if job.state in TERMINAL or job.state in allowed:
        return apply(job, event)
    return apply(replace(job, state=min(state for state in allowed if state is not None)), event)


def replay(events: Iterable[Event]) -> dict[str, Job]:
    """Compute every job from its events, in log order: the reference that the SQL projection must equal."""
    jobs: dict[str, Job] = {}
    for event in events:
        jobs[event.job_id] = apply(jobs.get(event.job_id), event)
    return jobs


def _submitted(event: Event, state: JobState) -> Job:
    data = event.data
    return Job(
        id=event.job_id,
        state=state,
        tenant=data["tenant"],
        lane=Lane(data["lane"]),
        kind=data["kind"],
        model_asked=data["model_asked"],
        model=data["model"],
        route=data["route"],
        rule_version=int(data["rule_version"]),
        request_id=data["request_id"],
        params=data["params"],
        durable=bool(data["durable"]),
        prompt_tokens=int(data["prompt_tokens"]),
        submitted_ms=event.at_ms,
        last_event=event.id,
        routing=dict(data.get("routing", {})),
    )


def _moved(job: Job, event: Event) -> Job:
    """With another model, where that of before has failed: the decision is kept with those of the beginning."""
    if event.data.get("why") != FAILOVER:
        return job
    passed_over = [*job.routing.get("passed_over", ()), {"model": job.model, "reason": str(event.data["error_code"])}]
    return replace(job, model=str(event.data["model"]), routing=job.routing | {"passed_over": passed_over})


def _ended(job: Job, event: Event) -> Job:
    data = event.data
    return replace(
        job,
        ended_ms=event.at_ms,
        prompt_tokens=int(data.get("prompt_tokens", job.prompt_tokens)),
        cost_usd=data.get("cost_usd"),
        crashes=int(data.get("crashes", job.crashes)),
        cached_tokens=int(data.get("cached_tokens", 0)),
        output_tokens=int(data.get("output_tokens", 0)),
        ttft_ms=data.get("ttft_ms"),
        prefill_ms=data.get("prefill_ms"),
        decode_ms=data.get("decode_ms"),
        finish_reason=data.get("finish_reason"),
        error_code=data.get("error_code"),
        error=data.get("error"),
    )
