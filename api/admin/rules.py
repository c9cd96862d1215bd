"""Routing rules for operators: versions, drafts, what a draft would change, apply, roll back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from api.admin.rule_trials import RuleTrial, tried
from api.authorization import actor_of
from api.bodies import JsonResponse, JsonRoute
from api.call import CurrentCall
from api.node import CurrentNode, Node
from scheduler.admin_log import Actor
from scheduler.errors import UnknownRules
from scheduler.routing.choice import RuleSet
from scheduler.routing.rules import MAX_RULES, Rule
from scheduler.routing.trial import unreachable, without_effect
from scheduler.rule_record import RuleDraft, RuleVersion

router = APIRouter(prefix="/admin/rules", tags=["admin"], route_class=JsonRoute)

Note = Annotated[str, Field(max_length=1000)]


class NewDraft(BaseModel):
    """All rules that are to be in effect, in order. `base`: the version they were made from (default: the newest)."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rules: list[Rule] = Field(max_length=MAX_RULES)
    base: int | None = Field(None, ge=0)
    note: Note = ""


class DraftToApply(BaseModel):
    """Which draft."""

    model_config = ConfigDict(extra="forbid", strict=True)

    draft: str = Field(min_length=1, max_length=64)


class VersionToRestore(BaseModel):
    """Which version; 0 has no rules."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=0)
    note: Note = ""


CurrentActor = Annotated[Actor, Depends(actor_of)]


@router.get("")
async def list_versions(
    node: CurrentNode,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    before: Annotated[int | None, Query(ge=1, description="Versions before this one.")] = None,
) -> Response:
    """The version in effect, the newest versions, and the drafts."""
    record = node.rules.record
    versions = await record.versions(before=before, limit=limit + 1)
    return JsonResponse(
        {
            "object": "list",
            "current": await record.newest(),
            "data": [_head(version) for version in versions[:limit]],
            "has_more": len(versions) > limit,
            "drafts": [_draft_head(draft) for draft in await record.drafts()],
        }
    )


@router.get("/current")
async def current_rules(node: CurrentNode) -> Response:
    """The rules in effect."""
    return JsonResponse(await _content(node, await node.rules.record.rules()))


@router.post("/drafts", status_code=201)
async def create_draft(new: NewDraft, node: CurrentNode, actor: CurrentActor) -> Response:
    """Keep rules to be tried and applied; nothing follows them yet."""
    record = node.rules.record
    newest = await record.newest()
    base = newest if new.base is None else new.base
    if base > newest:
        raise UnknownRules(base)
    draft = await record.save_draft(new.rules, base, actor, new.note)
    return JsonResponse(await _draft(node, draft), status_code=201)


@router.get("/drafts/{draft_id}")
async def get_draft(draft_id: str, node: CurrentNode) -> Response:
    """A draft with its rules."""
    return JsonResponse(await _draft(node, await node.rules.record.draft(draft_id)))


@router.delete("/drafts/{draft_id}")
async def discard_draft(draft_id: str, node: CurrentNode, actor: CurrentActor) -> Response:
    """Forget a draft."""
    await node.rules.record.discard(draft_id, actor)
    return JsonResponse({"id": draft_id, "object": "routing.draft", "deleted": True})


@router.post("/dry-run")
async def try_rules(trial: RuleTrial, node: CurrentNode, call: CurrentCall) -> Response:
    """What rules would do with a pasted request, or what they would change for the last recorded ones."""
    return JsonResponse(await tried(node, call, trial))


@router.post("/apply")
async def apply_draft(wanted: DraftToApply, node: CurrentNode, actor: CurrentActor) -> Response:
    """Put a draft in effect as a new version; every node follows within a second, this one at once.

    Asking again for a draft that has been applied changes nothing.
    """
    record = node.rules.record
    applied = await record.applied_as(wanted.draft)
    rules = await record.rules(applied) if applied else await record.apply(await record.draft(wanted.draft), actor)
    await node.rules.refresh()
    return JsonResponse(await _content(node, rules))


@router.post("/rollback")
async def roll_back(wanted: VersionToRestore, node: CurrentNode, actor: CurrentActor) -> Response:
    """Put the content of an older version in effect, as a new version."""
    rules = await node.rules.record.roll_back(wanted.version, actor, wanted.note)
    await node.rules.refresh()
    return JsonResponse(await _content(node, rules))


@router.get("/{version}")
async def get_version(version: int, node: CurrentNode) -> Response:
    """The rules of a version."""
    return JsonResponse(await _content(node, await node.rules.record.rules(version)))


async def _content(node: Node, rules: RuleSet) -> dict[str, Any]:
    return {
        "object": "routing.rules",
        "version": rules.version,
        "rules": [rule.as_json() for rule in rules.rules],
        "warnings": await _warnings(node, rules.rules),
    }


async def _draft(node: Node, draft: RuleDraft) -> dict[str, Any]:
    rules = {"rules": [rule.as_json() for rule in draft.rules], "warnings": await _warnings(node, draft.rules)}
    return _draft_head(draft) | rules


def _draft_head(draft: RuleDraft) -> dict[str, Any]:
    facts = {"id": draft.id, "object": "routing.draft", "base": draft.base, "created_ms": draft.created_ms}
    return facts | {"actor": draft.actor, "note": draft.note, "rules": len(draft.rules)}


def _head(version: RuleVersion) -> dict[str, Any]:
    return {"object": "routing.version"} | asdict(version)


async def _warnings(node: Node, rules: tuple[Rule, ...]) -> list[dict[str, str]]:
    """What is allowed and probably not meant."""
    found = [
        {"rule": name, "warning": f"It can never match: all its requests are taken by {taker!r}, which comes before."}
        for name, taker in unreachable(rules).items()
    ]
    found += [{"rule": name, "warning": "It changes nothing."} for name in without_effect(rules)]
    cards = await node.catalog.cards()
    served = {name for card in cards for name in (card.name, *card.adapters)}
    for rule in rules:
        away = [target.model for target in (*rule.targets, *rule.fallback) if target.model not in served]
        found += [{"rule": rule.name, "warning": f"Nobody serves the model {model!r} at the moment."} for model in away]
    return found
