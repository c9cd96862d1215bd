"""Hundreds of workers at one queue: does a job ever wait while a slot is free? `python -m bench.claims`

Real workers (consumer, lease, token log) over engines that sleep, on a real Valkey. Two phases, computed from the event
log alone (Redis' clock). Below capacity: jobs arrive at random and mostly find a free slot; how long did each wait
while one was free? Above capacity: two tenants with weights 3 and 1 are backlogged; what part of the claims does each
get, and how evenly are the claims spread over the workers?
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.processes import farm_processes
from bench.valkey_server import valkey_server
from scheduler.connections import command_client
from scheduler.events import Event, EventType, decode_event
from scheduler.job_ids import new_job_id
from scheduler.jobs import Lane
from scheduler.queue import JobQueue, NewJob, event_key
from scheduler.requests import JobRequest, Stopping

POOL = "simulated"
TOKENS = 8
STEP_MS = 250
LOAD, OVERLOAD = 0.7, 3.0
WEIGHTS = {"acme": 3.0, "other": 1.0}
PER_PROCESS = 50
"""Workers in one process, so that the interpreter's lock is not what is measured."""


@dataclass(slots=True)
class Life:
    """One job's times by Redis' clock, in ms, who asked and who took it."""

    submitted_ms: int
    tenant: str
    claimed_ms: int | None = None
    ended_ms: int | None = None
    worker: str = ""


def lives(events: Iterable[Event]) -> list[Life]:
    """The jobs of an event log."""
    found: dict[str, Life] = {}
    for event in events:
        if event.type is EventType.SUBMITTED:
            found[event.job_id] = Life(event.at_ms, str(event.data["tenant"]))
        elif event.type is EventType.CLAIMED:
            found[event.job_id].claimed_ms, found[event.job_id].worker = event.at_ms, str(event.data["worker"])
        elif event.type is EventType.FINISHED:
            found[event.job_id].ended_ms = event.at_ms
    return list(found.values())


def waits_beside_free_slots(jobs: list[Life], slots: int) -> list[float]:
    """For each job the ms that it waited while not all slots were taken, sorted. Slots are taken from claim to end."""
    changes: Counter[int] = Counter()
    for job in jobs:
        if job.claimed_ms is not None:
            changes[job.claimed_ms] += 1
        if job.ended_ms is not None:
            changes[job.ended_ms] -= 1
    moments = sorted({*changes, *(job.submitted_ms for job in jobs)})
    free_ms, taken, free_until = 0, 0, {}  # ms with a free slot, from the first moment up to each one
    for moment, following in zip(moments, [*moments[1:], moments[-1]], strict=True):
        free_until[moment] = free_ms
        taken += changes[moment]
        free_ms += (following - moment) * (taken < slots)
    return sorted(
        float(free_until[job.claimed_ms] - free_until[job.submitted_ms]) for job in jobs if job.claimed_ms is not None
    )


class Phase:
    """Submits jobs at random moments, and reads what became of them."""

    def __init__(self, queue: JobQueue, per_s: float, tenants: list[str]) -> None:
        self._queue = queue
        self._per_s = per_s
        self._tenants = tenants

    async def run(self, seconds: float) -> list[Life]:
        """Arrivals for so long; the jobs so far. The log is emptied first."""
        await self._queue.redis.xtrim(event_key(0), maxlen=0, approximate=False)
        dice, due_s = random.Random(1), time.monotonic()
        end_s = due_s + seconds
        while due_s < end_s:
            due_s += dice.expovariate(self._per_s)
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            await self._queue.submit(self._job(dice.choice(self._tenants)))
        entries = await self._queue.redis.xrange(event_key(0))
        return lives(event for event in (decode_event(*entry) for entry in entries))

    def _job(self, tenant: str) -> NewJob:
        request = JobRequest(
            kind="completion", model=POOL, prompts=((1, 2, 3),), stopping=Stopping(max_tokens=TOKENS, ignore_eos=True)
        )
        return NewJob(
            id=new_job_id(1),
            request=request,
            pool=POOL,
            tenant=tenant,
            lane=Lane.NORMAL,
            route="",
            rule_version=0,
            model_asked=POOL,
            request_id="bench",
        )


async def drained(queue: JobQueue) -> None:
    """Wait until nothing waits, and what runs has ended."""
    waiting = True
    while waiting:
        await asyncio.sleep((TOKENS + 2) * STEP_MS / 1000)
        waiting = sum((await queue.depths(POOL)).values()) > 0


async def measure(url: str, workers: int, rows: int, seconds: float) -> None:
    """Both phases, printed."""
    redis = command_client(url)
    queue = JobQueue(redis)
    capacity_per_s = workers * rows / (TOKENS * STEP_MS / 1000)
    print(f"{workers} workers of {rows} rows, jobs of {TOKENS} steps of {STEP_MS} ms: {capacity_per_s:.0f} jobs/s")
    below = await Phase(queue, LOAD * capacity_per_s, ["default"]).run(seconds)
    waits = waits_beside_free_slots(below, workers * rows)
    p99_ms = waits[math.ceil(len(waits) * 0.99) - 1]
    late = sum(wait > 100 for wait in waits)
    print(
        f"at {LOAD:.0%}: {len(waits):,} jobs, waited beside a free slot p50 {statistics.median(waits):.0f}, "
        f"p99 {p99_ms:.0f}, worst {waits[-1]:.0f} ms; {late} above 100 ms",
        flush=True,
    )
    await drained(queue)
    above = await Phase(queue, OVERLOAD * capacity_per_s, list(WEIGHTS)).run(seconds)
    begun_ms = above[0].submitted_ms + seconds * 1000 / 5  # both tenants are backlogged from then on
    claimed = Counter(job.tenant for job in above if job.claimed_ms is not None and job.claimed_ms > begun_ms)
    spread = Counter(job.worker for job in above if job.claimed_ms is not None)
    shares = ", ".join(f"{name} {claimed[name] / claimed.total():.1%}" for name in WEIGHTS)
    ends_ms = max(job.submitted_ms for job in above)
    taken_ms = sum(
        (job.ended_ms or ends_ms) - max(job.claimed_ms, begun_ms)
        for job in above
        if job.claimed_ms is not None and (job.ended_ms or ends_ms) > begun_ms
    )
    in_use = taken_ms / (workers * rows * (ends_ms - begun_ms))
    print(
        f"at {OVERLOAD:.0%}: {claimed.total():,} claims; {shares} (weights {WEIGHTS}); per worker "
        f"{min(spread.values())} to {max(spread.values())}, {len(spread)} of {workers} workers; "
        f"{in_use:.1%} of the slots in use"
    )
    stats = await redis.info("commandstats")
    print(
        f"script calls: {stats['cmdstat_evalsha']['calls']:,}, {stats['cmdstat_evalsha']['usec_per_call']:.0f} µs each"
    )
    await redis.aclose()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    processes = math.ceil(arguments.workers / PER_PROCESS)
    each = math.ceil(arguments.workers / processes)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, valkey_server(Path(folder)) as url:
        settings = {
            "home": folder,
            "redis_url": url,
            "model_name": POOL,
            "max_sequences": str(arguments.rows),
            "tenant_weights": ",".join(f"{name}={weight}" for name, weight in WEIGHTS.items()),
            "log_level": "ERROR",
        }
        roles = {f"workers {i}": ["bench.simulated_workers", str(each), str(STEP_MS)] for i in range(processes)}
        with farm_processes(roles, settings):
            uvloop.run(measure(url, each * processes, arguments.rows, arguments.seconds))


if __name__ == "__main__":
    main()
