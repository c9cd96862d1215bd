"""Limits of keys: charged whole or not at all, flowing off with time, settled by what was really used."""

from __future__ import annotations

import asyncio
import math
import time

import pytest
from redis.asyncio import Redis

from scheduler.backpressure import SHORTEST_S, SPREAD, Limits, Standing
from scheduler.errors import OverLimit, RateLimited
from scheduler.events import EventType
from scheduler.limits import Limiter
from scheduler.queue import shard_key
from tests.scheduler.builders import Farm, make_job
from tests.scheduler.conftest import Eventually

BUDGET = "key-1"
LEVEL = f"{{limit.{BUDGET}}}:level"
LIMITS = Limits(requests_per_minute=4, input_tokens_per_minute=100, output_tokens_per_minute=50, concurrent_jobs=3)


@pytest.fixture
def limiter(farm: Farm) -> Limiter:
    return Limiter(farm.redis, farm.queue)


async def admit(
    limiter: Limiter, limits: Limits = LIMITS, job_id: str = "", *, used: tuple[int, int] = (10, 10), keep_s: float = 60
) -> Standing:
    return await limiter.admit(
        BUDGET, limits, job_id or make_job().id, input_tokens=used[0], output_tokens=used[1], keep_s=keep_s
    )


async def pass_time(redis: Redis, seconds: float) -> None:
    """What was used was used so much earlier."""
    await redis.hincrby(LEVEL, "at", -round(seconds * 1000))  # type: ignore[misc]


class Remaining:
    """What is left of LIMITS. More than expected may be left, by what has flowed off since the test began."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def check(self, standing: Standing, *expected: int) -> None:
        """Requests, input tokens, output tokens."""
        minutes = (time.monotonic() - self._began_s) / 60
        levels = (standing.requests, standing.input_tokens, standing.output_tokens)
        for level, least in zip(levels, expected, strict=True):
            assert level is not None
            assert least <= level.remaining <= least + math.ceil(level.limit * minutes)


@pytest.fixture
def remaining() -> Remaining:
    """Begins with the test."""
    return Remaining()


async def test_a_job_is_charged_for_its_prompt_and_the_answer_it_asks_for(
    limiter: Limiter, remaining: Remaining
) -> None:
    standing = await admit(limiter, used=(30, 20))
    remaining.check(standing, 3, 70, 30)
    assert standing.tokens is standing.output_tokens
    assert standing.requests is not None
    assert standing.requests.reset_s == pytest.approx(15)


async def test_asking_again_for_the_same_job_charges_nothing(limiter: Limiter, remaining: Remaining) -> None:
    job_id = make_job().id
    for _ in range(9):
        remaining.check(await admit(limiter, job_id=job_id), 3, 90, 40)


@pytest.mark.parametrize(
    ("limits", "words", "wait_s"),
    [
        (Limits(requests_per_minute=2), "2 requests per minute", 30),
        (Limits(input_tokens_per_minute=25), "25 input tokens per minute", 12),
        (Limits(output_tokens_per_minute=25), "25 output tokens per minute", 12),
        (Limits(concurrent_jobs=2), "2 jobs at once", SHORTEST_S),
        (Limits(requests_per_minute=2, input_tokens_per_minute=25), "2 requests per minute", 30),
    ],
)
async def test_a_reached_limit_says_which_and_how_long(
    limiter: Limiter, limits: Limits, words: str, wait_s: float
) -> None:
    began_s = time.monotonic()
    for _ in range(2):
        await admit(limiter, limits)
    with pytest.raises(RateLimited, match=words) as refusal:
        await admit(limiter, limits)
    assert wait_s - (time.monotonic() - began_s) <= refusal.value.retry_after_s <= wait_s * (1 + SPREAD)


async def test_a_refused_job_is_charged_nothing(limiter: Limiter, remaining: Remaining) -> None:
    await admit(limiter, used=(10, 45))
    with pytest.raises(RateLimited, match="output"):
        await admit(limiter, used=(80, 10))
    remaining.check(await admit(limiter, used=(80, 5)), 2, 10, 0)


async def test_what_was_used_flows_off_evenly_and_no_further_than_to_nothing(
    limiter: Limiter, redis: Redis, remaining: Remaining
) -> None:
    await admit(limiter, used=(100, 50))
    await pass_time(redis, 30)
    remaining.check(await admit(limiter, used=(10, 5)), 3, 40, 20)
    await pass_time(redis, 3600)
    remaining.check(await admit(limiter, used=(0, 0)), 3, 100, 50)


async def test_a_prompt_over_a_whole_minute_is_never_served(limiter: Limiter) -> None:
    with pytest.raises(OverLimit, match="101 of the 100 input tokens per minute"):
        await admit(limiter, used=(101, 1))


async def test_an_answer_that_may_be_longer_than_a_minute_allows_is_charged_a_minute(
    limiter: Limiter, remaining: Remaining
) -> None:
    remaining.check(await admit(limiter, used=(1, 5000)), 3, 99, 0)


async def test_keys_do_not_share_their_limits(limiter: Limiter) -> None:
    for budget in ("a", "b"):
        for _ in range(2):
            await limiter.admit(
                budget,
                Limits(concurrent_jobs=2),
                make_job().id,
                input_tokens=1,
                output_tokens=1,
                keep_s=9,
            )


async def test_many_at_once_get_no_more_than_the_limit(limiter: Limiter) -> None:
    answers = await asyncio.gather(*(admit(limiter, used=(1, 1)) for _ in range(20)), return_exceptions=True)
    assert sum(isinstance(answer, Standing) for answer in answers) == 3


async def test_what_was_not_accepted_was_not_asked(limiter: Limiter, remaining: Remaining) -> None:
    job_id = make_job().id
    await admit(limiter, job_id=job_id)
    for _ in range(2):
        await limiter.forget(BUDGET, job_id)
    remaining.check(await admit(limiter, used=(0, 0)), 3, 100, 50)


async def started(farm: Farm, limiter: Limiter, *, prompt: int = 20, answer: int = 40) -> str:
    """A job with a budget, charged and submitted."""
    job = make_job(prompt_tokens=prompt, max_tokens=answer, budget=BUDGET)
    await admit(limiter, job_id=job.id, used=(prompt, answer))
    return await farm.queue.submit(job)


@pytest.mark.parametrize("event", [EventType.FINISHED, EventType.FAILED, EventType.CANCELLED, EventType.EXPIRED])
async def test_an_ended_job_is_charged_what_it_used_and_its_place_is_free(
    farm: Farm, limiter: Limiter, event: EventType, remaining: Remaining
) -> None:
    await started(farm, limiter)
    (held,) = await farm.claim()
    await farm.finish(held, event, output_tokens=7, cached_tokens=16)
    assert await limiter.settle(0) == 1
    assert await limiter.settle(0) == 0
    standing = await admit(limiter, Limits(**{**_fields(LIMITS), "concurrent_jobs": 1}), used=(0, 0))
    remaining.check(standing, 2, 96, 43)


async def test_a_job_that_never_ran_used_no_tokens(farm: Farm, limiter: Limiter, remaining: Remaining) -> None:
    await farm.queue.cancel(await started(farm, limiter), "me")
    await limiter.settle(0)
    remaining.check(await admit(limiter, used=(0, 0)), 2, 100, 50)


async def test_a_job_cancelled_between_attempts_used_what_it_said(
    farm: Farm, limiter: Limiter, remaining: Remaining
) -> None:
    await started(farm, limiter)
    (held,) = await farm.claim()
    await farm.say(held, 1)
    await farm.queue.release(held.id, held.token, "drain")
    await farm.queue.cancel(held.id, "me")
    await limiter.settle(0)
    remaining.check(await admit(limiter, used=(0, 0)), 2, 80, 49)


async def test_more_than_was_charged_is_charged_afterwards(farm: Farm, limiter: Limiter) -> None:
    await started(farm, limiter, answer=5)
    (held,) = await farm.claim()
    await farm.finish(held, output_tokens=60, cached_tokens=0)
    await limiter.settle(0)
    with pytest.raises(RateLimited, match="output"):
        await admit(limiter, used=(0, 1))


async def test_a_job_without_limits_leaves_nothing_to_settle(farm: Farm, limiter: Limiter) -> None:
    await farm.finish(await farm.start())
    assert await farm.keys("used") == []
    assert await limiter.settle(0) == 0


async def test_a_place_whose_end_was_lost_is_free_after_its_time(limiter: Limiter, redis: Redis) -> None:
    limits = Limits(concurrent_jobs=1)
    lost = make_job().id
    await admit(limiter, limits, lost)
    await redis.zadd(f"{{limit.{BUDGET}}}:jobs", {lost: 1})
    await admit(limiter, limits)
    assert await redis.hexists(LEVEL, f"j:{lost}") is False  # type: ignore[misc]


async def test_the_wait_for_a_place_follows_how_long_jobs_take(limiter: Limiter, redis: Redis) -> None:
    limits = Limits(concurrent_jobs=2)
    for _ in range(2):
        await admit(limiter, limits)
    await redis.hset(LEVEL, "held", "20000")  # type: ignore[misc]
    with pytest.raises(RateLimited) as refusal:
        await admit(limiter, limits)
    assert 10 <= refusal.value.retry_after_s <= 10 * (1 + SPREAD)


async def test_nothing_is_kept_for_ever(limiter: Limiter, redis: Redis) -> None:
    await admit(limiter, keep_s=86400)
    await admit(limiter, keep_s=1)
    for key in (LEVEL, f"{{limit.{BUDGET}}}:jobs"):
        assert 86400_000 < await redis.pttl(key) <= 90_000_000


async def test_the_scheduler_settles_what_nobody_waited_for(
    farm: Farm, limiter: Limiter, eventually: Eventually
) -> None:
    await started(farm, limiter)
    (held,) = await farm.claim()
    await farm.finish(held)
    task = asyncio.create_task(limiter.run(period_s=0.01))
    await eventually(lambda: _settled(farm))
    task.cancel()


async def _settled(farm: Farm) -> bool:
    return not await farm.redis.exists(shard_key(0, "used"))


def _fields(limits: Limits) -> dict[str, int]:
    return {name: getattr(limits, name) for name in Limits.__dataclass_fields__}


async def test_a_days_tokens_flow_off_over_a_day_and_are_settled(limiter: Limiter, farm: Farm) -> None:
    day = Limits(tokens_per_day=1000)
    job_id = make_job().id
    await admit(limiter, day, job_id, used=(300, 600))
    with pytest.raises(RateLimited, match="1000 tokens per day") as refused:
        await admit(limiter, day, used=(100, 100))
    assert 0.99 * 8640 <= refused.value.retry_after_s <= 8640 * (1 + SPREAD)
    await limiter._settle(BUDGET, job_id, 1, 300, 100)
    await admit(limiter, day, used=(300, 300))
    with pytest.raises(RateLimited):
        await admit(limiter, day, used=(5, 5))
    await pass_time(farm.redis, 8640)
    await admit(limiter, day, used=(50, 49))
    assert await farm.redis.pttl(LEVEL) > 86_000_000


async def test_a_prompt_over_the_day_can_never_be_served(limiter: Limiter) -> None:
    with pytest.raises(OverLimit, match="tokens per day"):
        await admit(limiter, Limits(tokens_per_day=100), used=(101, 1))
