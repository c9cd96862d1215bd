"""Dry runs of routing rules: a pasted request, step by step, or the last recorded requests and what would change."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.call import Call
from api.errors import InvalidParameter
from api.kinds import draft_of
from api.node import Node
from api.outline import session_digest
from api.serving import asked_of
from scheduler.jobs import Job, Lane
from scheduler.routing.choice import Route, RuleSet
from scheduler.routing.decision import asked_by
from scheduler.routing.rules import MAX_RULES, Asked, Rule, Target
from scheduler.routing.trial import Difference, difference, steps

SHOWN_CHANGES = 1000


class PastedRequest(BaseModel):
    """A request as its endpoint takes it, and who would send it when; what is left out is as for the one who asks."""

    model_config = ConfigDict(extra="forbid", strict=True)

    kind: str = Field("chat.completions", description="As in POST /v1/jobs.")
    body: dict[str, Any]
    tenant: str | None = Field(None, max_length=255)
    key: str | None = Field(None, max_length=255)
    lane: Annotated[Lane | None, Field(strict=False)] = None
    session: str | None = Field(None, max_length=255)
    hour: int | None = Field(None, ge=0, le=23, description="UTC.")


class RuleTrial(BaseModel):
    """Which rules (one of `draft`, `rules`, `version`; none: those in effect) on what (`request` or `last`)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    draft: str | None = Field(None, min_length=1, max_length=64)
    rules: list[Rule] | None = Field(None, max_length=MAX_RULES)
    version: int | None = Field(None, ge=0)
    request: PastedRequest | None = None
    last: int | None = Field(None, ge=1, le=10_000, description="So many of the newest recorded requests.")

    @model_validator(mode="after")
    def _says_which(self) -> RuleTrial:
        if sum(said is not None for said in (self.draft, self.rules, self.version)) > 1:
            raise ValueError("name one of draft, rules and version")
        if (self.request is None) == (self.last is None):
            raise ValueError("send a request, or say how many of the last ones")
        return self


async def tried(node: Node, call: Call, trial: RuleTrial) -> dict[str, Any]:
    """The result of a dry run. Raises UnknownRules, InvalidRule, ApiError for a request that no endpoint takes."""
    record = node.rules.record
    current, candidate = await record.rules(), await _candidate(node, trial)
    if trial.request is not None:
        asked = _asked(trial.request, call)
        return await asyncio.to_thread(_one, current, candidate, asked)
    jobs = await record.recent_jobs(trial.last or 0)
    return await asyncio.to_thread(_many, current, candidate, jobs)


async def _candidate(node: Node, trial: RuleTrial) -> RuleSet:
    record = node.rules.record
    if trial.draft is not None:
        return RuleSet(rules=(await record.draft(trial.draft)).rules)
    if trial.rules is not None:
        return await asyncio.to_thread(lambda: RuleSet(rules=tuple(trial.rules or ())))
    return await record.rules(trial.version)


def _asked(pasted: PastedRequest, call: Call) -> Asked:
    model = pasted.body.get("model")
    if not isinstance(model, str):
        raise InvalidParameter("request.body.model", "A request names a model.")
    asked = asked_of(draft_of(pasted.kind, pasted.body), replace(call, lane=pasted.lane))
    return replace(
        asked,
        tenant=asked.tenant if pasted.tenant is None else pasted.tenant,
        key=asked.key if pasted.key is None else pasted.key,
        session=asked.session if pasted.session is None else session_digest(pasted.session),
        hour=asked.hour if pasted.hour is None else pasted.hour,
    )


def _one(current: RuleSet, candidate: RuleSet, asked: Asked) -> dict[str, Any]:
    found = difference(current, candidate, asked)
    return {
        "object": "routing.dry_run",
        "asked": {"model": asked.model, "tenant": asked.tenant, "key": asked.key, "lane": asked.lane.value}
        | {"prompt_tokens": asked.prompt_tokens, "tools": asked.has_tools, "images": asked.has_images}
        | {"hour": asked.hour, "session": asked.session},
        "steps": [{"rule": step.rule, "outcome": step.outcome} for step in steps(candidate, asked)],
        "route": _route(found.after),
        "current": _route(found.before),
        "changes": list(found.what),
    }


def _many(current: RuleSet, candidate: RuleSet, jobs: Sequence[Job]) -> dict[str, Any]:
    known = [(job, asked) for job in jobs if (asked := asked_by(job)) is not None]
    found = [(job, difference(current, candidate, asked)) for job, asked in known]
    changed = [(job, each) for job, each in found if each.what]
    return {
        "object": "routing.dry_run",
        "requests": len(known),
        "not_recorded": len(jobs) - len(known),
        "changed": len(changed),
        "changed_target": sum("target" in each.what for _, each in changed),
        "moves": _moves([each for _, each in changed]),
        "changes": [_change(job, each) for job, each in changed[:SHOWN_CHANGES]],
        "has_more": len(changed) > SHOWN_CHANGES,
    }


def _moves(changed: Sequence[Difference]) -> list[dict[str, Any]]:
    """From which target to which, most first."""
    counts = Counter((each.before.model, each.after.model) for each in changed if "target" in each.what)
    return [{"from": before, "to": after, "requests": count} for (before, after), count in counts.most_common(100)]


def _change(job: Job, found: Difference) -> dict[str, Any]:
    return {
        "job": job.id,
        "model_asked": job.model_asked,
        "tenant": job.tenant,
        "served_by": job.model,
        "from": _route(found.before),
        "to": _route(found.after),
        "changes": list(found.what),
    }


def _route(route: Route) -> dict[str, Any]:
    target, *fallback = route.targets
    return {
        "rule": route.rule or None,
        "model": target.model,
        "timeout_s": target.timeout_s,
        "lane": route.lane.value,
        "fallback": [_fallback(each) for each in fallback],
        "overrides": route.overrides.as_json(),
    }


def _fallback(target: Target) -> dict[str, Any]:
    return {"model": target.model, "timeout_s": target.timeout_s}
