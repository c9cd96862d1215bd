"""This machine's part in placement: which of the models that jobs wait for it brings into memory, and which others do.

What falls to whom is decided in scheduler/placement.py, by every agent alike; the right to a model in Redis keeps two
that have not seen each other's latest rows from loading the same. A machine that dies loses its row and its rights with
its lease, and another one takes over.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from scheduler.agents import AgentBoard, PlacingRight
from scheduler.placement import falls_to, holders, offers
from workers.residency import Delay, Phase
from workers.tenure import Tenure


class Placing:
    """Settles, before every decision about memory, which waiting models are this machine's to load."""

    def __init__(self, board: AgentBoard, right: PlacingRight, agent: str, *, lease_s: float, copy_after_s: float):
        self._board = board
        self._right = right
        self._agent = agent
        self._renew_s = lease_s / 4
        self._copy_after_s = copy_after_s
        self._held: dict[str, float] = {}  # model → when its right was taken or kept last

    async def settle(self, tenures: Collection[Tenure], figures: Mapping[str, Any]) -> None:
        """Set `ours` of each; `figures` are this agent's own row as it would be shown now. Raises QueueUnavailable."""
        wanted = [tenure for tenure in tenures if tenure.is_missed]
        agents = await self._agents(figures) if wanted else []
        for tenure in tenures:
            if tenure.is_missed:
                await self._settle(tenure, agents)
            elif tenure.name in self._held and tenure.phase is Phase.LOADING:
                await self._keep(tenure.name)
            else:
                await self._give_up(tenure.name)

    async def close(self) -> None:
        """Leave everything to others. Raises QueueUnavailable."""
        for model in tuple(self._held):
            await self._give_up(model)

    async def _agents(self, figures: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        others = [row for row in await self._board.list() if row["agent"] != self._agent]
        return [*others, {**figures, "agent": self._agent}]

    async def _settle(self, tenure: Tenure, agents: Sequence[Mapping[str, Any]]) -> None:
        places = offers(agents, tenure.name)
        if not places and not holders(agents, tenure.name):
            tenure.ours = True  # nobody can load it: it is shown as waiting, wherever it is known
            await self._give_up(tenure.name)
            return
        chosen = falls_to(agents, tenure.name, oldest_wait_s=tenure.waiting.oldest_s, copy_after_s=self._copy_after_s)
        begun = tenure.name in self._held and tenure.delay is Delay.ROOM  # others leave for it already
        tenure.ours = (chosen == self._agent or begun) and await self._keep(tenure.name)
        if tenure.ours:
            tenure.offers = {offer.agent: offer.effort.name.lower() for offer in places}
        else:
            await self._give_up(tenure.name)

    async def _keep(self, model: str) -> bool:
        now_s = time.monotonic()
        if now_s - self._held.get(model, -self._renew_s) < self._renew_s:
            return True
        if not await self._right.take(model):
            self._held.pop(model, None)
            return False
        self._held[model] = now_s
        return True

    async def _give_up(self, model: str) -> None:
        if model in self._held:
            await self._right.give_up(model)
            del self._held[model]
