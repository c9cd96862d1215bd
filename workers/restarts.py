"""How long to wait before a model process that died is started again; pure.

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


class Restarts:
    """Counts early deaths in a row."""

    def __init__(self) -> None:
        self._early = 0

    def delay_s(self, served_s: float) -> float:
        """A process has died that had served for so long (0: it was not ready): the pause before the next one."""
        self._early = 0 if served_s >= STABLE_S else self._early + 1
        return min(LAST_DELAY_S, FIRST_DELAY_S * 2.0 ** max(0, self._early - FREE_DEATHS))
