"""How long to wait before a model process that died is started again, and when not to try any more; pure.

One that dies soon after it was ready, again and again, would spend the machine on loading. The first few times cost
nothing: that many deaths one poisonous job takes with it before it is set aside.
"""

from __future__ import annotations

FIRST_DELAY_S = 0.2
LAST_DELAY_S = 30.0

STABLE_S = 20.0
"""A process that has served for this long has shown that it can."""

FREE_DEATHS = 4
"""Early deaths in a row before the delay begins to grow."""

DEATHS = 3
"""In a row, that no job explains, after which a model has failed."""


class Restarts:
    """Counts deaths in a row: early ones, and those before the process was ready."""

    def __init__(self) -> None:
        self._early = 0
        self._unready = 0
        self._was_ready = False

    def delay_s(self, served_s: float) -> float:
        """A process has died that had served for so long (0: it was not ready): the pause before the next one."""
        self._early = 0 if served_s >= STABLE_S else self._early + 1
        self._unready = self._unready + 1 if served_s == 0.0 else 0
        self._was_ready = self._was_ready or served_s > 0.0
        return min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** max(0, self._early - FREE_DEATHS))

    @property
    def was_ever_ready(self) -> bool:
        """Has any of them been ready?"""
        return self._was_ready

    @property
    def hopeless(self) -> str:
        """Why the model should not be tried again by itself; empty while it should."""
        if self._unready >= DEATHS:
            return f"its process died {self._unready} times in a row before it was ready"
        if self._early >= FREE_DEATHS + DEATHS:
            return f"its process died {self._early} times in a row within {STABLE_S:.0f} s of being ready"
        return ""
