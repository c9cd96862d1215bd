"""Which models of a node are in memory: what is loaded, what gives up its place, what waits; pure.

Models that wait get their turn in the order of how long they have gone without: since their oldest job came, or since
their last turn ended, whichever is later. So a model waits for at most one turn of each other one. Whoever is idle is
given up at once where another waits, the least recently used first; whoever is busy, once its turn is over. What is
promised to a model that waits is not given to one behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Phase(StrEnum):
    """Where a model's process is. Memory counts from the start of loading until the process has ended."""

    ABSENT = "absent"
    LOADING = "loading"
    LOADED = "loaded"
    LEAVING = "leaving"


class Why(StrEnum):
    """Why a model gives up its place."""

    IDLE = "idle"
    """Nobody has used it for as long as it was to be kept."""
    ROOM = "room"
    """Another model waits, and this one is idle."""
    TURN = "turn"
    """Another model waits, and this one has had its turn."""
    GROWN = "grown"
    """The models together take more than the budget."""


class Delay(StrEnum):
    """What a model waits for that cannot be loaded now."""

    ROOM = "room"
    """Others are giving up their places."""
    TURN = "turn"
    """It is others' turn, or others have waited longer."""
    PINNED = "pinned"
    """Pinned models leave too little for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model as the node knows it now; all times are one clock's, in seconds.

    `needs_bytes` is estimated, and measured once it is loaded. `waiting_since_s`: when its oldest waiting job came (or
    somebody asked to load it); None: nobody waits. `preload`: to be loaded where there is room that nobody needs.
    `jobs` run on it; it was last used at `used_s`, ready at `ready_s`, and its turn before ended at `left_s`. It is
    kept for `kept_idle_s` after its last use.
    """

    name: str
    needs_bytes: int
    phase: Phase = Phase.ABSENT
    pinned: bool = False
    preload: bool = False
    waiting_since_s: float | None = None
    jobs: int = 0
    used_s: float = -math.inf
    ready_s: float = -math.inf
    left_s: float = -math.inf
    kept_idle_s: float = math.inf

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return self.jobs == 0 and self.waiting_since_s is None

    @property
    def without_since_s(self) -> float:
        """How long it has gone without a turn, as the moment when that began."""
        return max(self.waiting_since_s or -math.inf, self.left_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now. `waits`: models that are wanted and cannot be loaded yet."""

    load: tuple[str, ...] = ()
    evict: dict[str, Why] = field(default_factory=dict)
    waits: dict[str, Delay] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Would a model fit? `would_evict` names who would have to go for it; `why_not` is empty where it would."""

    needs_bytes: int
    free_bytes: int
    would_evict: tuple[str, ...] = ()
    why_not: str = ""


def decide(models: Sequence[Resident], *, budget_bytes: int, now_s: float, turn_s: float) -> Plan:
    """What to load and to give up now, so that no more than `budget_bytes` is ever in memory.

    A busy model that others wait for keeps its place for `turn_s` after it was ready.
    """
    room = _Room(models, budget_bytes)
    for model in models:
        if _is_over(model, now_s):
            room.give_up([model], {model.name: Why.IDLE})
    room.shrink()
    waits: dict[str, Delay] = {}
    load: list[str] = []
    wanted = [model for model in models if model.phase is Phase.ABSENT and model.waiting_since_s is not None]
    for model in sorted(wanted, key=lambda model: (model.without_since_s, model.name)):
        if room.take(model):
            load.append(model.name)
        else:
            waits[model.name] = room.make(model, now_s, turn_s)
    early = [model for model in models if model.phase is Phase.ABSENT and model.preload and model.name not in load]
    load += [model.name for model in early if model.name not in waits and room.take(model)]
    return Plan(tuple(load), room.evicted, waits)


def fit(models: Sequence[Resident], name: str, *, budget_bytes: int) -> Fit:
    """Would the model fit, and who would have to go for it? Busy ones too, once their turn is over."""
    model = next(model for model in models if model.name == name)
    others = [other for other in models if other.name != name]
    free_bytes = budget_bytes - _bytes(other for other in others if other.phase in (Phase.LOADING, Phase.LOADED))
    facts = Fit(needs_bytes=model.needs_bytes, free_bytes=max(0, free_bytes))
    missing_bytes = model.needs_bytes - free_bytes
    if model.phase in (Phase.LOADED, Phase.LOADING) or missing_bytes <= 0:
        return facts
    if model.needs_bytes > budget_bytes:
        return _but(facts, f"it needs {model.needs_bytes} bytes, the budget is {budget_bytes}")
    loaded = sorted((o for o in others if o.phase is Phase.LOADED and not o.pinned), key=_giving_up_order)
    chosen = _enough(loaded, missing_bytes)
    if chosen is None:
        pinned = ", ".join(other.name for other in others if other.pinned and other.phase is not Phase.ABSENT)
        return _but(facts, f"pinned or loading models leave no room for it ({pinned or 'one is being loaded'})")
    return Fit(
        needs_bytes=facts.needs_bytes,
        free_bytes=facts.free_bytes,
        would_evict=tuple(other.name for other in chosen),
    )


class _Room:
    """The budget while a plan is made: what is free now, and what will be when all who leave have gone.

    Promised room is taken from the latter.
    """

    def __init__(self, models: Sequence[Resident], budget_bytes: int) -> None:
        staying = [model for model in models if model.phase in (Phase.LOADING, Phase.LOADED)]
        leaving = [model for model in models if model.phase is Phase.LEAVING]
        self._now_bytes = budget_bytes - _bytes(staying) - _bytes(leaving)
        self._later_bytes = budget_bytes - _bytes(staying)
        self._free_of_pins_bytes = budget_bytes - _bytes(model for model in staying if model.pinned)
        self._places = [model for model in staying if model.phase is Phase.LOADED and not model.pinned]
        self.evicted: dict[str, Why] = {}

    def take(self, model: Resident) -> bool:
        """Room for a model that begins to load now, if there is any that nobody was promised."""
        if model.needs_bytes > min(self._now_bytes, self._later_bytes):
            return False
        self._now_bytes -= model.needs_bytes
        self._later_bytes -= model.needs_bytes
        if model.pinned:
            self._free_of_pins_bytes -= model.needs_bytes
        return True

    def make(self, model: Resident, now_s: float, turn_s: float) -> Delay:
        """Have others leave for a model, where that is enough, and promise it the room."""
        if model.needs_bytes > self._free_of_pins_bytes:
            return Delay.PINNED
        missing_bytes = model.needs_bytes - self._later_bytes
        ready = [place for place in self._places if place.idle or now_s - place.ready_s >= turn_s]
        chosen = _enough(sorted(ready, key=_giving_up_order), missing_bytes)
        self._later_bytes -= model.needs_bytes
        if model.pinned:
            self._free_of_pins_bytes -= model.needs_bytes
        if chosen is None:
            return Delay.TURN
        self.give_up(chosen, {place.name: Why.ROOM if place.idle else Why.TURN for place in chosen})
        return Delay.ROOM

    def give_up(self, models: Iterable[Resident], why: dict[str, Why]) -> None:
        """These leave: their room is free once they have gone."""
        for model in models:
            self._places.remove(model)
            self._later_bytes += model.needs_bytes
            self.evicted[model.name] = why[model.name]

    def shrink(self) -> None:
        """Models have grown beyond the budget: the idle ones leave until the rest fits."""
        idle = sorted((place for place in self._places if place.idle), key=_giving_up_order)
        while self._later_bytes < 0 and idle:
            self.give_up([idle[0]], {idle[0].name: Why.GROWN})
            del idle[0]


def _is_over(model: Resident, now_s: float) -> bool:
    """Nobody has used it for as long as it was to be kept."""
    kept = model.pinned or not model.idle or now_s - max(model.used_s, model.ready_s) < model.kept_idle_s
    return model.phase is Phase.LOADED and not kept


def _giving_up_order(model: Resident) -> tuple[bool, float, str]:
    """Idle ones by their last use, then busy ones by the beginning of their turn."""
    return (not model.idle, model.used_s if model.idle else model.ready_s, model.name)


def _enough(places: Sequence[Resident], missing_bytes: int) -> list[Resident] | None:
    """The first ones that are enough together, without those that the others make needless; None: not even all."""
    chosen: list[Resident] = []
    for place in places:
        if _bytes(chosen) >= missing_bytes:
            break
        chosen.append(place)
    if _bytes(chosen) < missing_bytes:
        return None
    for place in tuple(chosen):
        if _bytes(chosen) - place.needs_bytes >= missing_bytes:
            chosen.remove(place)
    return chosen


def _bytes(models: Iterable[Resident]) -> int:
    return sum(model.needs_bytes for model in models)


def _but(facts: Fit, why_not: str) -> Fit:
    return Fit(needs_bytes=facts.needs_bytes, free_bytes=facts.free_bytes, why_not=why_not)
