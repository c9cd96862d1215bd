"""Rerank and score requests as drafts: pairs of texts for a cross-encoder."""

from __future__ import annotations

from dataclasses import dataclass

from api.errors import InvalidParameter
from api.openai.parameters import PlainDraft
from api.vectors.inputs import Item, checked, encode, job
from api.vectors.schemas import RerankRequest, ScoreRequest
from scheduler.models import ModelCard
from scheduler.prompts import PromptFormat
from scheduler.requests import JobRequest
from scheduler.routing.choice import Route

RERANK_KIND = "rerank"
SCORE_KIND = "score"


@dataclass(frozen=True, slots=True)
class ScoreDraft(PlainDraft):
    """Implements Draft, for both kinds."""

    kind: str
    body: RerankRequest | ScoreRequest
    pairs: list[tuple[str, Item]]
    ignored: list[str]
    streamed: bool = False
    open_ended: bool = False

    async def request(self, card: ModelCard, prompts: PromptFormat, route: Route) -> JobRequest:
        """Encode and bound. Raises ApiError."""
        body = self.body
        if isinstance(body, ScoreRequest):
            return job(self.kind, body, card, route.lane, await encode(self.pairs, body, card, prompts))
        inputs = await encode(self.pairs, body, card, prompts, body.max_tokens_per_doc)
        documents = None if body.return_documents is False else _texts(body)
        return job(self.kind, body, card, route.lane, inputs, documents=documents, top_n=body.top_n)


def rerank_draft(body: RerankRequest) -> ScoreDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    pairs: list[tuple[str, Item]] = [
        (f"documents.{index}", (body.query, text)) for index, text in enumerate(_texts(body))
    ]
    return ScoreDraft(RERANK_KIND, body, pairs, checked(body))


def score_draft(body: ScoreRequest) -> ScoreDraft:
    """Check a body against what this server can do. Raises ApiError by path."""
    seconds = [body.text_2] if isinstance(body.text_2, str) else body.text_2
    firsts = [body.text_1] * len(seconds) if isinstance(body.text_1, str) else body.text_1
    if len(firsts) != len(seconds):
        raise InvalidParameter("text_2", f"{len(firsts)} texts in text_1, {len(seconds)} in text_2: they are no pairs.")
    pairs: list[tuple[str, Item]] = [
        (f"text_2.{index}", pair) for index, pair in enumerate(zip(firsts, seconds, strict=True))
    ]
    return ScoreDraft(SCORE_KIND, body, pairs, checked(body))


def _texts(body: RerankRequest) -> tuple[str, ...]:
    return tuple(document if isinstance(document, str) else document.text for document in body.documents)
