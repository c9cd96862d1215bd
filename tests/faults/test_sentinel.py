"""A primary dies: the sentinels make its replica the primary, and the queue goes on there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from scheduler.connections import command_client
from scheduler.errors import QueueUnavailable
from scheduler.jobs import JobState
from scheduler.reaper import Reaper
from scheduler.scripts import QueuePolicy
from tests.farm.streams import Answer, ask
from tests.faults.redis_nodes import SentinelFarm, until
from tests.scheduler.builders import Farm

BODY = ask("Tell me a story.", temperature=1.1, seed=8, max_tokens=200)
STREAMS = 4


@pytest.fixture
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelFarm]:
    """Three sentinels that watch a primary and its replica."""
    farm = SentinelFarm(tmp_path_factory.mktemp("sentinels"))
    yield farm
    farm.kill()


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


def test_streams_of_a_whole_farm_go_on_at_another_primary(
    start_farm: Callable[..., Any], sentinels: SentinelFarm
) -> None:
    """F19, a primary is killed; F20, one that lives on may only be read: every client reads the undisturbed text."""
    farm = start_farm(redis=sentinels, max_crashes="12", lease_s="10")
    undisturbed = Answer(farm.url, BODY).read()
    with ThreadPoolExecutor(STREAMS) as pool:
        for fault in (sentinels.primary.kill, sentinels.switch_back):
            answers = list(pool.map(lambda _: Answer(farm.url, BODY), range(STREAMS)))
            for answer in answers:
                answer.read(events=2)
            fault()
            assert list(pool.map(lambda answer: answer.read(), answers)) == [undisturbed] * STREAMS
            if fault == sentinels.primary.kill:
                sentinels.come_back()
    states = "SELECT state, COUNT(*) AS n FROM jobs GROUP BY state"
    until(lambda: farm.query(states) == [{"state": "finished", "n": 2 * STREAMS + 1}], timeout_s=180)
    farm.stop()
