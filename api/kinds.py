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
from api.errors import InvalidParameter
from api.openai.chat import CHAT_KIND, chat_draft
from api.openai.chat_rendering import ChatRenderer
from api.openai.completion_rendering import CompletionRenderer
from api.openai.completions import COMPLETION_KIND, completion_draft
from api.openai.schemas import ChatRequest, CompletionRequest
from api.rendering import Renderer, RenderingNote, TokenBytes


def _chat(body: Any) -> Draft:
    return chat_draft(validated(ChatRequest, body, "body"))


def _completion(body: Any) -> Draft:
    return completion_draft(validated(CompletionRequest, body, "body"))


def _messages(body: Any) -> Draft:
    return messages_draft(validated(MessagesRequest, body, "body"))


_DRAFTS: Mapping[str, Callable[[Any], Draft]] = {
    CHAT_KIND: _chat,
    COMPLETION_KIND: _completion,
    MESSAGES_KIND: _messages,
}
_RENDERERS: Mapping[str, Callable[[str, RenderingNote, TokenBytes], Renderer]] = {
    CHAT_KIND: ChatRenderer,
    COMPLETION_KIND: CompletionRenderer,
    MESSAGES_KIND: MessagesRenderer,
}


def draft_of(kind: str, body: Any) -> Draft:
    """Validate a body by its job's kind. Raises ApiError with paths below `body`."""
    if kind not in _DRAFTS:
        raise InvalidParameter("kind", f"Unknown kind {kind!r}; known: {', '.join(_DRAFTS)}.")
    return _DRAFTS[kind](body)


def renderer_of(kind: str, job_id: str, note: RenderingNote, token_bytes: TokenBytes) -> Renderer:
    """The renderer of a job. Raises KeyError for a kind of another version of this server."""
    return _RENDERERS[kind](job_id, note, token_bytes)
