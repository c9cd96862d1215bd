"""The Lua scripts: one per move of a job, each atomic; `prelude.lua` holds the key schema and what they share.

The transition table of scheduler/jobs.py and the policy's times become Lua constants in front of the prelude.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from scheduler.jobs import TRANSITIONS

NAMES = ("submit", "claim", "emit", "finish", "release", "cancel", "expire", "heartbeat", "reap", "listen")


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """Bounds and times of the queue; every process of a farm must use the same."""

    max_waiting_jobs: int = 100_000
    max_waiting_tokens: int = 200_000_000
    max_tenant_jobs: int = 100_000
    max_crashes: int = 3
    lease_ms: int = 10_000
    disowned_grace_ms: int = 5_000
    age_ms: int = 30_000
    log_ttl_ms: int = 3_600_000
    job_ttl_ms: int = 86_400_000
    idempotency_ttl_ms: int = 86_400_000


def script_texts(policy: QueuePolicy) -> Mapping[str, str]:
    """Return every script's full text by name, ready for SCRIPT LOAD."""
    head = _constants(policy) + _legal_table() + _text("prelude")
    return {name: head + _text(name) for name in NAMES}


def _text(name: str) -> str:
    return files(__name__).joinpath(f"{name}.lua").read_text(encoding="utf-8")


def _constants(policy: QueuePolicy) -> str:
    return (
        f"local AGE_MS={policy.age_ms} local LOG_TTL_MS={policy.log_ttl_ms} "
        f"local JOB_TTL_MS={policy.job_ttl_ms} local IDEMPOTENCY_TTL_MS={policy.idempotency_ttl_ms}\n"
    )


def _legal_table() -> str:
    """`LEGAL.finished = {running = true}` and so on; the state before the first event is the empty string."""
    rows = []
    for event, (allowed, _) in TRANSITIONS.items():
        states = ",".join(f"['{state.value if state else ''}']=true" for state in sorted(allowed, key=str))
        rows.append(f"['{event.value}']={{{states}}}")
    return f"local LEGAL={{{','.join(rows)}}}\n"
