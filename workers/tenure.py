"""One model of a node agent's catalogue: what it needs, its process if it has one, and what operators want of it."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from typing import Any

from scheduler.demand import Waiting
from scheduler.models import ModelCard
from workers.keeper import Keeper
from workers.residency import Delay, Phase, Resident, Why


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What the files of a model say; `cache_bytes` is the KV cache that `needs_bytes` counts on."""

    card: ModelCard
    tokenizer_json: str
    needs_bytes: int
    cache_bytes: int


@dataclass(slots=True, kw_only=True)
class Stay:
    """A process of the model, from the start of loading until it has ended."""

    keeper: Keeper
    stop: asyncio.Event
    task: asyncio.Task[Any]
    began_s: float
    was_ready: bool = False
    leaving: Why | str | None = None


@dataclass(slots=True, kw_only=True)
class Tenure:
    """`failed` is why the model is not served (empty: it can be). Times are the agent's monotonic clock, in seconds.

    `wanted_since_s`: an operator wants it loaded. `kept_idle_s`: for how long it is kept unless a job says otherwise.
    `ours`: where jobs wait for it and it is not here, this machine is the one to load it; `offers` says what loading
    it would take here and elsewhere.
    """

    name: str
    source: str
    kept_idle_s: float
    pinned: bool = False
    preload: bool = False
    wanted_since_s: float | None = None
    description: Description | None = None
    measured_bytes: int = 0
    failed: str = ""
    stay: Stay | None = None
    left_s: float = -math.inf
    last_load_s: float = 0.0
    waiting: Waiting = field(default_factory=Waiting)
    delay: Delay | None = None
    ours: bool = True
    offers: dict[str, str] = field(default_factory=dict)

    @property
    def is_missed(self) -> bool:
        """Do jobs wait for it while it is not here, though it could be?"""
        return self.phase is Phase.ABSENT and not self.failed and self.waiting.jobs > 0

    @property
    def phase(self) -> Phase:
        """Where its process is; one that is being started again counts as loading."""
        if self.stay is None:
            return Phase.ABSENT
        if self.stay.leaving is not None:
            return Phase.LEAVING
        return Phase.LOADING if self.stay.keeper.ready_s is None else Phase.LOADED

    @property
    def needs_bytes(self) -> int:
        """What it takes, or would: measured where it ever was loaded."""
        return self.measured_bytes or (self.description.needs_bytes if self.description else 0)

    @property
    def state(self) -> str:
        """For people: available, waiting, loading, loaded, leaving or failed."""
        if self.phase is Phase.ABSENT:
            return "failed" if self.failed else "waiting" if self.delay else "available"
        return self.phase.value

    def now(self, now_s: float) -> Resident:
        """What decisions are made from."""
        keeper = self.stay.keeper if self.stay else None
        said_s = keeper.keep_alive_s if keeper else None
        kept_s = self.kept_idle_s if said_s is None else said_s
        return Resident(
            name=self.name,
            needs_bytes=self.needs_bytes,
            phase=self.phase,
            pinned=self.pinned,
            preload=self.preload,
            waiting_since_s=self._waiting_since_s(now_s),
            jobs=keeper.jobs if keeper else 0,
            used_s=keeper.used_s if keeper else -math.inf,
            ready_s=(keeper.ready_s if keeper else None) or -math.inf,
            left_s=self.left_s,
            kept_idle_s=math.inf if kept_s < 0 else kept_s,
        )

    def shown(self, turn_s: float) -> dict[str, Any]:
        """What the agent's board says of it; a busy model keeps its place for `turn_s`."""
        keeper, now = self.stay.keeper if self.stay else None, self.now(time.monotonic())
        kept_s = now.used_s + now.kept_idle_s - time.monotonic()
        loading = keeper is not None and self.phase is Phase.LOADING
        return {
            "model": self.name,
            "state": self.state,
            "pinned": self.pinned,
            "needs_bytes": self.needs_bytes,
            "measured": self.measured_bytes > 0,
            "waits_for": self.delay.value if self.delay else None,
            "waiting": self.waiting.jobs,
            "oldest_wait_s": self.waiting.oldest_s,
            "progress": round(keeper.progress, 3) if keeper and loading else None,
            "deaths": keeper.deaths if keeper else 0,
            "jobs": now.jobs,
            "turn_left_s": round(max(0.0, now.ready_s + turn_s - time.monotonic()), 1) if self._is_loaded else None,
            "unloads_in_s": round(kept_s, 1) if self._is_loaded and math.isfinite(kept_s) else None,
            "failed": self.failed or None,
        }

    @property
    def _is_loaded(self) -> bool:
        return self.phase is Phase.LOADED

    def _waiting_since_s(self, now_s: float) -> float | None:
        others = self.phase is Phase.ABSENT and not self.ours
        since = [] if self.waiting.oldest_s is None or others else [now_s - self.waiting.oldest_s]
        if self.phase is Phase.ABSENT and self.wanted_since_s is not None:
            since.append(self.wanted_since_s)
        return None if self.failed else min(since, default=None)
