"""Imported first where its folder is in PYTHONPATH: a process whose wall clock is wrong by CLOCK_OFFSET_S seconds.

What it asks Python for the time since 1970 is shifted; how much time passes is not, as on a machine with a wrong clock.
`datetime.now` is left alone: the farm takes it for the date in a prompt and in a header only.
"""

import os
import time

OFFSET_S = int(os.environ.get("CLOCK_OFFSET_S", "0"))
time_as_usual, time_ns_as_usual = time.time, time.time_ns


def shifted_time() -> float:
    """Seconds since 1970."""
    return time_as_usual() + OFFSET_S


def shifted_time_ns() -> int:
    """Nanoseconds since 1970."""
    return time_ns_as_usual() + OFFSET_S * 1_000_000_000


time.time, time.time_ns = shifted_time, shifted_time_ns
