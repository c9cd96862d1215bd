"""Weights of tenants: from the settings, changed while jobs wait, taken back; and what each tenant has in the queue."""

from __future__ import annotations

from collections import Counter

import pytest
from redis.asyncio import Redis

from scheduler.scripts import QueuePolicy
from scheduler.tenants import Tenant, Tenants
from tests.scheduler.builders import Farm

COST = 10
ODD_NAMES = ("default", 'Zoë\'s \\ "shop"', "a]]b", "line\nbreak", "7")


async def next_tenants(farm: Farm, jobs: int) -> Counter[str]:
    """Whose jobs are claimed next."""
    seen: Counter[str] = Counter()
    for _ in range(jobs):
        (job,) = await farm.claim(idle=False)
        seen[(await farm.queue.snapshot(job.id) or {})["tenant"]] += 1
    return seen


async def waiting_farm(redis: Redis, **weights: float) -> Farm:
    farm = Farm(redis, QueuePolicy(tenant_weights=tuple(weights.items())))
    for tenant in ("a", "b"):
        for _ in range(100):
            await farm.submit(tenant=tenant, prompt_tokens=COST)
    return farm


async def test_a_changed_weight_holds_at_once_for_jobs_that_wait_already(redis: Redis) -> None:
    farm = await waiting_farm(redis)
    assert await next_tenants(farm, 20) == {"a": 10, "b": 10}
    await Tenants(farm.queue).set_weight("a", 4)
    seen = await next_tenants(farm, 50)
    assert seen["a"] == pytest.approx(40, abs=1)
    await Tenants(farm.queue).set_weight("a", None)
    seen = await next_tenants(farm, 40)
    assert seen["a"] == pytest.approx(20, abs=1)


async def test_a_live_weight_goes_before_the_settings_until_it_is_taken_back(redis: Redis) -> None:
    farm = await waiting_farm(redis, a=3.0)
    tenants = Tenants(farm.queue)
    assert await tenants.set_weight("a", 0.5) == Tenant("a", 0.5, "live", 100, 100 * (COST + 7))
    assert [(tenant.name, tenant.weight, tenant.set_by) for tenant in await tenants.list()] == [
        ("a", 0.5, "live"),
        ("b", 1.0, "default"),
    ]
    assert (await tenants.set_weight("a", None)).set_by == "settings"
    seen = await next_tenants(farm, 40)
    assert seen["a"] == pytest.approx(30, abs=1)


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_a_weight_reaches_the_scripts_whatever_the_tenants_name(redis: Redis, name: str) -> None:
    farm = Farm(redis, QueuePolicy(tenant_weights=((name, 3.0),)))
    for tenant in (name, "other"):
        for _ in range(30):
            await farm.submit(tenant=tenant, prompt_tokens=COST)
    seen = await next_tenants(farm, 24)
    assert seen[name] == pytest.approx(18, abs=1)


async def test_every_shard_follows_a_changed_weight(redis: Redis) -> None:
    farm = Farm(redis, shards=3)
    await Tenants(farm.queue).set_weight("a", 5)
    assert [await redis.hget(f"{{farm.{shard}}}:weights", "a") for shard in range(3)] == [b"5.0"] * 3  # type: ignore[misc]
    for _ in range(4):
        await farm.submit(tenant="a")
    assert await Tenants(farm.queue).list() == [Tenant("a", 5.0, "live", 4, 40)]
