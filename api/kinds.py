"""The kinds of jobs that the protocols make: how a body becomes a draft, and frames an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from api.anthropic.draft import messages_draft
from api.anthropic.note import MESSAGES_KIND
from api.anthropic.rendering import MessagesRenderer
from api.anthropic.schemas import MessagesRequest
from api.bodies import validated
from api.draft import Draft
from api.errors import InvalidParameter, Unsupported
from api.openai.chat import CHAT_KIND, chat_draft
from api.openai.chat_rendering import ChatRenderer
from api.openai.completion_rendering import CompletionRenderer
from api.openai.completions import COMPLETION_KIND, completion_draft
from api.openai.responses.drafting import RESPONSE_KIND, response_draft
from api.openai.responses.rendering import ResponseRenderer
from api.openai.responses.schemas import ResponseRequest
from api.openai.schemas import ChatRequest, CompletionRequest
from api.rendering import Renderer, RenderingNote, TokenBytes
from api.vectors.embeddings import EMBEDDING_KIND, embedding_draft
from api.vectors.rendering import EmbeddingRenderer, RerankRenderer, ScoreRenderer
from api.vectors.schemas import EmbeddingRequest, RerankRequest, ScoreRequest
from api.vectors.scores import RERANK_KIND, SCORE_KIND, rerank_draft, score_draft
from scheduler.models import ModelCard


def _chat(body: Any) -> Draft:
    draft = chat_draft(validated(ChatRequest, body, "body"))
    if draft.body.store:
        draft.ignored.append("store")  # a job's answer is kept with the job
    return draft


def _completion(body: Any) -> Draft:
    return completion_draft(validated(CompletionRequest, body, "body"))


def _messages(body: Any) -> Draft:
    return messages_draft(validated(MessagesRequest, body, "body"))


def _embedding(body: Any) -> Draft:
    return embedding_draft(validated(EmbeddingRequest, body, "body"))


def _rerank(body: Any) -> Draft:
    return rerank_draft(validated(RerankRequest, body, "body"))


def _score(body: Any) -> Draft:
    return score_draft(validated(ScoreRequest, body, "body"))


def _response(body: Any) -> Draft:
    """Alone: what came before, and what is kept, is known at /v1/responses only."""
    request = validated(ResponseRequest, body, "body")
    for name in ("previous_response_id", "background"):
        if getattr(request, name):
            raise Unsupported(f"body.{name}", "POST /v1/responses has it.")
    return response_draft(request)


_DRAFTS: Mapping[str, Callable[[Any], Draft]] = {
    CHAT_KIND: _chat,
    COMPLETION_KIND: _completion,
    MESSAGES_KIND: _messages,
    EMBEDDING_KIND: _embedding,
    RERANK_KIND: _rerank,
    SCORE_KIND: _score,
    RESPONSE_KIND: _response,
}
_RENDERERS: Mapping[str, Callable[[str, RenderingNote, TokenBytes], Renderer]] = {
    CHAT_KIND: ChatRenderer,
    COMPLETION_KIND: CompletionRenderer,
    MESSAGES_KIND: MessagesRenderer,
    EMBEDDING_KIND: EmbeddingRenderer,
    RERANK_KIND: RerankRenderer,
    SCORE_KIND: ScoreRenderer,
    RESPONSE_KIND: ResponseRenderer,
}
_TASKS: Mapping[str, str] = {EMBEDDING_KIND: "embed", RERANK_KIND: "rerank", SCORE_KIND: "rerank"}
_CONVERSATIONS = frozenset({CHAT_KIND, MESSAGES_KIND, RESPONSE_KIND})
"""What providers are asked: a model to chat serves no other kind."""

_PLACES: Mapping[str, str] = {
    "chat": "/v1/chat/completions",
    "embed": "/v1/embeddings",
    "rerank": "/v1/rerank",
    "generate": "/v1/chat/completions",
}


def draft_of(kind: str, body: Any) -> Draft:
    """Validate a body by its job's kind. Raises ApiError with paths below `body`."""
    if kind not in _DRAFTS:
        raise InvalidParameter("kind", f"Unknown kind {kind!r}; known: {', '.join(_DRAFTS)}.")
    return _DRAFTS[kind](body)


def check_task(kind: str, card: ModelCard) -> None:
    """Raise InvalidParameter where a model was not made for such jobs."""
    task = _TASKS.get(kind, "generate")
    if card.task != task and not (card.task == "chat" and kind in _CONVERSATIONS):
        made = f"{card.name!r} is a model to {card.task} (POST {_PLACES[card.task]})"
        raise InvalidParameter("model", f"{made}, this needs one to {task}.", code="model_not_supported")


def known_kinds() -> frozenset[str]:
    """The kinds that `draft_of` takes."""
    return frozenset(_DRAFTS)


def renderer_of(kind: str, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> Renderer:
    """The renderer of a job. Raises KeyError for a kind of another version of this server."""
    return _RENDERERS[kind](job_id, note, token_bytes)
