"""Fields of /v1/responses that have no effect: refused by name where they ask for something, or listed; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.parameters import ignored_fields
from api.openai.responses.schemas import ResponseRequest

LOGPROBS = "message.output_text.logprobs"
SEALED_THOUGHTS = "reasoning.encrypted_content"

HOSTED_INCLUDES = frozenset(
    {
        "web_search_call.action.sources",
        "web_search_call.results",
        "code_interpreter_call.outputs",
        "computer_call_output.output.image_url",
        "file_search_call.results",
        "message.input_image.image_url",
    }
)
"""They ask for details of items that no answer of this server has: there is nothing to include."""

REFUSED: Mapping[str, str] = {
    "conversation": "Go on with previous_response_id.",
    "prompt": "Send instructions and input instead.",
    "context_management": "",
    "moderation": "",
    "access_programs": "",
    "image": "",
    "response_format": "It is called text.format here.",
    "max_completion_tokens": "It is called max_output_tokens here.",
    "messages": "It is called input here.",
    "logprobs": f"Ask with include: [{LOGPROBS}] here.",
    "reasoning_effort": "It is called reasoning.effort here.",
}


def without_effect(body: ResponseRequest) -> list[str]:
    """Names of what has no effect, for the caller. Raises ApiError for what asks for something we lack."""
    extra = body.model_extra or {}
    for name, hint in REFUSED.items():
        if extra.get(name) not in (None, [], {}):
            raise Unsupported(name, hint)
    if body.max_tokens is not None:
        raise Unsupported("max_tokens", "It is called max_output_tokens here.")
    if body.n not in (None, 1):
        raise Unsupported("n", "A response is one answer.")
    if body.background and body.store is False:
        raise InvalidParameter("background", "A response in the background must be stored (store: true).")
    _check_includes(body)
    names = [name for name in ignored_fields(body) if name not in REFUSED]
    if body.text is not None and body.text.verbosity is not None:
        names.append("text.verbosity")
    if body.reasoning is not None and body.reasoning.summary is not None:
        names.append("reasoning.summary")
    if body.prompt_cache_key is not None:
        names.append("prompt_cache_key")
    return names + _inner(body)


def _check_includes(body: ResponseRequest) -> None:
    for index, name in enumerate(body.include or ()):
        if name not in (LOGPROBS, SEALED_THOUGHTS) and name not in HOSTED_INCLUDES:
            raise Unsupported(f"include.{index}", f"Known: {LOGPROBS}, {SEALED_THOUGHTS}.")
    if body.top_logprobs and LOGPROBS not in (body.include or ()):
        raise InvalidParameter("top_logprobs", f"It needs include: [{LOGPROBS}].")


def _inner(body: ResponseRequest) -> list[str]:
    """Unknown fields one level down."""
    inside: Mapping[str, Any] = {"text": body.text, "reasoning": body.reasoning}
    return [
        f"{field}.{name}" for field, value in inside.items() if value is not None for name in value.model_extra or {}
    ]
