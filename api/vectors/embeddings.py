"""An embedding request as a draft: one or many inputs, as text or as token ids."""

from __future__ import annotations

from dataclasses import dataclass

from api.errors import Unsupported
from api.openai.parameters import PlainDraft
from api.vectors.inputs import Item, checked, encode, job
from api.vectors.schemas import EmbeddingRequest
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

EMBEDDING_KIND = "embeddings"


@dataclass(frozen=True, slots=True)
class EmbeddingDraft(PlainDraft):
    """Implements Draft."""

    body: EmbeddingRequest
    ignored: list[str]
    kind: str = EMBEDDING_KIND
    streamed: bool = False
    open_ended: bool = False

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """Encode and bound. Raises ApiError."""
        body = self.body
        dimensions = None if body.dimensions == card.dimensions else body.dimensions
        if dimensions is not None:
            _check_dimensions(dimensions, card)
        inputs = await encode(_listed(body), body, card, prompts)
        is_base64 = body.encoding_format == "base64"
        return job(EMBEDDING_KIND, body, card, route.lane, inputs, dimensions=dimensions, base64=is_base64)


def embedding_draft(body: EmbeddingRequest) -> EmbeddingDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    return EmbeddingDraft(body, checked(body))


def _listed(body: EmbeddingRequest) -> list[tuple[str, Item]]:
    """All four forms of `input` as items with their paths."""
    if isinstance(body.input, str):
        return [("input", body.input)]
    token_ids = [item for item in body.input if isinstance(item, int)]
    if token_ids:
        return [("input", token_ids)]
    items: list[Item] = [item for item in body.input if not isinstance(item, int)]
    return [(f"input.{index}", item) for index, item in enumerate(items)]


def _check_dimensions(asked: int, card: ModelCard) -> None:
    full, short = card.dimensions or 0, card.short_dimensions
    if short is None:
        raise Unsupported("dimensions", f"Vectors of {card.name!r} lose their meaning when they are cut: all {full}.")
    if asked > full or (short and asked not in short):
        known = ", ".join(map(str, sorted(short))) or f"up to {full}"
        raise Unsupported("dimensions", f"Those of {card.name!r}: {known}.")
