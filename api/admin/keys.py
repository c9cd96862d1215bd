"""API keys for admins: made and shown once, listed by their prefix, rotated, revoked."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.authorization import actor_of
from api.bodies import JsonResponse, JsonRoute
from api.node import CurrentNode
from scheduler.admission import DEFAULT_TENANT
from scheduler.jobs import Lane
from scheduler.keys import ApiKey, KeyTerms, Role

router = APIRouter(prefix="/admin/keys", tags=["admin"], route_class=JsonRoute)

LONGEST_GRACE_S = 30 * 86400.0

Limit = Annotated[int | None, Field(ge=0, description="0: none; left out: as the settings say.")]
Names = Annotated[list[str], Field(max_length=100)]


class NewLimits(BaseModel):
    """Limits of one key."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_minute: Limit = None
    input_tokens_per_minute: Limit = None
    output_tokens_per_minute: Limit = None
    tokens_per_day: Limit = None
    concurrent_jobs: Limit = None


class NewKey(BaseModel):
    """What the holder of a new key may do; empty lists: everything."""

    model_config = ConfigDict(extra="forbid")

    name: str
    tenant: str = DEFAULT_TENANT
    role: Role = Role.CLIENT
    models: Names = Field([], description="Names that may be asked for.")
    lanes: list[Lane] = Field([], max_length=3, description="The first one serves requests that name none.")
    limits: NewLimits = NewLimits()
    expires_in_s: float | None = Field(None, gt=0, le=100 * 366 * 86400.0)


class Rotation(BaseModel):
    """For how long the text before it is still taken."""

    model_config = ConfigDict(extra="forbid")

    grace_s: float = Field(0.0, ge=0, le=LONGEST_GRACE_S)


@router.get("")
async def list_keys(node: CurrentNode) -> Response:
    """All keys, ended ones too, newest first."""
    return JsonResponse({"object": "list", "data": [key_object(key) for key in await node.keys.all()]})


@router.post("", status_code=201)
async def create_key(new: NewKey, node: CurrentNode, request: Request) -> Response:
    """Make a key. `key` in the answer is its text: it is shown here and never again."""
    terms = KeyTerms(
        name=new.name,
        tenant=new.tenant,
        role=new.role,
        models=tuple(new.models),
        lanes=tuple(dict.fromkeys(new.lanes)),
        limits=new.limits.model_dump(exclude_none=True),
        expires_ms=None if new.expires_in_s is None else _now_ms() + round(new.expires_in_s * 1000),
    )
    key, text = await node.keys.create(terms, actor_of(request), has_other_admin=node.admission.has_own_key)
    await node.key_watch.refresh()
    return JsonResponse(key_object(key) | {"key": text}, status_code=201)


@router.get("/{key_id}")
async def get_key(key_id: str, node: CurrentNode) -> Response:
    """One key, without its text."""
    return JsonResponse(key_object(await node.keys.get(key_id)))


@router.post("/{key_id}/rotate")
async def rotate_key(key_id: str, node: CurrentNode, request: Request, rotation: Rotation | None = None) -> Response:
    """Give a key a new text, shown here and never again; the old one is taken for another `grace_s` seconds."""
    grace_ms = round((rotation or Rotation()).grace_s * 1000)
    key, text = await node.keys.rotate(key_id, grace_ms, actor_of(request))
    await node.key_watch.refresh()
    return JsonResponse(key_object(key) | {"key": text})


@router.post("/{key_id}/revoke")
async def revoke_key(key_id: str, node: CurrentNode, request: Request) -> Response:
    """End a key for good: here at once, on every other node within a second. What it has begun goes on."""
    key = await node.keys.revoke(key_id, actor_of(request))
    await node.key_watch.refresh()
    return JsonResponse(key_object(key))


def key_object(key: ApiKey) -> dict[str, Any]:
    """A key as admins see it; times are ms since 1970."""
    terms = key.terms
    return {
        "id": key.id,
        "object": "key",
        "name": terms.name,
        "tenant": terms.tenant,
        "role": terms.role,
        "state": key.state(_now_ms()),
        **terms.encoded(),
        "created_ms": key.created_ms,
        "rotated_ms": key.rotated_ms,
        "old_text_until_ms": key.previous_until_ms,
        "expires_ms": terms.expires_ms,
        "revoked_ms": key.revoked_ms,
    }


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
