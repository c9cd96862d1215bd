"""Routing rules for tests: short to write, and put in effect in one call."""

from __future__ import annotations

from typing import Any

from scheduler.admin_log import Actor
from scheduler.jobs import Lane
from scheduler.routing.choice import RuleSet
from scheduler.routing.rules import Asked, Rule
from scheduler.rule_record import RuleRecord

OPERATOR = Actor(id="key-1", role="admin", address="127.0.0.1")


def rule(name: str, match: str, pattern: str, *targets: str | dict[str, Any], **more: Any) -> Rule:
    """A rule; a target that is only a name has no more to it."""
    listed = [{"model": target} if isinstance(target, str) else target for target in targets or ("demo",)]
    return Rule.model_validate({"name": name, "match": match, "pattern": pattern, "targets": listed, **more})


def asked(model: str, **more: Any) -> Asked:
    """What a request looks like to the rules."""
    return Asked(model=model, **{"lane": Lane.NORMAL, **more})


async def put_in_effect(record: RuleRecord, *rules: Rule) -> RuleSet:
    """A new version with these rules and no others."""
    draft = await record.save_draft(rules, await record.newest(), OPERATOR)
    return await record.apply(draft, OPERATOR)
