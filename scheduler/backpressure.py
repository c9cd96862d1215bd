"""What somebody may ask for, and how long he should wait once he was refused; pure."""

from __future__ import annotations

from dataclasses import dataclass, fields

UNKNOWN_S = 5.0
"""Said while nothing has been measured yet."""

SHORTEST_S = 1.0
LONGEST_S = 60.0
"""The openai SDK gives up instead of waiting for more than two minutes."""

ROOM_SHARE = 0.05
"""Of a bound: so much must have left before it is worth coming back, or the next to come would be refused as well."""

SPREAD = 0.2
"""Those who were refused together do not come back together."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a waiting job stands in its pool, from 1, and when its turn comes (None: nothing was measured yet)."""

    position: int
    eta_s: float | None
    model: str = ""


def wait_s(*, bound: int, used: int, needed: int, drained_per_s: float, draw: float) -> float:
    """Seconds until a bound (in jobs or tokens) has room, between SHORTEST_S and LONGEST_S (and the spread).

    `used` and `needed` are in the bound's unit, `drained_per_s` what ends per second (0: not known). `draw` in [0, 1)
    is random.
    """
    missing = max(used + needed - bound, bound * ROOM_SHARE)
    wait = missing / drained_per_s if drained_per_s > 0 else UNKNOWN_S
    return min(max(wait, SHORTEST_S), LONGEST_S) * (1 + SPREAD * draw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one key may use, in a minute, in a day and at once; 0: no limit."""

    requests_per_minute: int = 0
    input_tokens_per_minute: int = 0
    output_tokens_per_minute: int = 0
    tokens_per_day: int = 0
    concurrent_jobs: int = 0

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


UNLIMITED = Limits()


@dataclass(frozen=True, slots=True)
class Level:
    """One limit: how much is left of it, and in how many seconds all of it will be (if nothing more is used)."""

    limit: int
    used: int

    @property
    def remaining(self) -> int:
        """What may be used now."""
        return max(0, self.limit - self.used)

    @property
    def reset_s(self) -> float:
        """Seconds until everything has flown off."""
        return self.used / self.limit * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a key stands to its limits per minute; None where it has none."""

    requests: Level | None = None
    input_tokens: Level | None = None
    output_tokens: Level | None = None

    @property
    def tokens(self) -> Level | None:
        """The tighter one of both kinds of tokens."""
        levels = [level for level in (self.input_tokens, self.output_tokens) if level is not None]
        return min(levels, key=lambda level: level.remaining, default=None)
