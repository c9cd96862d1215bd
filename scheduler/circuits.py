"""Circuit breakers of providers' models: whoever asks one looks here first, and tells here how it went.

closed → open after so many failures in a row within a window → half open when its time is over, for one request, which
closes or opens it. All workers of a farm share the state in Redis; transitions are model events (model_events.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from redis.asyncio import Redis

from scheduler.model_events import KEY as EVENTS
from scheduler.model_events import MOST
from scheduler.outages import redis_errors
from scheduler.scripts import circuit_text


class CircuitState(StrEnum):
    """Who may ask: everybody, nobody, one."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitPolicy:
    """`failures` in a row within `window_ms` open a circuit for `open_ms`; a probe that says nothing for `probe_ms` is
    given up, and another one sent.
    """

    failures: int = 5
    window_ms: int = 60_000
    open_ms: int = 30_000
    probe_ms: int = 600_000


@dataclass(frozen=True, slots=True)
class Circuit:
    """`wait_ms` until it may be asked again; 0: now."""

    state: CircuitState
    wait_ms: int


class Circuits:
    """All methods raise QueueUnavailable when Redis does not answer."""

    def __init__(self, redis: Redis, worker: str, policy: CircuitPolicy) -> None:
        self._script = redis.register_script(circuit_text())
        self._redis = redis
        self._worker = worker
        self._policy = policy

    async def ask(self, model: str) -> Circuit:
        """May this model be asked? Who may although it is half open is its probe, and has to tell how it went."""
        return await self._run("ask", model)

    async def went_well(self, model: str) -> Circuit:
        """It has answered, if only to refuse a request that is wrong."""
        return await self._run("good", model)

    async def failed(self, model: str, reason: str) -> Circuit:
        """It could not be reached, or answered what is no answer."""
        return await self._run("bad", model, reason)

    async def is_shut(self, model: str) -> bool:
        """Would it be passed over now? An open circuit whose time is over lets one try."""
        async with redis_errors(), self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(_key(model), ["state", "until"])
            pipe.time()
            (state, until_ms), (seconds, micros) = await pipe.execute()
        shut = state is not None and state.decode() == CircuitState.OPEN
        return shut and seconds * 1000 + micros // 1000 < int(until_ms)

    async def _run(self, what: str, model: str, reason: str = "") -> Circuit:
        policy = self._policy
        bounds = (policy.failures, policy.window_ms, policy.open_ms, policy.probe_ms)
        async with redis_errors():
            args = (what, self._worker, model, *bounds, reason, MOST)
            state, wait_ms = await self._script(keys=[_key(model), EVENTS], args=args)
        return Circuit(CircuitState(state.decode()), int(wait_ms))


def _key(model: str) -> str:
    return f"{{farm}}:circuit:{model}"
