"""A farm on a Redis Cluster of three nodes: every script on every shard, all roles, a node that dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from scheduler.backpressure import Limits
from scheduler.connections import blocking_client, command_client
from scheduler.dead_letters import DeadLetters
from scheduler.errors import UnsupportedServer
from scheduler.events import EventType
from scheduler.frames import Chunk, End, FrameId
from scheduler.jobs import JobState
from scheduler.limits import Limiter
from scheduler.queue import Claimed, Heartbeat, event_key, shard_key
from scheduler.scripts import QueuePolicy
from scheduler.servers import require_server
from scheduler.tokens import Emission, EmitCode, TokenListener
from tests.conftest import RedisServer
from tests.farm.streams import Answer, ask
from tests.faults.redis_nodes import Cluster, until
from tests.scheduler.builders import ENDED, Farm, make_job
from tests.waiting import PATIENCE_S

SHARDS = 5
LIMITS = Limits(requests_per_minute=100)
BODY = ask("Tell me a story.", temperature=1.1, seed=8, max_tokens=80)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.kill()


@pytest.fixture
async def redis(cluster: Cluster) -> AsyncIterator[Redis]:
    """A client of an empty cluster."""
    cluster.empty()
    client = command_client(cluster.url)
    yield client
    await client.aclose()


async def submit_to(farm: Farm, shard: int, **parts: Any) -> str:
    """A job in this shard."""
    while True:
        job = make_job(SHARDS, **parts)
        if job.id.startswith(f"{shard}-"):
            return await farm.queue.submit(job)


async def emit(farm: Farm, held: Claimed, shard: int, sequence: int = 1) -> EmitCode:
    """A frame of a job."""
    emission = Emission(held.id, held.token, FrameId(held.generation, sequence), (Chunk(0, (1,), "a"),))
    (code,) = await farm.log.emit([emission], shard=shard)
    return code


async def test_shards_lie_on_all_nodes_and_each_on_one(redis: Redis, cluster: Cluster) -> None:
    farm = Farm(redis, shards=SHARDS)
    for shard in range(SHARDS):
        await submit_to(farm, shard)
    places: dict[str, set[int]] = {}
    for node in cluster.nodes:
        for key in node.ask("KEYS", "*"):
            places.setdefault(key.decode().partition(":")[0], set()).add(node.port)
    assert set(places) == {shard_key(shard, "").rstrip(":") for shard in range(SHARDS)}
    assert all(len(ports) == 1 for ports in places.values())
    assert len(set.union(*places.values())) == len(cluster.nodes)


async def test_every_script_runs_on_every_shard(redis: Redis) -> None:
    """A node refuses a script that touches a key of another slot."""
    farm = Farm(redis, QueuePolicy(max_crashes=2, retry_base_ms=3_600_000, retry_longest_ms=3_600_000), shards=SHARDS)
    queue, limiter = farm.queue, Limiter(redis, farm.queue)
    for shard in range(SHARDS):
        budget = f"key{shard}"
        ids = [await submit_to(farm, shard, budget=budget) for _ in range(4)]
        await limiter.admit(budget, LIMITS, ids[0], input_tokens=1, output_tokens=1, keep_s=60)
        await queue.require_room(make_job(id=ids[0]))
        assert await queue.place(ids[0]) is not None
        assert await queue.listen(ids[0], "node") is JobState.QUEUED
        await queue.leave(ids[3], 60_000)
        assert await queue.cancel(ids[3], "test") is JobState.QUEUED
        assert await queue.expire(shard) == 0
        await queue.heartbeat("w1", [], register=True, shard=shard)
        held = await queue.claim("w1", "demo", rows=3, nonce="n", idle=True, shard=shard)
        assert [job.id for job in held] == ids[:3]
        assert await emit(farm, held[0], shard) is EmitCode.OK
        assert await farm.finish(held[0])
        facts = ENDED | {"error_code": "engine_error", "error": "no room"}
        assert float(await queue.retry(held[1].id, held[1].token, "engine_error", facts)) >= 0
        assert await queue.release(held[2].id, held[2].token, "drain")
        (resumed,) = await queue.claim("w1", "demo", rows=1, nonce="m", idle=True, shard=shard)
        assert await queue.reap(shard, worker="w1") == [resumed.id]
        await queue.heartbeat("w2", [], register=True, shard=shard)
        (alone,) = await queue.claim("w2", "demo", rows=1, nonce="k", idle=True, shard=shard)
        assert alone.solo
        assert await queue.reap(shard, worker="w2") == [alone.id]
        assert await DeadLetters(queue).ids("default", 10) == [alone.id]
        assert await DeadLetters(queue).discard(alone.id)
        assert await limiter.settle(shard) == 3
        await queue.heartbeat("w3", [], register=True, shard=shard)
    assert await queue.live_workers() == ["w3"]
    assert set((await queue.depths("demo")).values()) == {0}


async def test_frames_are_heard_from_every_shard(redis: Redis, cluster: Cluster) -> None:
    """What one node publishes is heard at the node where an API node listens."""
    farm, ears = Farm(redis, shards=SHARDS), blocking_client(cluster.url)
    listener = TokenListener(ears, farm.queue, "node")
    await listener.start()
    for shard in range(SHARDS):
        job_id = await submit_to(farm, shard, node="node")
        await farm.queue.heartbeat("w1", [], register=True, shard=shard)
        (held,) = await farm.queue.claim("w1", "demo", rows=1, nonce="n", idle=True, shard=shard)
        assert await emit(farm, held, shard) is EmitCode.OK
        assert await farm.queue.finish(held.id, held.token, EventType.FINISHED, ENDED)
        frames = [frame async for frame in listener.follow(job_id) if frame is not None]
        assert [type(frame.body) for frame in frames] == [tuple, End]
    await listener.close()
    await ears.aclose()


async def test_a_shard_that_moves_to_another_node_takes_its_jobs_along(redis: Redis, cluster: Cluster) -> None:
    """Who holds, follows or projects a job of the shard is sent on to the other node, also out of a blocking read."""
    if not cluster.moves_slots_at_once:
        pytest.skip("this server moves a slot key by key, and a script cannot follow half a shard")
    farm, ears = Farm(redis, shards=SHARDS), blocking_client(cluster.url)
    listener = TokenListener(ears, farm.queue, "node")
    await listener.start()
    job_id = await submit_to(farm, 0, node="node")
    waiting = await submit_to(farm, 0)
    await farm.queue.heartbeat("w1", [], register=True)
    (held,) = await farm.queue.claim("w1", "demo", rows=1, nonce="n", idle=True)
    assert await emit(farm, held, 0) is EmitCode.OK
    last = (await redis.xrevrange(event_key(0), count=1))[0][0]
    reading = asyncio.ensure_future(ears.xread({event_key(0): last}, block=round(PATIENCE_S * 1000)))
    await asyncio.to_thread(cluster.move, key_slot(event_key(0).encode()))
    assert await farm.queue.heartbeat("w1", [job_id]) == Heartbeat(True)
    assert await emit(farm, held, 0, 2) is EmitCode.OK
    assert await emit(farm, held, 0, 2) is EmitCode.DUPLICATE
    assert await farm.queue.finish(held.id, held.token, EventType.FINISHED, ENDED, sequence=2)
    frames = [frame async for frame in listener.follow(job_id) if frame is not None]
    assert [frame.id.sequence for frame in frames] == [1, 2, 3]
    assert len(await reading) == 1
    (other,) = await farm.queue.claim("w1", "demo", rows=1, nonce="m", idle=True)
    assert other.id == waiting
    assert await farm.finish(other)
    assert await farm.told(job_id) == ["submitted", "claimed", "finished"]
    await listener.close()
    await ears.aclose()


async def test_a_url_of_the_wrong_kind_is_refused_at_start(cluster: Cluster, redis_server: RedisServer) -> None:
    with pytest.raises(UnsupportedServer, match="set FARM_REDIS_URL to redis\\+cluster"):
        await require_server(f"redis://127.0.0.1:{cluster.nodes[0].port}")
    await require_server(cluster.url)
    await require_server(redis_server.url)


def test_a_farm_serves_from_a_cluster_and_outlives_a_node(
    start_farm: Callable[..., Any], start_redis: Callable[[], RedisServer], cluster: Cluster
) -> None:
    """All roles on the cluster; streams of every shard go on after a node was killed and started again."""
    cluster.empty()
    farm = start_farm(apis=2, redis=cluster, shards=str(SHARDS), chores_redis_url=start_redis().url, lease_s="4")
    undisturbed = Answer(farm.url, BODY).read()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: Answer(farm.url, BODY), range(5)))
        assert len({answer.job_id.partition("-")[0] for answer in answers}) > 1
        for answer in answers:
            answer.read(events=2)
        cluster.nodes[0].kill()
        cluster.nodes[0].start()
        assert set(pool.map(lambda answer: answer.read(), answers)) == {undisturbed}
    until(cluster.is_whole)  # streams may have ended before the node was killed, and it is not back at once
    other = farm.apis[1].facts["url"]
    accepted = httpx2.post(
        f"{other}/v1/chat/completions", json=BODY | {"stream": False}, headers={"Prefer": "respond-async"}, timeout=60
    )
    assert accepted.status_code == 202
    job = f"{farm.url}{accepted.headers['location']}"
    until(lambda: httpx2.get(job, timeout=30).json()["state"] == "finished")
    assert httpx2.get(job).json()["result"]["choices"][0]["message"]["content"] == undisturbed
    states = "SELECT state, COUNT(*) AS n FROM jobs GROUP BY state"
    until(lambda: farm.query(states) == [{"state": "finished", "n": 7}], timeout_s=120)
    farm.stop()
