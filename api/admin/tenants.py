"""Tenants for operators: what each has in the queue, and its weight, which can be changed while the farm runs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict

from api.bodies import JsonResponse, JsonRoute
from api.node import CurrentNode
from scheduler.settings import Weight
from scheduler.tenants import Tenants

router = APIRouter(prefix="/admin/tenants", tags=["admin"], route_class=JsonRoute)

TenantName = Annotated[str, Path(min_length=1, max_length=255)]


class TenantChange(BaseModel):
    """`weight` null: as the settings say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    weight: Weight | None


@router.get("")
async def list_tenants(node: CurrentNode) -> Response:
    """Tenants that have a weight of their own or jobs that have not ended."""
    return JsonResponse({"object": "list", "data": [asdict(tenant) for tenant in await Tenants(node.queue).list()]})


@router.post("/{name}")
async def change_tenant(name: TenantName, change: TenantChange, node: CurrentNode) -> Response:
    """Change a tenant's weight, from now on and for jobs that wait too."""
    return JsonResponse(asdict(await Tenants(node.queue).set_weight(name, change.weight)))
