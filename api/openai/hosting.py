"""A chat as a provider is asked it: its conversation as JSON, and refusals of what no provider honours; pure.

The JSON is OpenAI's: messages, tools, tool_choice, parallel_tool_calls, response_format; and in the farm's words
`thinking` (Anthropic's object), `effort`, `seed` (where one was given) and `open_ended` (no length was asked for). How
tokens are drawn and when the answer ends stands in the job's own parameters, because routing rules may change those.
"""

from __future__ import annotations

from typing import Any

import orjson

from api.errors import InvalidParameter, Unsupported
from api.openai.messages import IMAGE_PART, TEXT_PARTS, template_tools
from api.openai.parameters import sampling, stopping
from api.openai.schemas import ChatRequest, ContentPart, Message
from api.rendering import RenderingNote
from scheduler.models import ModelCard
from scheduler.requests import JobRequest, Sampling
from scheduler.routing.choice import Route

NEEDS_THE_MODEL = (
    *("logprobs", "top_logprobs", "logit_bias", "min_tokens", "stop_token_ids", "ignore_eos", "add_generation_prompt"),
    *("chat_template_kwargs", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)
"""Fields that need the model itself: its tokens, its template, its grammar."""

DRAWN = {
    "openai": ("temperature", "top_p", "presence_penalty", "frequency_penalty"),
    "anthropic": ("temperature", "top_p", "top_k"),
}
"""What each protocol has of the parameters of drawing, besides `seed`."""

EFFORT_TOKENS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 32_768, "max": 32_768}
"""Tokens of reasoning that an effort stands for where a protocol has no word for it."""

IMAGE_URLS = ("data:image/", "https://")


def hosted_request(
    kind: str,
    body: ChatRequest,
    card: ModelCard,
    route: Route,
    note: RenderingNote,
    thinking: dict[str, Any] | None = None,
) -> JobRequest:
    """The body of a job of this kind for a provider's model. Raises ApiError by path.

    `thinking` is Anthropic's object, of a caller who has said it.
    """
    _check(body, card, thinking)
    asked_tokens = body.max_completion_tokens or body.max_tokens
    request = JobRequest(
        kind=kind,
        model=card.name,
        prompts=((),),
        n=body.n or 1,
        sampling=sampling(body, card),
        stopping=stopping(body, card, asked_tokens or card.max_output_tokens),
        asked_tokens=note.prompt_tokens,
        conversation=orjson.dumps(_conversation(body, card, thinking)),
        rendering=note.as_dict(),
    )
    request = route.overrides.on(request)
    _check_drawing(request.sampling, body, card)
    return request


def _check(body: ChatRequest, card: ModelCard, thinking: dict[str, Any] | None) -> None:
    where = f"{card.name!r} is a provider's model: ask one of the farm."
    for name in NEEDS_THE_MODEL:
        if getattr(body, name) not in (None, False, 0, {}, []):
            raise Unsupported(name, where)
    is_anthropic = card.provider == "anthropic"
    if body.continue_final_message and not is_anthropic:
        raise Unsupported("continue_final_message", where)
    if body.seed is not None and is_anthropic:
        raise Unsupported("seed", "Anthropic's protocol has none.")
    if body.thinking_token_budget is not None and thinking is None and not is_anthropic:
        raise Unsupported("thinking_token_budget", "OpenAI's protocol has none; use reasoning_effort.")
    _check_format(body, is_anthropic=is_anthropic)


def _check_format(body: ChatRequest, *, is_anthropic: bool) -> None:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return
    if asked.type == "json_object" and is_anthropic:
        raise Unsupported("response_format.type", "Anthropic's protocol has json_schema only.")
    if asked.type == "json_schema" and (asked.json_schema is None or asked.json_schema.schema_ is None):
        raise InvalidParameter("response_format.json_schema", "type json_schema needs a name and a schema.")


def _check_drawing(drawn: Sampling, body: ChatRequest, card: ModelCard) -> None:
    """Also what a routing rule has set."""
    default = Sampling()
    drawing = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    for name in drawing:
        if getattr(drawn, name) != getattr(default, name) and name not in DRAWN[card.provider]:
            raise Unsupported(name, f"The protocol of {card.name!r} has no such parameter.")
    if card.provider == "anthropic" and drawn.temperature > 1:
        raise InvalidParameter("temperature", f"{card.name!r} takes 0 to 1.")


def _conversation(body: ChatRequest, card: ModelCard, thinking: dict[str, Any] | None) -> dict[str, Any]:
    tools, _ = template_tools(body.tools or [])
    said: dict[str, Any] = {
        "messages": [_message(message, f"messages.{index}") for index, message in enumerate(body.messages)],
        "tools": tools,
        "tool_choice": body.tool_choice if tools else None,
        "parallel_tool_calls": body.parallel_tool_calls if tools else None,
        "response_format": _format(body),
        "thinking": thinking or _thinking(body, card),
        "effort": body.reasoning_effort,
        "seed": body.seed,
        "open_ended": not (body.max_completion_tokens or body.max_tokens),
    }
    return {name: value for name, value in said.items() if value not in (None, [], False) or value == 0}


def _thinking(body: ChatRequest, card: ModelCard) -> dict[str, Any] | None:
    """Anthropic's object for what a chat asks for."""
    if card.provider != "anthropic" or body.reasoning_effort == "none":
        return None
    tokens = body.thinking_token_budget or EFFORT_TOKENS.get(body.reasoning_effort or "")
    return {"type": "enabled", "budget_tokens": tokens} if tokens else None


def _format(body: ChatRequest) -> dict[str, Any] | None:
    asked = body.response_format
    if asked is None or asked.type == "text":
        return None
    return asked.model_dump(include={"type", "json_schema"}, by_alias=True, exclude_none=True)


def _message(message: Message, path: str) -> dict[str, Any]:
    said: dict[str, Any] = {
        "role": message.role,
        "content": _content(message, path),
        "name": message.name if message.role != "tool" else None,
        "tool_call_id": message.tool_call_id,
        "tool_calls": [call.model_dump(include={"id", "type", "function"}) for call in message.tool_calls or ()],
    }
    kept = {name: value for name, value in said.items() if value not in (None, [])}
    return kept if "tool_calls" in kept else kept | {"content": kept.get("content", "")}


def _content(message: Message, path: str) -> Any:
    if not isinstance(message.content, list):
        return message.content if message.content is not None else message.refusal
    return [_part(part, f"{path}.content.{index}") for index, part in enumerate(message.content)]


def _part(part: ContentPart, path: str) -> dict[str, Any]:
    if part.type == IMAGE_PART and part.image_url is not None:
        if not part.image_url.url.startswith(IMAGE_URLS):
            raise InvalidParameter(f"{path}.image_url", "An image is data:image/…;base64,… or an https:// URL.")
        return {"type": IMAGE_PART, "image_url": {"url": part.image_url.url}}
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in (*TEXT_PARTS, "refusal") or text is None:
        raise Unsupported(f"{path}.type", f"Content parts of type {part.type!r} are not sent to providers.")
    return {"type": "text", "text": text}
