"""`python -m tests.faults.poisoned_worker REDIS_URL`: work until nothing waits, dying of every poisonous job.

Each worker is a fork that runs a batch as workers/consumer.py does (resumed jobs, lanes, a suspect alone), with tokens
that are their own positions instead of an engine, and is killed in the middle of a job whose seed is POISON_SEED. Its
agent puts back what it held. Prints how many died.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys

from scheduler.connections import command_client
from scheduler.events import EventType
from scheduler.frames import Chunk, FrameId
from scheduler.queue import Claimed, JobQueue
from scheduler.scripts import QueuePolicy
from scheduler.tokens import Emission, TokenLog
from tests.faults.dying_worker import fork
from tests.scheduler.builders import PATIENT_LEASE_MS, POOL

POISON_SEED = 666
ROWS = 16
TOKENS = 4


async def work(url: str, worker: str) -> None:
    """Run batches until nothing waits."""
    queue = JobQueue(command_client(url), policy=QueuePolicy(lease_ms=PATIENT_LEASE_MS))
    await queue.heartbeat(worker, [], register=True)
    held: dict[str, Claimed] = {}
    said: dict[str, int] = {}
    solo = False
    for turn in itertools.count():
        if not solo:
            free, idle = ROWS - len(held), not held
            for job in await queue.claim(worker, POOL, rows=free, nonce=f"n{turn}", idle=idle):
                held[job.id], said[job.id], solo = job, job.sequence, job.solo
        if not held:
            return
        await step(queue, held, said)
        solo = solo and bool(held)


async def step(queue: JobQueue, held: dict[str, Claimed], said: dict[str, int]) -> None:
    """A token of every job, and the end of those that have all of theirs."""
    for job in held.values():
        said[job.id] += 1
    frames = [(job, FrameId(job.generation, said[job.id]), (Chunk(0, (said[job.id],), "t"),)) for job in held.values()]
    await TokenLog(queue).emit([Emission(job.id, job.token, frame_id, body) for job, frame_id, body in frames])
    if any(job.request.sampling.seed == POISON_SEED for job in held.values()):
        os.kill(os.getpid(), signal.SIGKILL)
    for job in [job for job in held.values() if said[job.id] == TOKENS]:
        await queue.finish(job.id, job.token, EventType.FINISHED, {"output_tokens": TOKENS}, sequence=TOKENS)
        del held[job.id]


async def put_back(url: str, dead: str) -> None:
    """What the agent does."""
    queue = JobQueue(command_client(url))
    while await queue.reap(0, worker=dead):
        pass


def main() -> None:
    """One worker after the other."""
    url = sys.argv[1]
    for number in itertools.count():
        worker = f"w{number}"
        if fork(work(url, worker)) == 0:
            sys.stdout.write(f"{number}\n")
            return
        fork(put_back(url, worker))


if __name__ == "__main__":
    main()
