"""The pulse: how a model process shows its agent that it lives and that its engine moves, and how the agent judges it.

A thread of the model process writes a line to its standard output (which the agent reads) twice a second. An agent that
hears nothing, or hears of an engine step that takes too long, ends the process: nothing inside can free a hung device,
a held interpreter lock or a stopped process. It does so by SIGABRT, at which faulthandler writes the stacks of all
threads, without the interpreter, before the process dies of it; so it does where a library aborts the process.
"""

from __future__ import annotations

import faulthandler
import math
import resource
import sys
import threading
from collections.abc import Callable

PULSE = b"PULSE "
PERIOD_S = 0.5

PREFILL_TOKEN_S = 0.01
"""A step that reads a prompt may take this much longer for each of its tokens: ten times what a slow CPU needs."""

STANDSTILL = 0.25
"""Of the limit: an agent that comes so late to its look has not run itself, and cannot say that its process has."""


def step_limit_s(limit_s: float, reading_tokens: int) -> float:
    """How long an engine step may take while the longest prompt that is still to be read has `reading_tokens`."""
    return limit_s + reading_tokens * PREFILL_TOKEN_S


class Pulse:
    """The model process's side. `stalled_s` and `reading_tokens` are called from the pulse's thread."""

    def __init__(self, limit_s: float, stalled_s: Callable[[], float], reading_tokens: Callable[[], int]) -> None:
        self._limit_s = limit_s
        self._stalled_s = stalled_s
        self._reading_tokens = reading_tokens
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin; from now on a deadly signal but SIGKILL writes every thread's stack to stderr first.

        And no more than that: a core file would take long to write, and would have people's prompts in it.
        """
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        faulthandler.enable(file=sys.stderr, all_threads=True)
        self._thread.start()

    def stop(self) -> None:
        """No pulse any more: the process is about to end."""
        self._stop.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            limit_s = step_limit_s(self._limit_s, self._reading_tokens())
            sys.stdout.write(f"{PULSE.decode()}{self._stalled_s():.3f} {limit_s:.3f}\n")
            sys.stdout.flush()


class Watch:
    """The agent's side; pure. Times are the agent's monotonic clock, in seconds.

    A machine that stood still (it slept, or was stopped whole) is no process that hangs: when the agent comes late to
    its own look, the limit begins anew.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._heard_s: float | None = None
        self._stalled_s = 0.0
        self._looked_s = math.inf
        self._resumed_s = -math.inf

    def heard(self, line: bytes, now_s: float) -> None:
        """A pulse has come."""
        stalled, limit = line.removeprefix(PULSE).split()
        self._heard_s, self._stalled_s, self._limit_s = now_s, float(stalled), float(limit)

    def verdict(self, now_s: float) -> str:
        """Why the process has to be killed; empty while all is well, and before its first pulse (it is loading).

        To be asked many times within the limit.
        """
        if now_s - self._looked_s > STANDSTILL * self._limit_s:
            self._resumed_s = now_s
        self._looked_s = now_s
        if self._heard_s is None:
            return ""
        silent_s = now_s - max(self._heard_s, self._resumed_s)
        if silent_s > self._limit_s:
            return f"no sign of life for {silent_s:.1f} s"
        if self._stalled_s > 0 and now_s - max(self._heard_s - self._stalled_s, self._resumed_s) > self._limit_s:
            return f"an engine step takes longer than {self._limit_s:.1f} s"
        return ""
