"""A primary dies: the sentinels make its replica the primary, and the farm goes on there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.jobs import JobState
from scheduler.reaper import Reaper
from scheduler.scripts import QueuePolicy
from tests.faults.redis_nodes import SentinelFarm, until
from tests.faults.streams import Answer, ask
from tests.scheduler.builders import Farm

BODY = ask("Tell me a story.", temperature=1.1, seed=8, max_tokens=80)


@pytest.fixture
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelFarm]:
    """Three sentinels that watch a primary and its replica."""
    farm = SentinelFarm(tmp_path_factory.mktemp("sentinels"))
    yield farm
    farm.kill()


def test_streams_and_accepted_jobs_go_on_after_a_failover(
    start_farm: Callable[..., Any], sentinels: SentinelFarm
) -> None:
    """F19: what the replica had not got is repaired by those who still know it; new requests get 503 meanwhile."""
    farm = start_farm(redis=sentinels, lease_s="5")
    undisturbed = Answer(farm.url, BODY).read()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: Answer(farm.url, BODY), range(4)))
        accepted = httpx2.post(
            f"{farm.url}/v1/chat/completions",
            json=BODY | {"stream": False},
            headers={"Prefer": "respond-async"},
            timeout=60,
        )
        assert accepted.status_code == 202
        for answer in answers:
            answer.read(events=2)
        sentinels.primary.kill()
        refused = httpx2.post(f"{farm.url}/v1/chat/completions", json=BODY, timeout=60)
        assert refused.status_code in (503, 200)
        assert refused.status_code == 200 or float(refused.headers["retry-after"]) > 0
        until(sentinels.failed_over)
        assert list(pool.map(lambda answer: answer.read(), answers)) == [undisturbed] * 4
    job = f"{farm.url}{accepted.headers['location']}"
    until(lambda: httpx2.get(job, timeout=30).json()["state"] == "finished")
    assert httpx2.get(job).json()["result"]["choices"][0]["message"]["content"] == undisturbed
    assert Answer(farm.url, BODY).read() == undisturbed
    ended_twice = "SELECT job_id FROM job_events WHERE type = 'finished' GROUP BY job_id HAVING COUNT(*) > 1"
    assert farm.query(ended_twice) == []
    farm.stop()


async def test_after_a_failover_nobody_is_reaped_for_a_lease(sentinels: SentinelFarm) -> None:
    """Workers could not renew their leases meanwhile; and without any server the queue is unavailable, and says so."""
    client = command_client(sentinels.url)
    farm = Farm(client, QueuePolicy(lease_ms=1500))
    reaper = Reaper(farm.queue)
    held = await farm.start()
    assert await reaper.round() == 0
    sentinels.primary.kill()
    answers = await asyncio.gather(*(farm.state(held.id) for _ in range(30)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {QueueUnavailable}
    until(sentinels.failed_over)

    async def lease_is_over() -> bool:
        try:
            return await farm.queue.live_workers() == []
        except QueueUnavailable:  # the sentinels say who it is a moment later
            return False

    while not await lease_is_over():
        continue
    assert await reaper.round() == 0
    assert await asyncio.gather(*(farm.state(held.id) for _ in range(30))) == [JobState.RUNNING] * 30
    assert (await farm.queue.heartbeat("w1", [held.id])).alive
    sentinels.replica.kill()
    with pytest.raises(QueueUnavailable):
        await farm.queue.live_workers()
    await client.aclose()
