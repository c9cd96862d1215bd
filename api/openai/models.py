"""The models endpoint: what the farm serves, in OpenAI's shape with vLLM's extras."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from api.bodies import JsonResponse
from api.node import CurrentNode
from scheduler.models import ModelCard

router = APIRouter(prefix="/v1/models", tags=["openai"])


@router.get("")
async def list_models(node: CurrentNode) -> Response:
    """All models that a worker serves now."""
    return JsonResponse({"object": "list", "data": [model_object(card) for card in await node.catalog.cards()]})


@router.get("/{model_id:path}")
async def get_model(model_id: str, node: CurrentNode) -> Response:
    """One model; names may contain slashes."""
    return JsonResponse(model_object(await node.catalog.get(model_id)))


def model_object(card: ModelCard) -> dict[str, Any]:
    """OpenAI's model object; `max_model_len` is the context in tokens."""
    return {
        "id": card.name,
        "object": "model",
        "created": card.created_s,
        "owned_by": "mlx-farm",
        "root": card.name,
        "parent": None,
        "max_model_len": card.context_tokens,
    }
