"""OpenAI's chat completions: a job as their request, and their stream as parts of an answer; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from scheduler.frames import FILTERED, AnswerPart
from scheduler.providers import Provider, TokenUse
from scheduler.requests import JobRequest, Sampling
from workers.providers.saying import (
    CUT_OFF,
    Finish,
    Garbage,
    Overloaded,
    error_text,
    inner,
    json_object,
    text_in,
    tokens_in,
)
from workers.providers.sse import EventReader

PATH = "chat/completions"
DRAWN = ("temperature", "top_p", "presence_penalty", "frequency_penalty")
AS_IS = ("messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "seed")
REASONS = {"length": "length", "content_filter": FILTERED}
"""All others are an answer's own end."""


def headers_of(key: str) -> dict[str, str]:
    """What a request says of who asks."""
    return {"authorization": f"Bearer {key}"} if key else {}


def body_of(request: JobRequest, model: str, provider: Provider) -> bytes:
    """The request for one answer; parameters that change nothing are left out, because some models refuse them."""
    asked: dict[str, Any] = orjson.loads(request.conversation)
    drawn, default = request.sampling, Sampling()
    body = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {name: asked[name] for name in AS_IS if name in asked}
    body |= {name: getattr(drawn, name) for name in DRAWN if getattr(drawn, name) != getattr(default, name)}
    if "effort" in asked:
        body["reasoning_effort"] = asked["effort"]
    if request.stopping.strings:
        body["stop"] = list(request.stopping.strings)
    if not asked.get("open_ended"):
        body[provider.length_field.value] = request.stopping.max_tokens
    return orjson.dumps(body)


class OpenAiStream:
    """Implements AnswerStream."""

    def __init__(self) -> None:
        self._events = EventReader()
        self._calls: dict[int, int] = {}  # their index → our number
        self._reason: str | None = None
        self._use: TokenUse | None = None

    def feed(self, data: bytes) -> list[AnswerPart]:
        """What these bytes add. Raises ProviderFailed."""
        parts: list[AnswerPart] = []
        for event in self._events.feed(data):
            if event.data != "[DONE]":
                parts += self._chunk(json_object(event.data))
        return parts

    def close(self) -> Finish:
        """The end of the bytes. Raises ProviderFailed."""
        if self._reason is None:
            raise Overloaded(CUT_OFF)
        return Finish(REASONS.get(self._reason, "stop"), None, self._use)

    def _chunk(self, chunk: Mapping[str, Any]) -> list[AnswerPart]:
        if chunk.get("error"):
            raise Overloaded(error_text(chunk))
        if usage := inner(chunk, "usage"):
            self._use = _use_of(usage)
        choices = chunk.get("choices") or []
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise Garbage("choices is no list of objects")
        return [part for choice in choices for part in self._choice(choice)]

    def _choice(self, choice: Mapping[str, Any]) -> list[AnswerPart]:
        if choice.get("index", 0) != 0:
            raise Garbage("an answer that was not asked for")
        delta = inner(choice, "delta")
        parts: list[AnswerPart] = []
        if thought := text_in(delta, "reasoning_content") or text_in(delta, "reasoning"):
            parts.append(("reasoning", thought, 0, None, None))
        if text := text_in(delta, "content") + text_in(delta, "refusal"):
            parts.append(("content", text, 0, None, None))
        calls = delta.get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise Garbage("tool_calls is no list of objects")
        for position, call in enumerate(calls):
            parts += self._call(call, position)
        self._reason = text_in(choice, "finish_reason") or self._reason
        return parts

    def _call(self, call: Mapping[str, Any], position: int) -> list[AnswerPart]:
        index, function = call.get("index", position), inner(call, "function")
        name, arguments = text_in(function, "name"), text_in(function, "arguments")
        if not isinstance(index, int):
            raise Garbage("a call's index is no number")
        if index not in self._calls:
            if not name:
                raise Garbage("a call without a name")
            self._calls[index] = len(self._calls)
            return [("call", arguments, self._calls[index], name, text_in(call, "id") or None)]
        number = self._calls[index]
        if number != len(self._calls) - 1:
            raise Garbage("more of a call behind the beginning of the next one")
        return [("call", arguments, number, None, None)] if arguments else []


def _use_of(usage: Mapping[str, Any]) -> TokenUse:
    prompt, output = inner(usage, "prompt_tokens_details"), inner(usage, "completion_tokens_details")
    return TokenUse(
        prompt_tokens=tokens_in(usage, "prompt_tokens"),
        cached_tokens=tokens_in(prompt, "cached_tokens"),
        output_tokens=tokens_in(usage, "completion_tokens"),
        reasoning_tokens=tokens_in(output, "reasoning_tokens"),
    )
