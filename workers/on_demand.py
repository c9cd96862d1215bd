"""The node agent of a machine that serves many models in little memory: it loads them when jobs wait for them.

What is loaded and given up is decided in residency.py, what is left to other machines in placing.py; here demand is
read, processes are started and stopped, and all of it is told: to the catalogue (cards), the agents' board (states),
and the log of model events.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog
from redis.asyncio import Redis

from scheduler.agents import AgentBoard, OrderDesk, PlacingRight
from scheduler.connections import command_client
from scheduler.demand import Demand
from scheduler.errors import QueueUnavailable
from scheduler.model_events import ModelEvent, ModelEvents
from scheduler.models import ModelCatalog
from scheduler.process import announce_ready, cancel_all
from scheduler.queue import JobQueue
from scheduler.settings import WorkerSettings
from workers.catalogue import Catalogue
from workers.keeper import End, Keeper, KeeperRules
from workers.orders import Orders
from workers.placing import Placing
from workers.residency import Phase, Why, decide
from workers.spawning import Spawner
from workers.tenure import Stay, Tenure

log = structlog.get_logger()

TICK_S = 0.05
SHOW_S = 0.5
RENEW_S = 10.0
OUTAGE_PAUSE_S = 0.5
NEW_STATE = (ModelEvent.LOADING, ModelEvent.LOADED, ModelEvent.UNLOADED, ModelEvent.FAILED)
"""Events after which a model's card says something else."""


class DemandAgent:
    """Owns the models of this machine's catalogue."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._name = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        self._redis: Redis = command_client(settings.redis)
        self._queue = JobQueue(self._redis, shards=settings.shards, policy=settings.queue_policy)
        self._demand = Demand(self._queue)
        self._cards = ModelCatalog(self._redis)
        self._board = AgentBoard(self._redis)
        self._desk = OrderDesk(self._redis)
        self._events = ModelEvents(self._redis)
        self._untold: list[tuple[ModelEvent, str, dict[str, Any]]] = []
        self._spawner = Spawner(keeps_spare=settings.spare_process)
        self._rules = KeeperRules(
            drain_s=settings.drain_s, progress_limit_s=settings.progress_limit_s, only_model=False
        )
        self._tenures = {
            name: Tenure(
                name=name,
                source=source,
                kept_idle_s=settings.keep_alive_s,
                pinned=name in settings.pinned_models,
                preload=name in settings.preloaded_models,
            )
            for name, source in settings.models.items()
        }
        self._catalogue = Catalogue(settings, self._tenures, self._tell)
        self._orders = Orders(self._tenures, self._catalogue, self._evict, self._tell)
        right = PlacingRight(self._redis, self._name, settings.lease_s)
        self._placing = Placing(
            self._board, right, self._name, lease_s=settings.lease_s, copy_after_s=settings.model_copy_after_s
        )
        self._changed = asyncio.Event()
        self._shown_s = 0.0

    async def run(self, stop: asyncio.Event) -> int:
        """Serve the catalogue until asked to stop; return the exit code."""
        stopping = asyncio.create_task(stop.wait())
        reading = asyncio.create_task(self._catalogue.read())
        await asyncio.wait([reading, stopping], return_when=asyncio.FIRST_COMPLETED)
        renewing = asyncio.create_task(self._renew_cards())
        if not stop.is_set():
            reading.result()
            await self._begin()
        while not stop.is_set():
            try:
                await self._tick()
            except QueueUnavailable as error:
                log.warning("waiting for the queue", error=str(error))
                await asyncio.wait([stopping], timeout=OUTAGE_PAUSE_S)
            await self._pause(stopping)
        await cancel_all([stopping, renewing, reading])
        await self._leave()
        return 0

    async def _begin(self) -> None:
        """Show the cards; pinned models are wanted from now on."""
        for tenure in self._tenures.values():
            if tenure.pinned:
                tenure.wanted_since_s = time.monotonic()
                self._tell(ModelEvent.PINNED, tenure.name, {"by": "settings"})
        with suppress(QueueUnavailable):  # they are shown again and again
            await self._show_cards()
        await self._spawner.prepare()
        names = ", ".join(self._tenures)
        announce_ready(role="worker", model=names, engine="loaded by demand", blas=self._catalogue.blas)

    async def _pause(self, stopping: asyncio.Task[Any]) -> None:
        """Until something has changed, or for a tick."""
        changed = asyncio.create_task(self._changed.wait())
        await asyncio.wait([changed, stopping], timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        await cancel_all([changed])

    async def _tick(self) -> None:
        news = self._changed.is_set()
        self._changed.clear()
        answers = [(order, self._orders.carry_out(order)) for order in await self._desk.take(self._name)]
        for order, answer in answers:
            facts = {"action": order.action, "by": order.by, "refused": answer.get("refused")}
            self._tell(ModelEvent.ORDERED, order.model, facts)
        waiting = await self._demand.of(list(self._tenures))
        for name, tenure in self._tenures.items():
            tenure.waiting = waiting[name]
        await self._placing.settle(self._tenures.values(), self._figures())
        news = self._decide() or news
        await self._turn_away()
        if news or answers or time.monotonic() - self._shown_s >= SHOW_S:
            await self._show()
        for order, answer in answers:  # what it has changed can be seen by now
            await self._desk.answer(order, answer)

    def _decide(self) -> bool:
        """Carry out the plan for now; did anything change?"""
        now_s = time.monotonic()
        models = [tenure.now(now_s) for tenure in self._tenures.values() if not tenure.failed]
        plan = decide(
            models, budget_bytes=self._catalogue.budget_bytes, now_s=now_s, turn_s=self._settings.model_turn_s
        )
        for name, why in plan.evict.items():
            self._evict(self._tenures[name], why)
        for name in plan.load:
            self._load(self._tenures[name])
        delays = {name: plan.waits.get(name) for name in self._tenures}
        changed = any(self._tenures[name].delay is not delay for name, delay in delays.items())
        for name, delay in delays.items():
            self._tenures[name].delay = delay
        return changed or bool(plan.evict or plan.load)

    def _load(self, tenure: Tenure) -> None:
        """Start the model's process."""
        assert tenure.description is not None
        variables = {
            "FARM_MODELS": "",
            "FARM_PRELOAD": "",
            "FARM_PINNED": "",
            "FARM_MODEL": tenure.source,
            "FARM_MODEL_NAME": tenure.name,
            "FARM_KV_CACHE_BYTES": str(tenure.description.cache_bytes),
        }
        keeper = Keeper(self._spawner, self._queue, self._rules, variables, lambda keeper: self._heard(tenure, keeper))
        stop = asyncio.Event()
        task = asyncio.create_task(keeper.live(stop), name=f"model {tenure.name}")
        task.add_done_callback(lambda task: self._ended(tenure, task.result()))
        tenure.stay = Stay(keeper=keeper, stop=stop, task=task, began_s=time.monotonic())
        oldest_s = tenure.waiting.oldest_s
        facts: dict[str, Any] = {"needs_bytes": tenure.needs_bytes, "waiting": tenure.waiting.jobs}
        facts |= {"oldest_wait_s": oldest_s, "offers": tenure.offers}
        tenure.offers = {}
        self._tell(ModelEvent.LOADING, tenure.name, facts)

    def _evict(self, tenure: Tenure, why: Why | str) -> None:
        """Ask the model's process to end: its jobs finish, or go back to the queue."""
        if tenure.stay is not None and tenure.stay.leaving is None:
            tenure.stay.leaving = why
            tenure.stay.stop.set()
            self._tell(ModelEvent.EVICTING, tenure.name, {"why": str(why), "jobs": tenure.stay.keeper.jobs})

    def _heard(self, tenure: Tenure, keeper: Keeper) -> None:
        """The model's process has said something, or died."""
        stay = tenure.stay
        if stay is None or stay.keeper is not keeper:
            return
        if keeper.memory_bytes:
            tenure.measured_bytes = max(tenure.measured_bytes, keeper.memory_bytes)
        if keeper.ready_s is not None and not stay.was_ready:
            stay.was_ready, tenure.wanted_since_s, tenure.preload = True, None, False
            tenure.last_load_s = keeper.ready_s - stay.began_s
            facts = {"load_s": round(tenure.last_load_s, 3), "engine": keeper.card.engine if keeper.card else None}
            self._tell(ModelEvent.LOADED, tenure.name, facts)
        if keeper.ready_s is None and stay.was_ready:
            stay.was_ready = False
            stay.began_s = time.monotonic()
            self._tell(ModelEvent.DIED, tenure.name, {"deaths": keeper.deaths})
        if keeper.card is not None and tenure.description is not None:
            tenure.description = replace(tenure.description, card=keeper.card)
        self._changed.set()

    def _ended(self, tenure: Tenure, end: End) -> None:
        """There is no process of the model any more: it was given up, or has failed."""
        tenure.stay, tenure.left_s = None, time.monotonic()
        if end.reason:
            self._catalogue.fail(tenure, end.reason)
        else:
            self._tell(ModelEvent.UNLOADED, tenure.name, {"exit_code": end.code})
        self._changed.set()

    async def _turn_away(self) -> None:
        """Jobs that wait for models which have failed go to who takes over, or end with the reason.

        Not where others serve the model.
        """
        for tenure in self._tenures.values():
            if not (tenure.failed and tenure.waiting.jobs) or await self._others_serve(tenure.name):
                continue
            if moved := await self._demand.hand_over(tenure.name, tenure.failed):
                self._tell(ModelEvent.HANDED_OVER, tenure.name, {"jobs": moved, "reason": tenure.failed})
                continue  # there may be more of them
            ended = await self._demand.turn_away(tenure.name, tenure.failed)
            self._tell(ModelEvent.TURNED_AWAY, tenure.name, {"jobs": ended, "reason": tenure.failed})

    async def _others_serve(self, model: str) -> bool:
        """Does another agent have a use for jobs of this model?"""
        others = [figures for figures in await self._board.list() if figures["agent"] != self._name]
        rows = [row for figures in others for row in figures["models"]]
        return any(row["model"] == model and not row["failed"] for row in rows)

    def _tell(self, event: ModelEvent, model: str, data: dict[str, Any]) -> None:
        log.info(f"model {event}", model=model, **data)
        self._untold.append((event, model, data))
        self._changed.set()

    async def _show(self) -> None:
        """Bring the events, the cards of models that came or went, and the states to Redis."""
        while self._untold:
            event, model, data = self._untold[0]
            await self._events.append(self._name, event, model, data)
            del self._untold[0]
            if event in NEW_STATE:
                await self._show_card(self._tenures[model])
        await self._board.publish(self._name, self._figures(), ttl_s=self._settings.lease_s)
        self._shown_s = time.monotonic()

    def _figures(self) -> dict[str, Any]:
        """What this agent shows of itself; other agents place models by it."""
        tenures = self._tenures.values()
        used_bytes = sum(tenure.needs_bytes for tenure in tenures if tenure.phase is not Phase.ABSENT)
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "budget_bytes": self._catalogue.budget_bytes,
            "used_bytes": used_bytes,
            "free_bytes": max(0, self._catalogue.budget_bytes - used_bytes),
            "models": [tenure.shown(self._settings.model_turn_s) for tenure in tenures],
            "seen_ms": time.time_ns() // 1_000_000,
        }

    async def _renew_cards(self) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            with suppress(QueueUnavailable):
                await self._show_cards()

    async def _show_cards(self) -> None:
        for tenure in self._tenures.values():
            await self._show_card(tenure)

    async def _show_card(self, tenure: Tenure) -> None:
        if tenure.description is not None:
            state = "loaded" if tenure.phase is Phase.LOADED else "failed" if tenure.failed else "available"
            card = replace(tenure.description.card, state=state)
            await self._cards.publish(card, tenure.description.tokenizer_json)

    async def _leave(self) -> None:
        """Stop all processes, and take back what was shown."""
        for tenure in self._tenures.values():
            self._evict(tenure, "the agent stops")
        tasks = [tenure.stay.task for tenure in self._tenures.values() if tenure.stay is not None]
        if tasks:
            await asyncio.wait(tasks)
        await self._spawner.close()
        with suppress(QueueUnavailable):
            await self._show()
            await self._placing.close()
            await self._board.withdraw(self._name)
            for tenure in self._tenures.values():
                if not await self._others_serve(tenure.name):
                    await self._cards.withdraw(tenure.name)
        await self._redis.aclose()
