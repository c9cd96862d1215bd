"""How long clients saw nothing when their job changed hands, why it did, and where the time went; pure.

A pause is between the last frame of one claim and the first frame of the next, as the client got them. The job's events
say what took it away (`Cause`) and split the pause: until the queue had the job again, until a worker claimed it, until
the client had the next frame. Times are seconds since 1970 (Redis and the clients are on one machine).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from typing import Any

from scheduler.events import Event, EventType


class Cause(StrEnum):
    """What took a job from its worker."""

    PROCESS = "process_death"
    """Its agent saw the model process end."""
    LEASE = "lease_end"
    """Nobody saw it: a machine is gone, or a process stopped."""
    DRAIN = "drain"
    """The worker gave it back."""
    MEMORY = "redis_memory"
    """Redis had lost the claim, or the whole job."""


@dataclass(frozen=True, slots=True)
class Pause:
    """One change of hands; the three parts make up the whole. `deaths`: of workers, since the frame before."""

    cause: Cause
    noticed_s: float
    waited_s: float
    restored_s: float
    deaths: int

    @property
    def total_s(self) -> float:
        """What the client saw."""
        return self.noticed_s + self.waited_s + self.restored_s


def pauses_of(arrived: Sequence[tuple[float, str]], events: Iterable[Event]) -> list[Pause]:
    """The pauses of one client: (time, frame id) of what it got, and its job's events."""
    told = sorted(events, key=lambda event: event.position)
    changes = [(a, b) for a, b in pairwise(arrived) if _generation(a[1]) != _generation(b[1])]
    return [_pause(before[0], after[0], _generation(after[1]), told) for before, after in changes]


def summary(pauses: Sequence[Pause]) -> dict[str, Any]:
    """p50, p95 and the longest of all pauses, of those by each cause, and of their parts."""
    causes = {cause: [pause.total_s for pause in pauses if pause.cause is cause] for cause in Cause}
    once = [pause.total_s for pause in pauses if pause.deaths <= 1]
    return {
        "all": quantiles(pause.total_s for pause in pauses),
        "by_cause": {cause.value: quantiles(seconds) for cause, seconds in causes.items() if seconds},
        "at_most_one_death": quantiles(once),
        "until_requeued": quantiles(pause.noticed_s for pause in pauses),
        "until_claimed": quantiles(pause.waited_s for pause in pauses),
        "until_the_next_frame": quantiles(pause.restored_s for pause in pauses),
        "deaths_in_a_pause": dict(sorted(Counter(pause.deaths for pause in pauses).items())),
    }


def quantiles(values: Iterable[float]) -> Mapping[str, float | int]:
    """How many, p50, p95 and the largest, rounded to 10 ms; only the number where there are none."""
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}
    shares = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    at = {name: ordered[min(len(ordered) - 1, int(share * len(ordered)))] for name, share in shares.items()}
    return {"n": len(ordered)} | {name: round(value, 2) for name, value in at.items()}


def _pause(before_s: float, after_s: float, generation: int, told: Sequence[Event]) -> Pause:
    claim = next((event for event in reversed(told) if _claims(event, generation)), None)
    claimed_s = min(after_s, max(before_s, claim.at_ms / 1000)) if claim else after_s
    inside = [event for event in told if before_s <= event.at_ms / 1000 <= claimed_s]
    moves = [event for event in inside if event.type in (EventType.REQUEUED, EventType.SUBMITTED)]
    first_s = moves[0].at_ms / 1000 if moves else before_s
    deaths = sum(event.data.get("why") == "worker_lost" for event in moves)
    cause = _cause(moves[0]) if moves else Cause.MEMORY
    return Pause(cause, first_s - before_s, claimed_s - first_s, after_s - claimed_s, deaths)


def _claims(event: Event, generation: int) -> bool:
    return event.type is EventType.CLAIMED and int(event.data["generation"]) == generation


def _cause(move: Event) -> Cause:
    if move.data.get("why") == "worker_lost":
        return Cause.LEASE if move.data.get("seen_by") == "lease" else Cause.PROCESS
    return Cause.DRAIN if move.data.get("why") == "drain" else Cause.MEMORY


def _generation(frame_id: str) -> int:
    return int(frame_id.partition("-")[0])
