"""Models that are loaded by demand, for operators: load, unload, pin, unpin, ask what fits and what was done."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.authorization import actor_of
from api.bodies import JsonResponse, JsonRoute
from api.node import CurrentNode, Node
from scheduler.admin_log import note_change
from scheduler.agents import Action, Order, OrderDesk
from scheduler.database import record_errors
from scheduler.errors import OrderRefused
from scheduler.model_events import ModelEvents
from scheduler.routing.choice import other_names

router = APIRouter(prefix="/admin/models", tags=["admin"], route_class=JsonRoute)


class ModelOrder(BaseModel):
    """Which model, and on which machine: that of the agent of this name; where none is said, where it takes least."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1, max_length=256)
    agent: str | None = Field(None, min_length=1, max_length=256)


class LoadOrder(ModelOrder):
    """`dry_run`: only say whether it would fit, and who would have to go."""

    dry_run: bool = False


@router.post("/load")
async def load(order: LoadOrder, node: CurrentNode, request: Request) -> Response:
    """Load a model, also one that has failed; answered at once, `GET /admin/models/status` has the progress."""
    return JsonResponse(await _give(node, request, Action.FIT if order.dry_run else Action.LOAD, order))


@router.post("/unload")
async def unload(order: ModelOrder, node: CurrentNode, request: Request) -> Response:
    """Give up a model's memory: running jobs finish or go back to the queue. It comes back when jobs wait for it."""
    return JsonResponse(await _give(node, request, Action.UNLOAD, order))


@router.post("/pin")
async def pin(order: ModelOrder, node: CurrentNode, request: Request) -> Response:
    """Load a model and keep it, whoever waits."""
    return JsonResponse(await _give(node, request, Action.PIN, order))


@router.post("/unpin")
async def unpin(order: ModelOrder, node: CurrentNode, request: Request) -> Response:
    """Treat a model like any other again."""
    return JsonResponse(await _give(node, request, Action.UNPIN, order))


@router.get("/events")
async def list_events(
    node: CurrentNode, model: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Response:
    """What node agents decided, newest first."""
    return JsonResponse({"object": "list", "data": await ModelEvents(node.redis).newest(limit, model)})


@router.get("/agents")
async def list_agents(node: CurrentNode) -> Response:
    """Node agents that load models by demand: their memory, and where each model stands."""
    return JsonResponse({"object": "list", "data": await node.places.agents()})


async def _give(node: Node, request: Request, action: Action, order: ModelOrder) -> dict[str, Any]:
    """Hand an order to the agent of a model (or alias); what was done is logged. Raises OrderRefused, UnknownModel."""
    model = other_names(node.rules.current).get(order.model, order.model)
    agent = await node.places.addressee(action, model)
    if agent is None:
        served = await node.catalog.find(model)
        what = f"it is an adapter of {served.card.name!r}" if served.adapter else "it has a worker of its own"
        raise OrderRefused(action, model, what)
    if order.agent is not None:
        names = [figures["agent"] for figures in await node.places.agents()]
        if order.agent not in names:
            raise OrderRefused(action, model, f"there is no agent {order.agent!r}; there are: {', '.join(names)}")
        agent = order.agent
    by = request.state.caller.key_id
    answer = await OrderDesk(node.redis).give(agent, Order(action=action, model=model, by=by))
    if refused := answer.get("refused"):
        raise OrderRefused(action, model, refused)
    if action is not Action.FIT:
        async with record_errors(), node.store.engine.begin() as connection:
            await note_change(connection, actor_of(request), f"models.{action}", model, {"agent": agent} | answer)
    return {**answer, "agent": agent}
