"""Counting a prompt's tokens without running it: the same way as the job's, to its last step."""

from __future__ import annotations

from api.anthropic.draft import MessagesDraft, messages_draft
from api.anthropic.schemas import CountRequest, MessagesRequest
from api.node import Node
from scheduler.errors import ContextTooLong
from scheduler.routing import choose


async def count_tokens(node: Node, body: CountRequest) -> tuple[MessagesDraft, int]:
    """The tokens that a message request with this prompt would have. Raises ApiError, UnknownModel, TemplateRefused."""
    fields = body.model_dump(by_alias=True, exclude_unset=True)
    draft = messages_draft(MessagesRequest.model_validate({**fields, "max_tokens": 0}))
    route = choose(node.rules.current, model=draft.model, lane=draft.lane)
    card, _ = await node.catalog.find(route.model)
    try:
        job = await draft.job(card, await node.formats.get(card), route.lane)
    except ContextTooLong as error:
        return draft, error.prompt_tokens
    return draft, job.prompt_tokens
