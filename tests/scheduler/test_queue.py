"""Submitting, and what the queue answers about waiting jobs and about a Redis that cannot serve."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from scheduler.errors import IdempotencyConflict, QueueUnavailable, UnknownJob
from scheduler.jobs import JobState
from scheduler.outages import redis_errors
from scheduler.queue import JobQueue
from tests.conftest import RedisServer
from tests.scheduler.builders import POOL, Farm, make_job, make_request


async def fill_memory(redis: Redis) -> None:
    used = (await redis.info("memory"))["used_memory"]
    await redis.config_set("maxmemory", used // 2)


async def test_a_submitted_job_waits_with_its_cost_counted(farm: Farm) -> None:
    job_id = await farm.submit(prompt_tokens=5, max_tokens=10, n=2)
    assert await farm.state(job_id) is JobState.QUEUED
    assert await farm.counts() == {"jobs": 1, "tokens": 25, "p:demo": 1, "P:demo": 25, "t:default": 1, "T:default": 25}
    assert await farm.queue.depths(POOL) == {"high": 0, "normal": 1, "low": 0, "resume": 0, "solo": 0}


async def test_submitting_the_same_id_again_changes_nothing(farm: Farm) -> None:
    job = make_job()
    assert [await farm.queue.submit(job) for _ in range(3)] == [job.id] * 3
    assert await farm.told(job.id) == ["submitted"]
    assert (await farm.counts())["jobs"] == 1


async def test_the_same_key_and_body_is_the_first_job(farm: Farm) -> None:
    first = await farm.submit(idempotency_key="k 1", body_hash="h")
    assert await farm.submit(idempotency_key="k 1", body_hash="h") == first
    assert await farm.submit(idempotency_key="k 1", body_hash="h", tenant="other") != first
    assert len(await farm.events()) == 2


@pytest.mark.parametrize("body_hash", ["h2", ""])
async def test_the_same_key_with_another_body_is_a_conflict(farm: Farm, body_hash: str) -> None:
    await farm.submit(idempotency_key="k", body_hash="h1")
    with pytest.raises(IdempotencyConflict, match="'k'"):
        await farm.submit(idempotency_key="k", body_hash=body_hash)
    assert len(await farm.events()) == 1


async def test_a_key_without_a_hash_is_compared_too(farm: Farm) -> None:
    first = await farm.submit(idempotency_key="k")
    assert await farm.submit(idempotency_key="k") == first


async def test_one_of_many_submits_with_one_key_wins(farm: Farm) -> None:
    ids = await asyncio.gather(*(farm.submit(idempotency_key="k", body_hash="h") for _ in range(20)))
    assert len(set(ids)) == 1
    assert await farm.told(ids[0]) == ["submitted"]


async def test_without_memory_submit_leaves_no_trace_and_running_work_goes_on(own_redis: Redis) -> None:
    redis, farm = own_redis, Farm(own_redis)
    held, other = await farm.start(), await farm.start()
    waiting = [await farm.submit() for _ in range(3)]
    await fill_memory(redis)
    keys = await farm.keys()
    refused = make_job(idempotency_key="k", body_hash="h", deadline_ms=1000)
    with pytest.raises(QueueUnavailable, match="maxmemory"):
        await farm.queue.submit(refused)
    assert await farm.keys() == keys
    assert await farm.told(refused.id) == []
    assert await farm.say(held, 1) == 0
    assert await farm.finish(held)
    assert (await farm.queue.heartbeat("w1", [other.id])).alive
    assert (await farm.queue.heartbeat("w2", [], register=True)).alive
    assert await farm.queue.release(other.id, other.token, "drain")
    assert await farm.queue.cancel(waiting[0], "me") is JobState.QUEUED
    assert await farm.queue.listen(waiting[1], "node") is JobState.QUEUED
    assert [job.id for job in await farm.claim("w2", rows=2)] == [other.id, waiting[1]]
    assert await farm.queue.expire(0) == 0
    assert sorted(await farm.crash("w2")) == sorted([other.id, waiting[1]])
    await redis.config_set("maxmemory", 0)
    assert await farm.queue.submit(refused) == refused.id


async def test_what_a_server_that_cannot_serve_says_is_queue_unavailable(
    own_redis_server: RedisServer, own_redis: Redis
) -> None:
    queue = JobQueue(own_redis)
    await own_redis.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
    with pytest.raises(QueueUnavailable, match=r"read.only|READONLY"):
        await queue.submit(make_job())
    own_redis_server.kill()
    with pytest.raises(QueueUnavailable):
        await queue.submit(make_job())
    with pytest.raises(QueueUnavailable):
        await queue.live_workers()
    own_redis_server.start()
    assert await queue.submit(make_job())


@pytest.mark.parametrize(
    "message",
    [
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "CLUSTERDOWN Hash slot not served",
        "ERR Error running script (call to f_1): @user_script:1: @user_script: 12: -OOM command not allowed",
    ],
)
async def test_refusals_that_pass_by_themselves_are_queue_unavailable(message: str) -> None:
    with pytest.raises(QueueUnavailable):
        async with redis_errors():
            raise ResponseError(message)


async def test_a_refusal_that_is_our_own_fault_is_not_hidden(redis: Redis) -> None:
    await redis.set("text", "x")
    with pytest.raises(ResponseError):
        async with redis_errors():
            await redis.incr("text")


async def test_the_scripts_come_back_after_redis_has_forgotten_them(farm: Farm) -> None:
    await farm.submit()
    await farm.redis.script_flush()
    assert len(await farm.claim()) == 1


@pytest.mark.parametrize(
    "job_id", ["", "x", "0-short", "1-01ARZ3NDEKTSV4RRFFQ69G5FAV", "9999-01ARZ3NDEKTSV4RRFFQ69G5FAV"]
)
async def test_what_is_no_job_id_of_this_farm_is_an_unknown_job(farm: Farm, job_id: str) -> None:
    with pytest.raises(UnknownJob):
        await farm.queue.cancel(job_id, "me")
    with pytest.raises(UnknownJob):
        await farm.queue.snapshot(job_id)
    with pytest.raises(UnknownJob):
        await farm.queue.submit(make_job(id=job_id))
    assert await farm.redis.keys() == []


async def test_a_job_that_never_was_is_nowhere(farm: Farm) -> None:
    job_id = make_job().id
    assert await farm.queue.cancel(job_id, "me") is None
    assert await farm.queue.listen(job_id, "node") is None
    assert await farm.queue.snapshot(job_id) is None
    assert await farm.queue.body(job_id) is None
    assert await farm.queue.place(job_id) is None
    assert await farm.redis.keys() == []


async def test_shards_are_apart_and_counted_together(redis: Redis) -> None:
    farm = Farm(redis, shards=4)
    ids = [await farm.submit(shards=4) for _ in range(40)]
    shards = {farm.queue.shard_of(job_id) for job_id in ids}
    assert shards == {0, 1, 2, 3}
    assert (await farm.queue.depths(POOL))["normal"] == 40
    for shard in shards:
        await farm.queue.heartbeat("w", [], register=True, shard=shard)
        for job in await farm.queue.claim("w", POOL, rows=99, nonce="n", idle=True, shard=shard):
            ids.remove(job.id)
    assert ids == []
    assert await farm.queue.live_workers() == ["w"]
    assert await farm.queue.leases("w") == ["w"]
    assert await farm.queue.leases("x") == []


async def test_a_body_comes_back_as_it_was(farm: Farm) -> None:
    request = make_request(prompt_tokens=2000, n=3, rendering={"a": {"b": "é"}})
    job_id = await farm.submit(request=request)
    assert await farm.queue.body(job_id) == request
    (held,) = await farm.claim()
    assert held.request == request
