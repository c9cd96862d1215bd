"""What is recorded of a decision: what the rules saw, and what they said besides model, lane, rule and version; pure.

A JSON object in the job's first event and in `jobs.routing`, without what is empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from scheduler.jobs import Job, Lane
from scheduler.routing.choice import Route
from scheduler.routing.rules import Asked, Target

_IN_THE_JOB = ("model", "tenant", "request_id")
"""What a job says of itself."""

_FACTS = tuple(field.name for field in fields(Asked) if field.name not in _IN_THE_JOB)


def recorded(asked: Asked, route: Route, served_by: Target, passed_over: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The record of a decision. `passed_over`: targets before the one that serves, with the reason."""
    said = {
        "asked": {name: value for name in _FACTS if (value := getattr(asked, name))},
        "passed_over": [dict(target) for target in passed_over],
        "timeout_s": served_by.timeout_s,
        "overrides": route.overrides.as_json(),
    }
    return {name: value for name, value in said.items() if value}


def asked_by(job: Job) -> Asked | None:
    """What the rules saw of a recorded request; None where that was not recorded."""
    facts = job.routing.get("asked")
    if not facts:
        return None
    known = {name: facts[name] for name in _FACTS if name in facts}
    known["lane"] = Lane(facts["lane"])
    return Asked(model=job.model_asked, tenant=job.tenant, request_id=job.request_id, **known)
