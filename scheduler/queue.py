"""The queue: every move of a job is one atomic script that also appends its event. Knows Redis, decides nothing.

Key schema and contracts: scripts/prelude.lua. All times are Redis' clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from scheduler.backpressure import Place, wait_s
from scheduler.errors import IdempotencyConflict, LogShortened, NoLease, QueueFull, UnknownJob
from scheduler.events import EventType
from scheduler.frames import End, encode_end
from scheduler.job_ids import shard_of
from scheduler.jobs import TRANSITIONS, JobState, Lane
from scheduler.outages import redis_errors
from scheduler.requests import JobRequest, image_digest
from scheduler.scripts import QueuePolicy, script_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job about to be submitted. `node` wants its frames ('' = nobody); `cost_tokens` 0 means: as `cost` says.

    It begins in `delay_ms` at the earliest and has ended `deadline_ms` from now at the latest (0: no such bound).
    `budget` names the rate limits that it was charged to ('' = none).
    `route` is the name of the routing rule ('' = none), `routing` what the rules saw and what they said besides
    (routing/decision.py).
    """

    id: str
    request: JobRequest
    pool: str
    tenant: str
    lane: Lane
    route: str
    rule_version: int
    model_asked: str
    request_id: str
    durable: bool = False
    delay_ms: int = 0
    deadline_ms: int = 0
    node: str = ""
    idempotency_key: str = ""
    body_hash: str = ""
    cost_tokens: int = field(default=0)
    budget: str = ""
    routing: dict[str, Any] = field(default_factory=dict)

    @property
    def cost(self) -> int:
        """Tokens that admission and fairness count for this job."""
        asked = self.request.stopping.max_tokens * self.request.choices
        return self.cost_tokens or max(1, self.request.prompt_tokens + asked)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job that a worker now holds. `sequence` is the last frame in its log (0: nothing emitted yet)."""

    id: str
    token: str
    generation: int
    sequence: int
    request: JobRequest
    solo: bool
    submitted_ms: int
    claimed_ms: int
    attempt: int
    lane: Lane


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """What Redis answers a worker: `alive` False means the lease is lost; the lists name jobs to drop or to stop."""

    alive: bool
    disowned: tuple[str, ...] = ()
    cancelled: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()


def shard_key(shard: int, name: str) -> str:
    """The Redis key `name` of a shard; the braces keep a shard in one cluster slot."""
    return f"{{farm.{shard}}}:{name}"


def event_key(shard: int) -> str:
    """The shard's event log."""
    return shard_key(shard, "ev")


class JobQueue:
    """Every key, script and move of the queue. Safe to use from many tasks of one event loop.

    All methods raise QueueUnavailable when Redis does not answer or refuses the write, and UnknownJob for what is no
    job id of this farm; every script is idempotent, so the caller may try again.
    """

    def __init__(self, redis: Redis, *, shards: int = 1, policy: QueuePolicy | None = None) -> None:
        self.redis = redis
        self.shards = shards
        self.policy = policy or QueuePolicy()
        self._scripts: dict[str, AsyncScript] = {
            name: redis.register_script(text) for name, text in script_texts(self.policy, shards).items()
        }

    def shard_of(self, job_id: str) -> int:
        """The shard that holds a job. Raises UnknownJob when the text is not a job id or names a shard beyond ours."""
        shard = shard_of(job_id)
        if shard >= self.shards:
            raise UnknownJob(job_id)
        return shard

    async def submit(self, job: NewJob) -> str:
        """Accept a job or refuse it whole; return its id, or the first job's id for a repeated idempotency key.

        Raises QueueFull, IdempotencyConflict, QueueUnavailable.
        """
        async with redis_errors():
            code, value, *figures = await self.run("submit", self.shard_of(job.id), *self.submit_args(job))
        if code == b"conflict":
            raise IdempotencyConflict(job.idempotency_key)
        if code == b"full":
            raise self._full(job, value.decode(), *figures)
        return str(value.decode())

    async def require_room(self, job: NewJob) -> None:
        """Would `submit` accept the job now? For a job that is committed elsewhere first. Raises QueueFull."""
        async with redis_errors():
            code, *figures = await self.run(
                "room", self.shard_of(job.id), job.pool, job.tenant, job.lane.value, job.cost
            )
        if code == b"full":
            raise self._full(job, figures[0].decode(), *figures[1:])

    def submit_args(self, job: NewJob) -> list[Any]:
        """The arguments of submit.lua, in its order."""
        digests = [image_digest(image) for image in job.request.images]
        return [
            job.id,
            job.pool,
            job.tenant,
            job.lane.value,
            job.cost,
            job.request.choices,
            job.deadline_ms,
            job.node,
            job.idempotency_key,
            job.body_hash,
            job.request.without_images().encode(),
            int(job.durable),
            job.request.prompt_tokens,
            job.budget,
            job.delay_ms,
            orjson.dumps(submitted_facts(job)),
            " ".join(job.request.prefix_marks() if self.policy.prefix_grace_ms else ()),
            " ".join(digests),
            *dict(zip(digests, job.request.images, strict=True)).values(),
        ]

    async def claim(
        self,
        worker: str,
        pool: str,
        *,
        rows: int,
        nonce: str,
        idle: bool,
        shard: int = 0,
        reserved: int = 0,
        hot: int = 0,
    ) -> list[Claimed]:
        """Take jobs for up to `rows` sequences, the last `reserved` of them from the high lane only.

        Images are for each job apart (job_images.py). The worker's cache is taken to hold the `hot` beginnings of
        prompts that it has read last (prefixes.py). The same nonce gets the same answer again. Raises NoLease.
        """
        async with redis_errors():
            answer = await self.run("claim", shard, worker, pool, rows, nonce, int(idle), reserved, hot)
        if answer is None:
            raise NoLease(worker)
        return [_claimed(entry) for entry in answer]

    async def finish(
        self, job_id: str, token: str, event: EventType, data: Mapping[str, Any], *, sequence: int = 0
    ) -> bool:
        """End a held job whose last frame is `sequence`; False when the token is no longer current (forget the job).

        Raises LogShortened when Redis has lost frames before that one.
        """
        args = self.finish_args(job_id, token, event, data, sequence)
        async with redis_errors():
            answer = await self.run("finish", self.shard_of(job_id), *args)
        if answer == b"gap":
            raise LogShortened(job_id)
        return bool(answer == b"ok")

    def finish_args(
        self, job_id: str, token: str, event: EventType, data: Mapping[str, Any], sequence: int = 0
    ) -> list[Any]:
        """The arguments of finish.lua, in its order."""
        state = TRANSITIONS[event][1]
        return [job_id, token, event.value, state.value, orjson.dumps(data), encode_end(End(state, data)), sequence]

    async def release(self, job_id: str, token: str, why: str, delay_ms: int = 0) -> bool:
        """Hand a held job back without a crash mark, to the front or due later; False when fenced."""
        async with redis_errors():
            return bool(await self.run("release", self.shard_of(job_id), job_id, token, why, delay_ms) == b"ok")

    async def retry(self, job_id: str, token: str, why: str, data: Mapping[str, Any], *, least_ms: int = 0) -> str:
        """Give up on a held job for a reason that may pass: due again later, `least_ms` or more, or dead in the end.

        `data` are the facts of the end, with `error_code` and `error`. Returns fenced, ended (as it had been asked
        to), dead, or the wait in ms.
        """
        facts = [data["error_code"], data["error"], orjson.dumps(data), encode_end(End(JobState.DEAD, data))]
        async with redis_errors():
            args = (token, random.random(), why, *facts, least_ms)
            answer = await self.run("retry", self.shard_of(job_id), job_id, *args)
        return str(answer.decode())

    async def cancel(self, job_id: str, by: str) -> JobState | None:
        """Cancel wherever the job is; return the state before, None for an unknown job. Repeating it is a no-op."""
        async with redis_errors():
            answer = await self.run("cancel", self.shard_of(job_id), job_id, by)
        return None if answer == b"unknown" else JobState(answer.decode())

    async def leave(self, job_id: str, linger_ms: int) -> None:
        """The client has left: cancel the job after `linger_ms`, unless somebody listens to it again before."""
        async with redis_errors():
            await self.run("leave", self.shard_of(job_id), job_id, linger_ms)

    async def expire(self, shard: int, limit: int = 64) -> int:
        """End jobs past their deadline; return how many were touched (call again while it equals `limit`)."""
        async with redis_errors():
            return int(await self.run("expire", shard, limit))

    async def heartbeat(self, worker: str, held: Sequence[str], *, register: bool = False, shard: int = 0) -> Heartbeat:
        """Renew a worker's lease (begin it with `register`) and reconcile what it holds."""
        policy = self.policy
        args = (worker, policy.lease_ms, int(register), policy.disowned_grace_ms, *held)
        async with redis_errors():
            alive, *lists = await self.run("heartbeat", shard, *args)
        disowned, cancelled, expired = (tuple(item.decode() for item in ids) for ids in lists)
        return Heartbeat(bool(alive), disowned, cancelled, expired)

    async def reap(self, shard: int, *, worker: str = "", ended_ms: int = 0, limit: int = 64) -> list[str]:
        """Re-queue the jobs of workers whose lease ended `ended_ms` ago or before, or of `worker` now.

        Such a worker's process is known to be dead.
        """
        async with redis_errors():
            touched = await self.run("reap", shard, self.policy.max_crashes, limit, worker, ended_ms)
        return [item.decode() for item in touched]

    async def listen(self, job_id: str, node: str, *, add: bool = True) -> JobState | None:
        """Ask for (or stop) a job's frames on this node's channel; None for an unknown job."""
        async with redis_errors():
            answer = await self.run("listen", self.shard_of(job_id), job_id, node, int(add))
        return None if answer == b"unknown" else JobState(answer.decode())

    async def let_expire(self, job_ids: Sequence[str]) -> None:
        """The record has these ended durable jobs: Redis may forget them after the usual time, which begins again."""
        async with redis_errors():
            for shard, ids in groupby(sorted(job_ids, key=shard_of), key=shard_of):
                await self.run("let_expire", shard, *ids)

    async def body(self, job_id: str) -> JobRequest | None:
        """The request of a job without its images, while Redis still keeps it."""
        async with redis_errors():
            data = await self.redis.get(shard_key(self.shard_of(job_id), f"b:{job_id}"))
        return JobRequest.decode(data) if data else None

    async def snapshot(self, job_id: str) -> dict[str, str] | None:
        """The job's hash (state, tenant, lane, pool, enq, claimed, ended, attempt, crashes, out, …) or None."""
        async with redis_errors():
            fields = await _await(self.redis.hgetall(shard_key(self.shard_of(job_id), f"j:{job_id}")))
        return {key.decode(): value.decode() for key, value in fields.items()} or None

    async def place(self, job_id: str) -> Place | None:
        """The place of a waiting job in its pool, from 1 (after resumed jobs, the higher lanes, its own); else None."""
        async with redis_errors():
            answer = await self.run("place", self.shard_of(job_id), job_id)
        if answer is None:
            return None
        position, eta_ms, pool = answer
        return Place(int(position), None if eta_ms < 0 else eta_ms / 1000, pool.decode())

    async def due_ms(self, job_id: str) -> int | None:
        """When a delayed job will be queued, by Redis' clock; None for any other."""
        async with redis_errors():
            due = await self.redis.zscore(shard_key(self.shard_of(job_id), "due"), job_id)
        return None if due is None else int(due)

    async def depths(self, pool: str) -> dict[str, int]:
        """Waiting jobs per lane of a pool, over all shards."""
        lanes = [*(lane.value for lane in Lane), "resume", "solo"]
        async with redis_errors(), self.redis.pipeline(transaction=False) as pipe:
            for shard in range(self.shards):
                for lane in lanes:
                    pipe.zcard(shard_key(shard, f"wait:{pool}:{lane}"))
            counts = await pipe.execute()
        return {lane: sum(counts[i :: len(lanes)]) for i, lane in enumerate(lanes)}

    async def live_workers(self) -> list[str]:
        """Names of the workers whose lease has not ended, over all shards."""
        async with redis_errors():
            seconds, micros = await _await(self.redis.time())
            now_ms = seconds * 1000 + micros // 1000
            names: set[str] = set()
            for shard in range(self.shards):
                names.update(n.decode() for n in await self.redis.zrangebyscore(shard_key(shard, "wl"), now_ms, "+inf"))
        return sorted(names)

    async def leases(self, prefix: str) -> list[str]:
        """Names of workers that begin with `prefix` and have a lease, ended or not."""
        names: set[str] = set()
        async with redis_errors():
            for shard in range(self.shards):
                names.update(n.decode() for n in await self.redis.zrange(shard_key(shard, "wl"), 0, -1))
        return sorted(name for name in names if name.startswith(prefix))

    def _full(self, job: NewJob, name: str, used: bytes, per_s: bytes) -> QueueFull:
        """The refusal by one bound. What the script counts is a shard's part."""
        bound = self.policy.bound(name, high=job.lane is Lane.HIGH)
        wait = wait_s(
            bound=math.ceil(bound / self.shards),
            used=int(used),
            needed=job.cost if name.endswith("_tokens") else 1,
            drained_per_s=float(per_s),
            draw=random.random(),
        )
        return QueueFull(_BOUNDS[name], bound, wait)

    async def run(self, name: str, shard: int, *args: Any) -> Any:
        """Run one script on a shard (EVALSHA, loading it first where Redis has forgotten it)."""
        return await self._scripts[name](keys=[event_key(shard)], args=args)

    def script(self, name: str) -> AsyncScript:
        """A script for use in a pipeline (`script(keys=[event_key(shard)], args=…, client=pipe)`)."""
        return self._scripts[name]


_BOUNDS = {
    "max_waiting_jobs": "jobs waiting",
    "max_waiting_tokens": "tokens waiting",
    "max_model_jobs": "jobs waiting for this model",
    "max_model_tokens": "tokens waiting for this model",
    "max_tenant_jobs": "jobs of this tenant",
    "max_tenant_tokens": "tokens of this tenant",
}


def submitted_facts(job: NewJob) -> dict[str, Any]:
    """What the first event of a job tells."""
    return {
        "tenant": job.tenant,
        "lane": job.lane.value,
        "kind": job.request.kind,
        "model_asked": job.model_asked,
        "model": job.request.model,
        "route": job.route,
        "rule_version": job.rule_version,
        "routing": job.routing,
        "request_id": job.request_id,
        "params": job.request.params(),
        "durable": job.durable,
        "prompt_tokens": job.request.prompt_tokens,
    }


def _claimed(entry: Sequence[Any]) -> Claimed:
    job_id, token, generation, sequence, body, solo, submitted_ms, claimed_ms, attempt, lane = entry
    return Claimed(
        id=job_id.decode(),
        token=token.decode(),
        generation=int(generation),
        sequence=int(sequence),
        request=JobRequest.decode(body),
        solo=bool(solo),
        submitted_ms=int(submitted_ms),
        claimed_ms=int(claimed_ms),
        attempt=int(attempt),
        lane=Lane(lane.decode()),
    )


async def _await(result: Any) -> Any:
    """redis-py types some commands as value-or-awaitable; here it is always awaitable."""
    return await result
