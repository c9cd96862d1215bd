"""`python -m tests.faults.dying_worker REDIS_URL`: a job's whole way, with a death at every call of Redis.

For every k a fork submits two jobs, claims, emits and finishes them, and dies by SIGKILL in front of its k-th boundary:
one before each call is sent and one after its reply has come (a reply that was lost, for whoever comes next). Then
another fork takes over what is left. Prints how many died. The worker's steps are those of workers/consumer.py, with
tokens that are their own positions instead of an engine.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from redis.asyncio import Redis

from scheduler.connections import command_client
from scheduler.events import EventType
from scheduler.frames import START, Chunk, FrameId
from scheduler.job_ids import new_job_id
from scheduler.queue import Claimed, JobQueue
from scheduler.scripts import QueuePolicy
from scheduler.tokens import Emission, TokenLog
from tests.scheduler.builders import PATIENT_LEASE_MS, POOL, make_job

JOBS = 2
TOKENS = 3
POLICY = QueuePolicy(max_crashes=1000, lease_ms=PATIENT_LEASE_MS)


class MortalRedis(Redis):
    """Counts boundaries, and dies at one of them."""

    left: Iterator[int] = itertools.repeat(-1)

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Two boundaries: before and after."""
        self._boundary()
        answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        self._boundary()
        return answer

    def _boundary(self) -> None:
        if next(self.left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def work(url: str, worker: str, ids: list[str], boundary: int | None) -> None:
    """Submit (again), claim and carry through; dies at a boundary unless it is None."""
    redis = MortalRedis(connection_pool=command_client(url).connection_pool)
    if boundary is not None:
        redis.left = itertools.count(boundary, -1)
    queue = JobQueue(redis, policy=POLICY)
    for job_id in ids:
        await queue.submit(make_job(id=job_id, max_tokens=TOKENS))
    await queue.heartbeat(worker, [], register=True)
    while claimed := await queue.claim(worker, POOL, rows=JOBS, nonce=os.urandom(4).hex(), idle=True):
        for job in claimed:
            await carry_through(queue, job)


async def carry_through(queue: JobQueue, job: Claimed) -> None:
    """Go on behind what is in the log, and end the job."""
    log = TokenLog(queue)
    for position in range(len(await log.read(job.id, START)) + 1, TOKENS + 1):
        chunk = Chunk(0, (position,), "t")
        await log.emit([Emission(job.id, job.token, FrameId(job.generation, position), (chunk,))])
    await queue.finish(job.id, job.token, EventType.FINISHED, {"output_tokens": TOKENS}, sequence=TOKENS)


async def take_over(url: str, dead: str, ids: list[str]) -> None:
    """What the agent and the next model process do."""
    redis = command_client(url)
    await JobQueue(redis, policy=POLICY).reap(0, worker=dead)
    await redis.aclose()
    await work(url, f"{dead}-next", ids, None)


def main() -> None:
    """Fork until one lives."""
    url = sys.argv[1]
    for boundary in itertools.count():
        ids = [new_job_id(1) for _ in range(JOBS)]
        if fork(work(url, f"w{boundary}", ids, boundary)) == 0:
            sys.stdout.write(f"{boundary}\n")
            return
        if fork(take_over(url, f"w{boundary}", ids)) != 0:
            sys.exit("the one that took over did not come to the end")


def fork(job: Any) -> int:
    """Run a coroutine in a fork; 0 when it came to its end."""
    child = os.fork()
    if child == 0:
        asyncio.run(job)
        os._exit(0)
    job.close()
    _, status = os.waitpid(child, 0)
    return status


if __name__ == "__main__":
    main()
