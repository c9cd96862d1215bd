"""When Redis could be reached, as far as one process knows: a lease runs out only in such times; pure.

A worker renews its lease several times while it runs, if it can. So one that has not renewed it for a whole lease in
which Redis answered is dead; what Redis was away in between, once or several times, is nobody's fault.
"""

from __future__ import annotations

from collections import deque

MOST_SPANS = 100
"""Outages that are remembered; who forgets one waits longer, and does no harm."""


class Availability:
    """The spans of time in which a server answered; times are monotonic seconds of who asks."""

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float]] = deque(maxlen=MOST_SPANS)
        self._server = ""

    def answered(self, server: str, uptime_s: float, now_s: float) -> None:
        """The server that calls itself so has answered; it was started `uptime_s` ago, at the least."""
        if not self._spans:
            self._spans.append((now_s - uptime_s, now_s))
        elif self._server == server:
            self._spans[-1] = (self._spans[-1][0], now_s)
        else:
            self._spans.append((now_s, now_s))
        self._server = server

    def failed(self) -> None:
        """It did not answer: whatever answers next is somebody new."""
        self._server = ""

    def overdue_s(self, lease_s: float) -> float | None:
        """How long ago a lease must have ended for its worker to be dead; None: nobody can be called dead now.

        0 where the server has been there all the time; the length of its outages within the lease otherwise.
        """
        left_s, now_s = lease_s, self._spans[-1][1] if self._spans else 0.0
        for start_s, end_s in reversed(self._spans):
            if end_s - start_s >= left_s:
                return max(0.0, now_s - (end_s - left_s) - lease_s)
            left_s -= end_s - start_s
        return None
