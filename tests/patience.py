"""Waiting for something to happen, on machines that may stand still for minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator

MOMENT_S = 5.0
"""The most that one try and the pause behind it count: a machine that stood still has not waited."""


def tries(timeout_s: float) -> Iterator[None]:
    """Ask again and again; fails once the time is spent."""
    waited_s, asked_s = 0.0, time.monotonic()
    while waited_s < timeout_s:
        yield
        time.sleep(0.05)
        now_s = time.monotonic()
        waited_s += min(now_s - asked_s, MOMENT_S)
        asked_s = now_s
    raise AssertionError("it did not happen in time")
