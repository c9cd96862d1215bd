"""Models on the disks of nodes, for operators: pull them, follow and cancel that; search the hub; what fits where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from api.authorization import actor_of
from api.bodies import JsonResponse, JsonRoute
from api.errors import ApiError
from api.node import CurrentNode, Node
from scheduler.admin_log import note_change
from scheduler.agents import Errand, NodeBoard, Order, OrderDesk
from scheduler.database import record_errors
from scheduler.errors import OrderRefused

router = APIRouter(prefix="/admin/gallery", tags=["admin"], route_class=JsonRoute)

HUB_NAME = r"^[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[A-Za-z0-9][\w./-]*)?$"
"""OWNER/NAME or OWNER/NAME@REVISION."""

At = Annotated[str | None, Query(alias="node", max_length=256, description="Not needed where there is one.")]


class PullOrder(BaseModel):
    """Which model of the hub, and onto which node's disk."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=3, max_length=256, pattern=HUB_NAME)
    node: str | None = Field(None, max_length=256, description="Not needed where there is one.")


@router.get("/nodes")
async def list_nodes(node: CurrentNode) -> Response:
    """Machines whose workers take orders about their disks."""
    rows = [{"node": row["node"], "host": row["host"], "seen_ms": row["seen_ms"]} for row in await _nodes(node)]
    return JsonResponse({"object": "list", "data": rows})


@router.get("/models")
async def list_models(node: CurrentNode, at: At = None) -> Response:
    """Models on a node's disk, whole or half pulled, with what their files say."""
    return JsonResponse({"object": "list", **await _ask(node, Errand.LIST, "", (), at)})


@router.get("/search")
async def search(
    node: CurrentNode,
    text: Annotated[str, Query(min_length=1, max_length=256)],
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    any_format: bool = False,
    at: At = None,
) -> Response:
    """Models that the hub has, the most downloaded first; for MLX, or in `any_format`. A node asks it."""
    options = ("--any-format",) if any_format else ()
    arguments = (*options, "--limit", str(limit), "--", text)
    return JsonResponse({"object": "list", **await _ask(node, Errand.SEARCH, text, arguments, at)})


@router.get("/recommend")
async def recommend(
    node: CurrentNode,
    context_tokens: Annotated[int, Query(ge=1, le=1 << 24)] = 8192,
    at: At = None,
) -> Response:
    """Which models fit into a node's memory with so much context, and how fast they would be at most."""
    arguments = ("--context-tokens", str(context_tokens))
    return JsonResponse({"object": "list", **await _ask(node, Errand.RECOMMEND, "", arguments, at)})


@router.get("/pulls")
async def list_pulls(node: CurrentNode) -> Response:
    """Pulls under way and ended ones, of all nodes, until their workers end."""
    return JsonResponse({"object": "list", "data": await _pulls(node)})


@router.post("/pulls")
async def pull(order: PullOrder, node: CurrentNode, request: Request) -> Response:
    """Bring a model onto a node's disk, or go on where that was cut; 202, `GET …/pulls/{id}` has the progress."""
    at = await _node(node, Errand.PULL, order.model, order.node)
    begun = await _give(node, at, Errand.PULL, order.model, by=request.state.caller.key_id)
    await _note(node, request, "gallery.pull", order.model, {"node": at, "pull": begun["id"]})
    return JsonResponse(_shown(at, begun), 202)


@router.get("/pulls/{pull_id}")
async def get_pull(pull_id: str, node: CurrentNode) -> Response:
    """One pull: `state` is asking, downloading, stopping, done, failed (with `error`) or stopped."""
    return JsonResponse(await _pull(node, pull_id))


@router.post("/pulls/{pull_id}/cancel")
async def cancel_pull(pull_id: str, node: CurrentNode, request: Request) -> Response:
    """Stop a pull. What has come is kept: the same pull goes on from there. One that has ended stays as it is."""
    found = await _pull(node, pull_id)
    by = request.state.caller.key_id
    stopped = await _give(node, found["node"], Errand.STOP_PULL, pull_id, by=by)
    await _note(node, request, "gallery.cancel", found["model"], {"node": found["node"], "pull": pull_id})
    return JsonResponse(_shown(found["node"], stopped))


async def _nodes(node: Node) -> list[dict[str, Any]]:
    return await NodeBoard(node.redis).list()


async def _pulls(node: Node) -> list[dict[str, Any]]:
    return [_shown(row["node"], pull) for row in await _nodes(node) for pull in row["pulls"]]


async def _pull(node: Node, pull_id: str) -> dict[str, Any]:
    """Raises ApiError 404."""
    for found in await _pulls(node):
        if found["id"] == pull_id:
            return found
    raise ApiError(404, f"No pull {pull_id!r} is known here. GET /admin/gallery/pulls lists them.", code="unknown_pull")


def _shown(at: str, pull: Mapping[str, Any]) -> dict[str, Any]:
    return {"object": "gallery.pull", "node": at, **pull}


async def _node(node: Node, errand: Errand, what: str, asked: str | None) -> str:
    """The node that is meant. Raises OrderRefused."""
    names = [row["node"] for row in await _nodes(node)]
    if asked is not None and asked not in names:
        raise OrderRefused(errand, what, f"there is no node {asked!r} (there are: {', '.join(names) or 'none'})")
    if asked is None and len(names) != 1:
        why = f"name the node, one of {', '.join(names)}" if names else "no node is here: start mlx-farm worker"
        raise OrderRefused(errand, what, why)
    return asked or names[0]


async def _ask(node: Node, errand: Errand, what: str, arguments: tuple[str, ...], asked: str | None) -> dict[str, Any]:
    """What a node answers to a question. Raises OrderRefused, AgentSilent."""
    at = await _node(node, errand, what, asked)
    return {"node": at, **await _give(node, at, errand, what, arguments=arguments)}


async def _give(
    node: Node, at: str, errand: Errand, what: str, *, arguments: tuple[str, ...] = (), by: str = ""
) -> dict[str, Any]:
    """Raises OrderRefused, AgentSilent."""
    order = Order(action=errand, model=what, by=by, arguments=arguments)
    answer = await OrderDesk(node.redis).give(at, order)
    if refused := answer.get("refused"):
        raise OrderRefused(errand, what, refused)
    return answer


async def _note(node: Node, request: Request, action: str, target: str, details: Mapping[str, Any]) -> None:
    async with record_errors(), node.store.engine.begin() as connection:
        await note_change(connection, actor_of(request), action, target, details)
