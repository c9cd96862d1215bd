"""The models endpoints: what the farm serves, in the shape of the caller's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from api.anthropic.errors import speaks_anthropic
from api.anthropic.models import model_info, model_page
from api.bodies import JsonResponse
from api.node import CurrentNode
from api.openai.models import model_object
from scheduler.admission import Caller
from scheduler.errors import UnknownModel
from scheduler.models import ModelCard, Served
from scheduler.routing.choice import other_names

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("")
async def list_models(
    node: CurrentNode,
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
    after_id: str | None = None,
    before_id: str | None = None,
) -> Response:
    """All models that a worker serves now and that the key may use, each with its adapters behind it; then aliases.

    OpenAI's list with vLLM's extras; Anthropic's pages (`limit`, `after_id`, `before_id`) for callers that send
    `anthropic-version`.
    """
    caller: Caller = request.state.caller
    known = [named for card in await node.catalog.cards() for named in _with_adapters(card)]
    known += _with_other_names(dict(reversed(known)), other_names(node.rules.current))
    served = [(name, each) for name, each in known if caller.sees_model(name)]
    if speaks_anthropic(request.scope):
        return JsonResponse(model_page(served, limit=limit, after_id=after_id, before_id=before_id))
    return JsonResponse({"object": "list", "data": [model_object(name, each) for name, each in served]})


@router.get("/{model_id:path}")
async def get_model(model_id: str, node: CurrentNode, request: Request) -> Response:
    """One model; names may contain slashes."""
    caller: Caller = request.state.caller
    if not caller.sees_model(model_id):
        raise UnknownModel(model_id, [])
    name = other_names(node.rules.current).get(model_id, model_id)
    served = await node.catalog.find(name)
    show = model_info if speaks_anthropic(request.scope) else model_object
    return JsonResponse(show(model_id, served))


def _with_adapters(card: ModelCard) -> list[tuple[str, Served]]:
    return [(card.name, Served(card)), *((adapter, Served(card, adapter)) for adapter in card.adapters)]


def _with_other_names(known: Mapping[str, Served], aliases: Mapping[str, str]) -> list[tuple[str, Served]]:
    """Those of them that aliases stand for, under these names."""
    return [(alias, known[name]) for alias, name in aliases.items() if name in known and alias not in known]
