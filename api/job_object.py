"""A job as clients see it: its live state from Redis over its record in SQL, with place in the queue and result."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from api.errors import ApiError, end_error
from api.node import Node
from api.renderers import fresh_renderer
from api.rendering import RenderingNote
from api.stream import whole_answer
from scheduler.admission import Caller
from scheduler.errors import QueueUnavailable, RecordUnavailable, UnknownJob, UnknownModel
from scheduler.frames import START, End, Frame
from scheduler.job_ids import shard_of
from scheduler.jobs import TERMINAL, Job, JobState
from scheduler.requests import JobRequest
from scheduler.store import DurableJob


@dataclass(frozen=True, slots=True)
class KnownJob:
    """What the three places know: Redis (the hash and the body), the projection, and the table of async jobs."""

    id: str
    snapshot: dict[str, str] | None
    record: Job | None
    durable: DurableJob | None
    body: JobRequest | None

    @property
    def state(self) -> JobState:
        """Redis' word first; an accepted job that Redis has not got yet is queued."""
        if self.snapshot is not None:
            return JobState(self.snapshot["state"])
        return self.record.state if self.record is not None else JobState.QUEUED

    @property
    def ended(self) -> bool:
        """Is the state final?"""
        return self.state in TERMINAL

    @property
    def request(self) -> JobRequest | None:
        """The body, while anybody keeps it (an ended async job's has no prompts any more)."""
        return self.body or (self.durable.request if self.durable is not None else None)


async def find_job(node: Node, caller: Caller, job_id: str) -> KnownJob:
    """Look in all places; one of them may be down. Raises UnknownJob, QueueUnavailable, RecordUnavailable."""
    shard_of(job_id)
    outage: QueueUnavailable | RecordUnavailable | None = None
    snapshot, body, record, durable = None, None, None, None
    try:
        snapshot = await node.queue.snapshot(job_id)
        body = await node.queue.body(job_id)
    except QueueUnavailable as error:
        outage = error
    try:
        record = await node.store.job(job_id)
        durable = await node.store.durable_job(job_id)
    except RecordUnavailable as error:
        outage = outage or error
    tenants = [snapshot["tenant"]] if snapshot else []
    tenants += [known.tenant for known in (record, durable) if known is not None]
    if not tenants and outage is not None:
        raise outage
    if not tenants or any(tenant != caller.tenant for tenant in tenants):
        raise UnknownJob(job_id)
    return KnownJob(job_id, snapshot, record, durable, body)


async def ended_frames(node: Node, job: KnownJob) -> Sequence[Frame]:
    """All frames of an ended job, from the token log or the record; empty when neither keeps them any more."""
    frames: list[Frame] = []
    try:
        while more := await node.log.read(job.id, frames[-1].id if frames else START):
            frames += more
    except QueueUnavailable:
        frames = []
    if frames or job.durable is None:
        return frames
    return job.durable.frames or ()


async def all_of(frames: Sequence[Frame]) -> AsyncGenerator[Frame | None, None]:
    """Kept frames as those of a running job come."""
    for frame in frames:
        yield frame


async def job_object(node: Node, caller: Caller, job_id: str) -> dict[str, Any]:
    """The job with its result, where it has ended and its frames are kept. Raises what `find_job` raises."""
    job = await find_job(node, caller, job_id)
    described = _described(job)
    if job.state in (JobState.QUEUED, JobState.DELAYED) and job.snapshot is not None:
        described |= await _turn(node, job)
    if job.ended:
        described |= await _result(node, job)
    return described


def record_object(job: Job) -> dict[str, Any]:
    """A job as its record tells it, for listings."""
    return _described(KnownJob(job.id, None, job, None, None))


LIVE_FIELDS = {
    "submitted_ms": "enq",
    "ended_ms": "ended",
    "attempts": "attempt",
    "crashes": "crashes",
    "output_tokens": "out",
}
"""Names here and in the job's hash."""

PROGRESS_FIELDS = (
    "submitted_ms",
    "ended_ms",
    "attempts",
    "crashes",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_usd",
    "ttft_ms",
    "prefill_ms",
    "decode_ms",
    "finish_reason",
)


async def _turn(node: Node, job: KnownJob) -> dict[str, Any]:
    """When a waiting job's turn comes."""
    try:
        if job.state is JobState.DELAYED:
            return {"due_ms": await node.queue.due_ms(job.id)}
        place = await node.queue.place(job.id)
    except QueueUnavailable:
        return {}
    if place is None:
        return {}
    model = node.places.of(place.model)
    waits = {"model_state": asdict(model)} if model is not None else {}
    return {"position": place.position, "eta_s": place.eta_s, **waits}


async def _result(node: Node, job: KnownJob) -> dict[str, Any]:
    frames = await ended_frames(node, job)
    if not frames or job.request is None or not isinstance(frames[-1].body, End):
        return {}
    try:
        return {"result": await answer_of(node, job.id, job.request, frames)}
    except UnknownModel:
        return {}  # logprobs need the model's tokenizer, and its last worker has left
    except ApiError as error:
        return {"error": error.body()["error"]}


async def answer_of(node: Node, job_id: str, request: JobRequest, frames: Sequence[Frame]) -> dict[str, Any]:
    """The whole answer of an ended job, from all its frames. Raises ApiError, UnknownModel, QueueUnavailable."""
    renderer = await fresh_renderer(node, job_id, request)
    for frame in frames:
        if isinstance(frame.body, End):
            return whole_answer(renderer, frame.body)
        renderer.step(frame.body)
    raise ApiError(500, "The job's frames ended without an end.")


def _described(job: KnownJob) -> dict[str, Any]:
    """Everything but place and result."""
    state = job.state
    return {
        "id": job.id,
        "object": "job",
        "state": state.value,
        **_asked(job),
        **_progress(job),
        "error": _error(job.record) if job.record is not None and job.ended else None,
        "cancel_requested": state is JobState.RUNNING and bool(job.snapshot and job.snapshot.get("cancel")),
        "position": None,
        "eta_s": None,
        "due_ms": None,
        "result": None,
    }


def _asked(job: KnownJob) -> dict[str, Any]:
    """What was asked for: the record's word, else the request's (its record may come a moment later)."""
    facts = asdict(job.record) if job.record else {}
    asked: dict[str, Any] = {"durable": job.durable is not None, "model": (job.snapshot or {}).get("pool")}
    if job.request is not None:
        note = RenderingNote.of(job.request.rendering)
        asked |= {"kind": job.request.kind, "model": job.request.model, "params": job.request.params()}
        asked |= {"model_asked": note.model, "user": note.user, "metadata": note.metadata}
    names = ("kind", "model", "model_asked", "request_id", "durable", "user", "metadata", "params")
    lane = job.record.lane.value if job.record else (job.snapshot or {}).get("lane")
    return {name: facts.get(name, asked.get(name)) for name in names} | {"lane": lane, "routing": _routing(job.record)}


def _routing(record: Job | None) -> dict[str, Any] | None:
    """The decision who serves; None until there is a record of it."""
    if record is None:
        return None
    return {"rule": record.route or None, "version": record.rule_version, **record.routing}


def _progress(job: KnownJob) -> dict[str, Any]:
    """How far it is; Redis' numbers while it has them."""
    snapshot = job.snapshot or {}
    facts: dict[str, Any] = {"attempts": 0, "crashes": 0, "cached_tokens": 0, "output_tokens": 0}
    facts |= _before_the_record(job)
    facts |= asdict(job.record) if job.record else {}
    live = {name: _number(snapshot.get(field)) for name, field in LIVE_FIELDS.items()}
    facts |= {name: value for name, value in live.items() if value is not None}
    submitted_ms = facts.get("submitted_ms")
    return {name: facts.get(name) for name in PROGRESS_FIELDS} | {
        "created_at": submitted_ms // 1000 if submitted_ms is not None else None,
        "claimed_ms": facts.get("claimed_ms") or _number(snapshot.get("claimed")),
        "worker": snapshot.get("wid") or facts.get("worker"),
    }


def _before_the_record(job: KnownJob) -> dict[str, Any]:
    """What is known of a job that the projector has not seen yet."""
    facts: dict[str, Any] = {}
    if job.durable is not None:
        facts["submitted_ms"] = job.durable.accepted_ms
    if job.request is not None:
        facts["prompt_tokens"] = RenderingNote.of(job.request.rendering).prompt_tokens
    return facts


def _error(record: Job) -> dict[str, Any] | None:
    if record.state is JobState.FINISHED or record.state not in TERMINAL:
        return None
    error = end_error(End(record.state, {"error_code": record.error_code, "error": record.error}))
    inner: dict[str, Any] = error.body()["error"]
    return inner


def _number(text: str | None) -> int | None:
    return int(text) if text else None
