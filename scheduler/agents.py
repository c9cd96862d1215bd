"""Node agents as the rest of the farm sees them: what each has in memory, and the orders that it takes.

An agent shows its figures under `{farm}:agent:<name>`. An order is an entry of the list `{farm}:orders:<name>`; its
answer comes as the list `{farm}:answer:<order id>`. Who brings a model into memory has its name in
`{farm}:placing:<model>` meanwhile. All expire.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import orjson
from redis.asyncio import Redis

from scheduler.errors import AgentSilent, QueueUnavailable
from scheduler.outages import redis_errors
from scheduler.placement import HERE, offers
from scheduler.scripts import hold_text
from scheduler.wire import known_fields
from scheduler.workers import Board

ORDER_TTL_S = 60
ANSWER_S = 40.0
ANSWER_POLL_S = 0.02
ORDERS_AT_ONCE = 16

FRESH_S = 0.5
"""How often API nodes look at the board."""


class Errand(StrEnum):
    """What an operator can ask a node to do with the models on its disk."""

    PULL = "pull"
    STOP_PULL = "stop pulling"
    LIST = "list"
    SEARCH = "search"
    RECOMMEND = "recommend"


class Action(StrEnum):
    """What an operator can ask an agent to do with a model."""

    FIT = "fit"
    """Nothing: say whether it would fit."""
    LOAD = "load"
    UNLOAD = "unload"
    PIN = "pin"
    UNPIN = "unpin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One thing to do, and who wants it. `arguments` of an errand are words for a command line."""

    action: str
    model: str
    by: str
    arguments: tuple[str, ...] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


class AgentBoard(Board):
    """The figures of node agents that load models by demand."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "agent")


class PlacingRight:
    """At most one agent has the right to bring a model into memory. Methods raise QueueUnavailable."""

    def __init__(self, redis: Redis, agent: str, ttl_s: float) -> None:
        self._script = redis.register_script(hold_text())
        self._agent = agent
        self._ttl_ms = round(ttl_s * 1000)

    async def take(self, model: str) -> bool:
        """Take it, or keep it for another time to live; False: another agent has it."""
        return await self._ask(model, self._ttl_ms)

    async def give_up(self, model: str) -> None:
        """Leave it to others; nothing where another agent has it."""
        await self._ask(model, 0)

    async def _ask(self, model: str, ttl_ms: int) -> bool:
        async with redis_errors():
            return bool(await self._script(keys=[f"{{farm}}:placing:{model}"], args=[self._agent, ttl_ms]))


class NodeBoard(Board):
    """Machines with models on their disks, and what they are bringing there."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "node")


BEST_FIRST = ("loaded", "leaving", "loading", "waiting", "available", "failed")
"""A model's states on several agents, as one: the first of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlace:
    """Where a model stands on the agent that is nearest to serving it.

    `progress` of its loading is from 0 to 1; `waits_for` says what a model that jobs wait for is not loaded yet.
    """

    agent: str
    model: str
    state: str
    progress: float | None = None
    waits_for: str | None = None
    failed: str | None = None

    @property
    def said(self) -> str:
        """For a comment in a stream; nothing where jobs need not wait for it."""
        words = {"loading": f"loading progress={self.progress or 0.0:.2f}", "waiting": f"waiting for={self.waits_for}"}
        return words.get(self.state, "" if self.state == "loaded" else self.state)


class ModelPlaces:
    """What an API node knows of models that are loaded by demand, up to FRESH_S old."""

    def __init__(self, board: AgentBoard) -> None:
        self._board = board
        self._places: dict[str, ModelPlace] = {}

    async def keep_fresh(self) -> None:
        """Look at the board again and again, for ever; an outage of Redis leaves what was known."""
        while True:
            with suppress(QueueUnavailable):
                await self.look()
            await asyncio.sleep(FRESH_S)

    async def look(self) -> None:
        """Look now. Raises QueueUnavailable."""
        self._places = _nearest(await self._board.list())

    def failed(self, model: str) -> str:
        """Why the model cannot be loaded; empty where it can, or where no agent loads it."""
        place = self._places.get(model)
        return "" if place is None else place.failed or ""

    async def agents(self) -> list[dict[str, Any]]:
        """What the agents say about themselves now. Raises QueueUnavailable."""
        return await self._board.list()

    def of(self, model: str) -> ModelPlace | None:
        """The model's; None where no agent loads it by demand."""
        return self._places.get(model)

    async def addressee(self, action: Action, model: str) -> str | None:
        """The agent that an order is for: who has the model, or else where loading it takes least.

        None where no agent loads it by demand. Raises QueueUnavailable.
        """
        await self.look()
        place, agents = self.of(model), await self.agents()
        if place is None:
            return None
        if action is Action.UNPIN:
            pinned = [figures["agent"] for figures in agents if _is_pinned(figures, model)]
            return pinned[0] if pinned else place.agent
        if action is Action.UNLOAD or place.state in HERE:
            return place.agent
        best = offers(agents, model)
        return best[0].agent if best else place.agent


def _nearest(agents: Sequence[Mapping[str, Any]]) -> dict[str, ModelPlace]:
    places = [
        ModelPlace(agent=figures["agent"], **known_fields(ModelPlace, row))
        for figures in agents
        for row in figures["models"]
    ]
    by_rank = sorted(places, key=lambda place: -BEST_FIRST.index(place.state))
    return {place.model: place for place in by_rank}


def _is_pinned(figures: Mapping[str, Any], model: str) -> bool:
    return any(row["model"] == model and row["pinned"] for row in figures["models"])


class OrderDesk:
    """Hand orders to an agent and answers back. Raises QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def give(self, agent: str, order: Order) -> dict[str, Any]:
        """Hand an order to an agent and wait for its answer. Raises AgentSilent."""
        key, answer_key = f"{{farm}}:orders:{agent}", f"{{farm}}:answer:{order.id}"
        async with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, orjson.dumps(asdict(order)))
            pipe.expire(key, ORDER_TTL_S)
            await pipe.execute()
        deadline_s = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline_s:
            async with redis_errors():
                answer: bytes | None = await self._redis.lpop(answer_key)  # type: ignore[misc]
            if answer is not None:
                decoded: dict[str, Any] = orjson.loads(answer)
                return decoded
            await asyncio.sleep(ANSWER_POLL_S)
        raise AgentSilent(agent)

    async def take(self, agent: str) -> list[Order]:
        """The agent's side: what it has been asked to do since."""
        async with redis_errors():
            entries = await self._redis.lpop(f"{{farm}}:orders:{agent}", ORDERS_AT_ONCE)  # type: ignore[misc]
        return [Order(**known_fields(Order, orjson.loads(entry))) for entry in entries or ()]

    async def answer(self, order: Order, answer: Mapping[str, Any]) -> None:
        """The agent's side: what has become of an order."""
        key = f"{{farm}}:answer:{order.id}"
        async with redis_errors(), self._redis.pipeline(transaction=True) as pipe:
            pipe.rpush(key, orjson.dumps(answer))
            pipe.expire(key, ORDER_TTL_S)
            await pipe.execute()
