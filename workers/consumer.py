"""The consumer: takes jobs from the queue, runs them through the engine and writes what comes out to the token logs.

A job's choices become the engine's prompts and its chunks frames (translation.py). A run is one claim: what is said of
an earlier one is dropped, here and by the fence.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

import structlog

from scheduler.errors import LogShortened, NoLease, QueueUnavailable
from scheduler.events import EventType
from scheduler.failover import reroute
from scheduler.frames import START, Frame
from scheduler.job_ids import shard_of
from scheduler.job_images import with_images
from scheduler.queue import Claimed, Heartbeat, JobQueue
from scheduler.requests import JobRequest
from scheduler.tokens import Emission, EmitCode, TokenLog
from workers.choices import choice_of, frame_chunks, prompt_for
from workers.engine import Chunk, EngineStats, Fault, FinishReason
from workers.held import HeldJob
from workers.insistence import insist
from workers.room import Room, RowBounds, room
from workers.told import Told
from workers.use import Use

log = structlog.get_logger()

HOT_PREFIXES = 1024
"""The most beginnings of prompts that the queue takes a worker's cache to hold; fewer where it has fewer blocks."""

RESEND_FRAMES = 256
"""In one call, when Redis has forgotten the end of a log."""

CLAIM_POLL_S = 0.25
"""A worker with room looks this often even when no wake-up came: pub/sub may lose one."""


class Computing(Protocol):
    """Who answers prompts: the engine's thread, or a provider. What comes of them goes to `Consumer.arrived`."""

    @property
    def stats(self) -> EngineStats:
        """What it holds."""

    def submit(self, prompt: Any) -> None:
        """Take in what `prompt_of` has made."""

    def cancel(self, prompt_id: str) -> None:
        """End a sequence; its last chunk says CANCELLED."""

    def taken(self) -> None:
        """One batch of chunks has been written out."""


class Consumer:
    """Runs one pool's (model's) jobs, as many as the bounds allow; belongs to the loop's thread."""

    def __init__(
        self,
        queue: JobQueue,
        engine: Computing,
        pool: str,
        use: Use,
        bounds: RowBounds,
        prompt_of: Callable[[HeldJob, int], Any] | None = None,
    ) -> None:
        self._queue = queue
        self._tokens = TokenLog(queue)
        self._engine = engine
        self._pool = pool
        self._bounds = bounds
        self._jobs: dict[str, HeldJob] = {}
        self._worker = ""
        self._nonce = ""
        self._solo = False
        self._runs = itertools.count()
        self._claiming = True
        self._claim_under_way = asyncio.Lock()
        self._offered_rows = 0  # free when it was last looked for jobs
        self._wake = asyncio.Event()
        self._arrived: asyncio.Queue[list[Chunk]] = asyncio.Queue()
        self._use = use
        self._prompt_of = prompt_of or prompt_for

    @property
    def held(self) -> list[str]:
        """Ids of the jobs in hand (read by the lease's thread: a copy)."""
        return list(self._jobs)

    @property
    def room(self) -> Room:
        """What may still be added to the batch; less while the engine's memory is short or prompts wait there."""
        taken, stats = sum(len(job.unfinished) for job in tuple(self._jobs.values())), self._engine.stats
        return room(
            self._bounds,
            taken=taken,
            begun=stats.running + len(stats.prefilling),
            waiting=stats.waiting,
            used_blocks=stats.used_blocks,
            total_blocks=stats.total_blocks,
        )

    def wake(self) -> None:
        """A job may be waiting, or there may be room again."""
        self._wake.set()

    def arrived(self, chunks: list[Chunk]) -> None:
        """The engine has made a step."""
        self._arrived.put_nowait(chunks)

    def begin_lease(self, worker: str) -> None:
        """From now on claim under this name; whatever was held under another one is dropped."""
        for job in tuple(self._jobs.values()):
            self._drop(job)
        self._worker = worker
        self._nonce = ""
        self.wake()

    def heartbeat(self, beat: Heartbeat) -> None:
        """Carry out what the queue said: stop the cancelled and expired ones, forget the disowned ones."""
        for job_id in beat.cancelled:
            self._stop_job(job_id, EventType.CANCELLED)
        for job_id in beat.expired:
            self._stop_job(job_id, EventType.EXPIRED)
        for job_id in beat.disowned:
            if job_id in self._jobs:
                self._drop(self._jobs[job_id])

    async def claim_loop(self) -> None:
        """Claim whenever there is room, until drained."""
        while self._claiming:
            self._wake.clear()
            async with self._claim_under_way:
                if self._claiming and self._worker and not self._solo and self.room.rows > 0:
                    await self._claim()
            self._offered_rows = self.room.rows
            try:
                async with asyncio.timeout(CLAIM_POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def emit_loop(self) -> None:
        """Write each step's chunks to the logs, and end what has ended."""
        while True:
            steps = [await self._arrived.get()]
            while not self._arrived.empty():
                steps.append(self._arrived.get_nowait())
            await self._emit([chunk for step in steps for chunk in step])
            if self.room.rows > self._offered_rows:
                self.wake()
            for _ in steps:
                self._engine.taken()

    async def drain(self, grace_s: float) -> None:
        """Claim no more, let running jobs finish for `grace_s`, then hand the rest back without a crash mark."""
        self._claiming = False
        self.wake()
        try:
            async with asyncio.timeout(grace_s):
                await self._use.over()
        except TimeoutError:
            log.info("handing jobs back", jobs=len(self._jobs))
        async with self._claim_under_way:  # what it brings goes back, too
            for job in tuple(self._jobs.values()):
                self._drop(job)
                with suppress(QueueUnavailable):  # then the end of the lease gives it back
                    await self._queue.release(job.id, job.claimed.token, "drain")

    async def _claim(self) -> None:
        self._nonce = self._nonce or uuid.uuid4().hex[:8]
        for shard in range(self._queue.shards):
            free = self.room
            try:
                claimed = await self._queue.claim(
                    self._worker,
                    self._pool,
                    rows=free.rows,
                    reserved=free.reserved,
                    nonce=f"{self._nonce}{shard}",
                    idle=not self._jobs,
                    shard=shard,
                    hot=min(HOT_PREFIXES, self._engine.stats.total_blocks),
                )
            except NoLease:
                return  # the lease's thread is about to begin a new one
            except QueueUnavailable:
                return  # the same nonce again: a claim whose reply was lost is answered again
            for job in claimed:
                await self._take(job)
            if self._solo:
                break  # nothing of another shard beside it
        self._nonce = ""

    async def _take(self, claimed: Claimed) -> None:
        known = self._jobs.get(claimed.id)
        if known is not None and known.claimed.token == claimed.token:
            return
        if known is not None:  # the queue had lost the first claim with its memory
            self._drop(known)
        request = await insist(lambda: with_images(self._queue, claimed.id, claimed.request))
        frames: list[Frame] = []
        while claimed.sequence and (more := await self._read(claimed.id, frames)):
            frames += more
        held = replace(claimed, request=request)
        job = HeldJob(held, frames, time.monotonic(), run=f"{claimed.id}/{next(self._runs)}")
        self._jobs[job.id] = job
        self._use.began(len(self._jobs), claimed.request.keep_alive_s)
        self._solo = self._solo or claimed.solo
        if not job.unfinished:  # an earlier worker died between its last chunk and the end
            await self._end(job, EventType.FINISHED)
        for index in job.unfinished:
            self._engine.submit(self._prompt_of(job, index))

    async def _read(self, job_id: str, frames: Sequence[Frame]) -> list[Frame]:
        after = frames[-1].id if frames else START
        return await insist(lambda: self._tokens.read(job_id, after))

    async def _emit(self, chunks: Sequence[Chunk]) -> None:
        by_run: dict[str, list[Chunk]] = defaultdict(list)
        for chunk in chunks:
            by_run[chunk.prompt_id.rpartition("/")[0]].append(chunk)
        emissions: dict[int, list[Emission]] = defaultdict(list)
        now_s = time.monotonic()
        for run, parts in by_run.items():
            job = self._running(run)
            if job is None:
                continue  # dropped or ended meanwhile
            for chunk in parts:
                if chunk.finish_reason is not None:
                    job.ended_choice(choice_of(chunk), chunk.prefix)
                    job.count(chunk.counts if isinstance(chunk, Told) else {})
            body = frame_chunks(job, parts)
            if body:
                frame_id, body = job.next_frame(body, now_s)
                emissions[shard_of(job.id)].append(Emission(job.id, job.claimed.token, frame_id, body))
        for shard, batch in emissions.items():
            codes = await insist(lambda batch=batch, shard=shard: self._tokens.emit(batch, shard=shard))  # type: ignore[misc]
            for emission, code in zip(batch, codes, strict=True):
                await self._answered(emission, code)
        for run, parts in by_run.items():
            await self._end_if_done(run, parts)

    def _running(self, run: str) -> HeldJob | None:
        """The job of a run, unless it was dropped (and perhaps claimed again) or is being ended."""
        job = self._jobs.get(run.partition("/")[0])
        return None if job is None or job.run != run or job.closing else job

    async def _answered(self, emission: Emission, code: EmitCode) -> None:
        job = self._jobs.get(emission.job_id)
        if job is None or job.claimed.token != emission.token:
            return
        match code:
            case EmitCode.FENCED:
                log.warning("job belongs to another worker now", job=job.id)
                self._drop(job)
            case EmitCode.CANCELLED:
                self._stop_job(job.id, EventType.CANCELLED)
            case EmitCode.EXPIRED:
                self._stop_job(job.id, EventType.EXPIRED)
            case EmitCode.GAP:
                await self._resend(job)
            case _:
                pass

    async def _resend(self, job: HeldJob) -> None:
        """Redis has forgotten the end of the log: write it again from memory (what it has is refused as duplicate)."""
        log.warning("log was rolled back, sending it again", job=job.id, frames=len(job.frames))
        emissions = [Emission(job.id, job.claimed.token, frame_id, body) for frame_id, body in job.frames]
        for start in range(0, len(emissions), RESEND_FRAMES):
            batch = emissions[start : start + RESEND_FRAMES]
            codes = await insist(lambda batch=batch: self._tokens.emit(batch, shard=shard_of(job.id)))  # type: ignore[misc]
            if EmitCode.FENCED in codes:
                self._drop(job)
                return

    async def _end_if_done(self, run: str, chunks: Sequence[Chunk]) -> None:
        job = self._running(run)
        if job is None:
            return
        failed = next((chunk for chunk in chunks if chunk.finish_reason is FinishReason.ERROR), None)
        if failed is not None:
            told = failed if isinstance(failed, Told) else None
            code = (told and told.code) or ("invalid_request" if failed.fault is Fault.PROMPT else "engine_error")
            job.error = (code, failed.error or "The engine failed.")
            await self._fail(job, failed.fault, told.wait_s if told else 0.0)
        elif any(chunk.finish_reason is FinishReason.CANCELLED for chunk in chunks):
            await self._end(job, job.ending or EventType.CANCELLED)
        elif not job.unfinished:
            await self._end(job, EventType.FINISHED)

    async def _end(self, job: HeldJob, event: EventType) -> None:
        facts = job.end(event, time.monotonic())
        if event is EventType.EXPIRED:
            facts |= {"error_code": "deadline_exceeded", "error": "The deadline passed while the job was running."}
        job.closing = True
        try:
            await self._finish(job, event, facts)
        except LogShortened:
            await self._resend(job)
            await self._end(job, event)
            return
        self._drop(job)  # only now: a job that is not held, but running for Redis, would be given to another worker

    async def _finish(self, job: HeldJob, event: EventType, facts: Mapping[str, Any]) -> None:
        token, sequence = job.claimed.token, job.sequence
        await insist(lambda: self._queue.finish(job.id, token, event, facts, sequence=sequence))

    async def _fail(self, job: HeldJob, fault: Fault, wait_s: float) -> None:
        """What is the request's own fault ends it; what is not goes to who takes over, is tried again, or ends it."""
        request = None if fault is Fault.PROMPT or job.has_spoken else job.claimed.request.next_request()
        if request is not None:
            await self._move(job, request)
        elif fault is Fault.PASSING:
            await self._retry(job, wait_s)
        else:
            await self._end(job, EventType.FAILED)

    async def _move(self, job: HeldJob, request: JobRequest) -> None:
        """Another model takes over a job that has said nothing."""
        assert job.error is not None
        code, error = job.error
        job.closing = True
        facts = {"error_code": code, "error": error}
        answer = await insist(lambda: reroute(self._queue, job.id, job.claimed.token, request, facts))
        log.warning("job failed, another model takes over", job=job.id, model=request.model, error=error, answer=answer)
        self._drop(job)

    async def _retry(self, job: HeldJob, wait_s: float) -> None:
        """Hand back a job whose failure may pass: another attempt goes on after what is in its log."""
        facts = job.end(EventType.DIED, time.monotonic())
        job.closing = True
        token, code, least_ms = job.claimed.token, facts["error_code"], math.ceil(wait_s * 1000)
        answer = await insist(lambda: self._queue.retry(job.id, token, code, facts, least_ms=least_ms))
        log.warning("job failed, perhaps not for good", job=job.id, error=facts["error"], answer=answer)
        self._drop(job)

    def _stop_job(self, job_id: str, ending: EventType) -> None:
        """Ask the engine to stop a job; it ends with the engine's CANCELLED chunks."""
        job = self._jobs.get(job_id)
        if job is not None and job.ending is None and not job.closing:
            job.ending = ending
            for index in job.unfinished:
                self._engine.cancel(f"{job.run}/{index}")

    def _drop(self, job: HeldJob) -> None:
        """Forget a job; what the engine still runs of it is cancelled."""
        for index in job.unfinished:
            self._engine.cancel(f"{job.run}/{index}")
        if self._jobs.get(job.id) is job:
            del self._jobs[job.id]
        if not self._jobs:
            self._solo = False
            self._use.ended()
        self.wake()
