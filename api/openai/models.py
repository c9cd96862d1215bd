"""The models endpoint: what the farm serves, in OpenAI's shape with vLLM's extras."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api.bodies import JsonResponse
from api.node import CurrentNode
from scheduler.models import ModelCard, Served

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("")
async def list_models(node: CurrentNode) -> Response:
    """All models that a worker serves now, each with its adapters behind it."""
    served = [served for card in await node.catalog.cards() for served in _with_adapters(card)]
    return JsonResponse({"object": "list", "data": [model_object(each) for each in served]})


@router.get("/{model_id:path}")
async def get_model(model_id: str, node: CurrentNode) -> Response:
    """One model; names may contain slashes."""
    return JsonResponse(model_object(await node.catalog.find(model_id)))


def _with_adapters(card: ModelCard) -> list[Served]:
    return [Served(card), *(Served(card, adapter) for adapter in card.adapters)]


def model_object(served: Served) -> dict[str, Any]:
    """OpenAI's model object; `max_model_len` is the context in tokens, `parent` an adapter's model."""
    card, adapter = served
    return {
        "id": adapter or card.name,
        "object": "model",
        "created": card.created_s,
        "owned_by": "mlx-farm",
        "root": card.name,
        "parent": card.name if adapter else None,
        "max_model_len": card.context_tokens,
    }
