"""A job's renderer on this node: built from the job's own note, with the model's tokenizer where logprobs need it."""

from __future__ import annotations

from api.kinds import renderer_of
from api.node import Node
from api.rendering import Renderer, RenderingNote
from scheduler.requests import JobRequest


async def fresh_renderer(node: Node, job_id: str, request: JobRequest) -> Renderer:
    """A renderer that has seen no frame. Raises UnknownModel when a job with logprobs has lost its model."""
    note = RenderingNote.of(request.rendering)
    token_bytes = _no_bytes
    if note.logprobs:
        token_bytes = (await node.formats.get(await node.catalog.get(request.model))).token_bytes
    return renderer_of(request.kind, job_id, note, token_bytes)


def _no_bytes(token_id: int) -> bytes:
    raise AssertionError(f"token {token_id} rendered without its tokenizer")
