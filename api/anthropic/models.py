"""Anthropic's shape of models, and its pages of them; pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from api.errors import InvalidParameter
from scheduler.models import Served


def model_info(name: str, served: Served) -> dict[str, Any]:
    """Anthropic's model object: `max_tokens` is what an answer to the shortest prompt may have."""
    card, _ = served
    return {
        "id": name,
        "type": "model",
        "display_name": name,
        "created_at": datetime.fromtimestamp(card.created_s, UTC).isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": card.context_tokens,
        "max_tokens": card.context_tokens,
    }


def model_page(
    served: Sequence[tuple[str, Served]], *, limit: int, after_id: str | None = None, before_id: str | None = None
) -> dict[str, Any]:
    """A page of `limit` models behind `after_id`, or in front of `before_id`. Raises InvalidParameter."""
    infos = [model_info(name, each) for name, each in served]
    ids = [info["id"] for info in infos]
    for name, asked in (("after_id", after_id), ("before_id", before_id)):
        if asked is not None and asked not in ids:
            raise InvalidParameter(name, f"No model {asked!r} is in the list.")
    found = infos[ids.index(after_id) + 1 if after_id else 0 : ids.index(before_id) if before_id else len(ids)]
    page = found[-limit:] if before_id and not after_id else found[:limit]
    return {
        "data": page,
        "has_more": len(found) > len(page),
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
    }
