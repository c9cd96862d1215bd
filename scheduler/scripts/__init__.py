"""The Lua scripts: one per move of a job, each atomic; `prelude.lua` holds the key schema and what they share.

`limits.lua` is the same for the scripts of rate limits; `hold.lua` is node agents' own.

The transition table of scheduler/jobs.py and the policy's times become Lua constants in front of the prelude.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from scheduler.jobs import TRANSITIONS

NAMES = (
    *("submit", "claim", "emit", "finish", "release", "cancel", "expire", "heartbeat", "reap", "listen"),
    *("room", "place", "retry", "discard", "leave", "lose", "glance", "demand", "turn_away", "let_expire", "reroute"),
)

LIMIT_NAMES = ("admit", "settle")

HIGH_SHARE = 1 / 16
"""Of what may wait in all and for a model: only the high lane may fill it, so that nobody can shut people out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """Bounds and times of the queue; every process of a farm must use the same.

    The bounds of waiting and of a model's count what waits, those of a tenant all that has not ended.
    """

    max_waiting_jobs: int = 100_000
    max_waiting_tokens: int = 200_000_000
    max_model_jobs: int = 100_000
    max_model_tokens: int = 200_000_000
    max_tenant_jobs: int = 100_000
    max_tenant_tokens: int = 200_000_000
    drain_ms: int = 60_000
    max_retries: int = 3
    retry_base_ms: int = 500
    retry_longest_ms: int = 60_000
    max_crashes: int = 3
    lease_ms: int = 10_000
    disowned_grace_ms: int = 5_000
    age_ms: int = 30_000
    aged_share: float = 0.125
    prefix_grace_ms: int = 75
    tenant_weights: tuple[tuple[str, float], ...] = ()
    log_ttl_ms: int = 3_600_000
    job_ttl_ms: int = 86_400_000
    idempotency_ttl_ms: int = 86_400_000

    def bound(self, name: str, *, high: bool) -> int:
        """A bound (`max_…`) as it holds for the high lane, or for the others."""
        whole: int = getattr(self, name)
        return whole if high or name.startswith("max_tenant_") else math.ceil(whole * (1 - HIGH_SHARE))


def script_texts(policy: QueuePolicy, shards: int) -> Mapping[str, str]:
    """Return every script's full text by name, ready for SCRIPT LOAD. Each shard gets its part of the bounds."""
    head = _constants(policy) + _weights(policy) + _bounds(policy, shards) + _legal_table() + _text("prelude")
    return {name: head + _text(name) for name in NAMES}


def limit_texts() -> Mapping[str, str]:
    """The scripts of rate limits; they touch keys of their own and nothing of the queue."""
    return {name: _text("limits") + _text(name) for name in LIMIT_NAMES}


def hold_text() -> str:
    """The script by which one agent at a time brings a model into memory."""
    return _text("hold")


def circuit_text() -> str:
    """The script of circuit breakers, which stands by itself."""
    return _text("circuit")


def _text(name: str) -> str:
    return files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _constants(policy: QueuePolicy) -> str:
    retries = ("max_retries", "retry_base_ms", "retry_longest_ms")
    names = (
        "age_ms",
        "aged_share",
        "prefix_grace_ms",
        "drain_ms",
        "log_ttl_ms",
        "job_ttl_ms",
        "idempotency_ttl_ms",
        *retries,
    )
    return "".join(f"local {name.upper()}={getattr(policy, name)}\n" for name in names)


def _weights(policy: QueuePolicy) -> str:
    """`WEIGHTS['tenant'] = '2.5'`; a name's bytes are escaped, whatever they are."""
    escaped = {tenant: "".join(f"\\{byte:03d}" for byte in tenant.encode()) for tenant, _ in policy.tenant_weights}
    rows = (f"['{escaped[tenant]}']='{weight!r}'" for tenant, weight in policy.tenant_weights)
    return f"local WEIGHTS={{{','.join(rows)}}}\n"


def _bounds(policy: QueuePolicy, shards: int) -> str:
    """`BOUNDS`, in the order in which prelude.lua reads the counters: three of jobs, three of tokens.

    Each is {name, of the high lane, of the others}.
    """
    names = ("waiting_jobs", "model_jobs", "tenant_jobs", "waiting_tokens", "model_tokens", "tenant_tokens")
    rows = []
    for name in (f"max_{name}" for name in names):
        high, others = (math.ceil(policy.bound(name, high=high) / shards) for high in (True, False))
        rows.append(f"{{'{name}',{high},{others}}}")
    return f"local BOUNDS={{{','.join(rows)}}}\n"


def _legal_table() -> str:
    """`LEGAL.finished = {running = true}` and so on; the state before the first event is the empty string."""
    rows = []
    for event, (allowed, _) in TRANSITIONS.items():
        states = ",".join(f"['{state.value if state else ''}']=true" for state in sorted(allowed, key=str))
        rows.append(f"['{event.value}']={{{states}}}")
    return f"local LEGAL={{{','.join(rows)}}}\n"
