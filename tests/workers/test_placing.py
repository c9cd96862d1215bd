"""Agents that share a Redis leave a model to one of them, also where they have not seen each other's rows."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from scheduler.agents import AgentBoard, PlacingRight
from scheduler.demand import Waiting
from workers.placing import Placing
from workers.residency import Delay
from workers.tenure import Tenure

LEASE_S = 600.0
KEY = "{farm}:placing:m"


class Machine:
    """An agent with one model in its catalogue, that a job waits for."""

    def __init__(self, redis: Redis, name: str, budget: int) -> None:
        self.name = name
        self.board = AgentBoard(redis)
        right = PlacingRight(redis, name, LEASE_S)
        self.placing = Placing(self.board, right, name, lease_s=LEASE_S, copy_after_s=10.0)
        self.model = Tenure(name="m", source="demo", kept_idle_s=-1, measured_bytes=1, waiting=Waiting(1, 0.5))
        self.budget = budget

    @property
    def figures(self) -> dict[str, Any]:
        """Its row."""
        return {"budget_bytes": self.budget, "models": [self.model.shown(10.0)]}

    async def show(self) -> None:
        """As an agent does after every change."""
        await self.board.publish(self.name, self.figures, ttl_s=LEASE_S)

    async def takes_it(self) -> bool:
        """Is the model this machine's to load?"""
        await self.placing.settle([self.model], self.figures)
        return self.model.ours


@pytest.fixture
def machines(redis: Redis) -> tuple[Machine, Machine]:
    """The first one has more memory."""
    return Machine(redis, "one", 9), Machine(redis, "two", 5)


async def test_the_machine_where_it_takes_least_loads_it_and_the_other_one_leaves_it(
    machines: tuple[Machine, Machine],
) -> None:
    for machine in machines:
        await machine.show()
    one, two = machines
    assert (await two.takes_it(), await one.takes_it(), await two.takes_it()) == (False, True, False)
    assert one.model.offers == {"one": "free", "two": "free"}


async def test_of_two_that_have_not_seen_each_other_one_gets_the_right(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    assert (await two.takes_it(), await one.takes_it(), await two.takes_it()) == (True, False, True)


async def test_when_the_better_machine_comes_who_has_not_begun_leaves_it_the_model(
    machines: tuple[Machine, Machine],
) -> None:
    one, two = machines
    assert await two.takes_it()
    await one.show()
    assert not await one.takes_it()
    assert not await two.takes_it()
    assert await one.takes_it()


async def test_who_makes_room_already_keeps_it(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    assert await two.takes_it()
    two.model.delay = Delay.ROOM
    await one.show()
    assert (await two.takes_it(), await one.takes_it()) == (True, False)


async def test_another_one_takes_over_from_a_dead_machine(machines: tuple[Machine, Machine], redis: Redis) -> None:
    one, two = machines
    for machine in machines:
        await machine.show()
    assert await one.takes_it()
    assert not await two.takes_it()
    await redis.delete("{farm}:agent:one", KEY)  # what the end of its lease does
    assert await two.takes_it()


async def test_a_machine_on_which_it_has_failed_leaves_it_to_the_next(machines: tuple[Machine, Machine]) -> None:
    one, two = machines
    for machine in machines:
        await machine.show()
    assert await one.takes_it()
    one.model.failed = "no good"
    await one.show()
    await one.takes_it()
    assert await two.takes_it()


async def test_a_model_that_nobody_can_load_is_shown_as_waiting_by_all_and_held_by_nobody(
    machines: tuple[Machine, Machine], redis: Redis
) -> None:
    for machine in machines:
        machine.model.measured_bytes = 99
        await machine.show()
    assert [await machine.takes_it() for machine in machines] == [True, True]
    assert await redis.exists(KEY) == 0


async def test_rights_are_given_up_when_nothing_waits_and_when_the_agent_leaves(
    machines: tuple[Machine, Machine], redis: Redis
) -> None:
    one, _ = machines
    assert await one.takes_it()
    one.model.waiting = Waiting()
    await one.takes_it()
    assert await redis.exists(KEY) == 0
    one.model.waiting = Waiting(1, 0.0)
    assert await one.takes_it()
    assert 0 < await redis.pttl(KEY) <= LEASE_S * 1000
    await one.placing.close()
    assert await redis.exists(KEY) == 0


async def test_nobody_gives_up_a_right_of_another_one(redis: Redis) -> None:
    first, second = (PlacingRight(redis, name, LEASE_S) for name in ("first", "second"))
    assert await first.take("m")
    assert await first.take("m")
    assert not await second.take("m")
    await second.give_up("m")
    assert not await second.take("m")
    await first.give_up("m")
    assert await second.take("m")
