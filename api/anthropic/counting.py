"""Counting a prompt's tokens without running it: the same way as the job's, to its last step."""

from __future__ import annotations

from api.anthropic.draft import MessagesDraft, messages_draft
from api.anthropic.schemas import CountRequest, MessagesRequest
from api.call import Call
from api.node import Node
from api.serving import asked_of, serving
from scheduler.errors import ContextTooLong


async def count_tokens(node: Node, body: CountRequest, call: Call) -> tuple[MessagesDraft, int]:
    """The tokens that a message request with this prompt would have. Raises ApiError, UnknownModel, TemplateRefused."""
    fields = body.model_dump(by_alias=True, exclude_unset=True)
    draft = messages_draft(MessagesRequest.model_validate({**fields, "max_tokens": 0}))
    found = await serving(node, asked_of(draft, call))
    await node.images.load(draft.shown, found.card)
    try:
        job = await draft.job(found.card, await node.formats.get(found.card), found.route)
    except ContextTooLong as error:
        return draft, error.prompt_tokens
    return draft, job.prompt_tokens
