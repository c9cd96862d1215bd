"""OpenAI's shape of models, with vLLM's extras; pure."""

from __future__ import annotations

from typing import Any

from scheduler.models import Served


def model_object(name: str, served: Served) -> dict[str, Any]:
    """OpenAI's model object; `max_model_len` is the context in tokens, `parent` an adapter's model."""
    card, adapter = served
    return {
        "id": name,
        "object": "model",
        "created": card.created_s,
        "owned_by": "mlx-farm",
        "root": card.name,
        "parent": card.name if adapter else None,
        "max_model_len": card.context_tokens,
    }
