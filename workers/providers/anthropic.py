"""Anthropic's messages: a job as their request, and their stream as parts of an answer; pure.

https://docs.claude.com/en/api/messages, version 2023-06-01.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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

PATH = "messages"
VERSION = "2023-06-01"
DRAWN = ("temperature", "top_p", "top_k")
LEAST_THINKING_TOKENS = 1024
REASONS = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": FILTERED}
"""All others are an answer's own end."""

_DATA_URL = re.compile(r"data:(image/[\w.+-]+);base64,", re.ASCII)
_NO_ID = re.compile(r"[^a-zA-Z0-9_-]")
_CHOICES = {"auto": "auto", "required": "any", "none": "none"}


def headers_of(key: str) -> dict[str, str]:
    """What a request says of who asks, and of the protocol."""
    return {"anthropic-version": VERSION} | ({"x-api-key": key} if key else {})


def body_of(request: JobRequest, model: str, _provider: Provider) -> bytes:
    """The request; parameters that change nothing are left out."""
    asked: dict[str, Any] = orjson.loads(request.conversation)
    drawn, default = request.sampling, Sampling()
    system, messages = _turns(asked["messages"])
    body: dict[str, Any] = {"model": model, "stream": True, "max_tokens": request.stopping.max_tokens}
    body["messages"] = messages
    if system:
        body["system"] = system
    body |= {name: getattr(drawn, name) for name in DRAWN if getattr(drawn, name) != getattr(default, name)}
    if request.stopping.strings:
        body["stop_sequences"] = list(request.stopping.strings)
    if tools := asked.get("tools"):
        body |= {"tools": [_tool(tool["function"]) for tool in tools], "tool_choice": _choice(asked)}
    if thinking := _thinking(asked, request.stopping.max_tokens):
        body["thinking"] = thinking
    if config := _config(asked):
        body["output_config"] = config
    return orjson.dumps(body)


def _thinking(asked: Mapping[str, Any], max_tokens: int) -> dict[str, Any] | None:
    """Behind results of tools none: the thought that led to the call would have to be sent with its signature."""
    thinking: dict[str, Any] = asked.get("thinking") or {"type": "disabled"}
    if thinking["type"] == "disabled" or asked["messages"][-1]["role"] == "tool":
        return None
    if thinking["type"] != "enabled":
        return {"type": "adaptive"}
    budget = min(int(thinking.get("budget_tokens") or LEAST_THINKING_TOKENS), max_tokens - 1)
    return {"type": "enabled", "budget_tokens": budget} if budget >= LEAST_THINKING_TOKENS else None


def _config(asked: Mapping[str, Any]) -> dict[str, Any]:
    """An effort of somebody who says thinking himself, and a schema."""
    config: dict[str, Any] = {}
    if "effort" in asked and (asked.get("thinking") or {}).get("type") != "enabled":
        config["effort"] = asked["effort"]
    form = asked.get("response_format")
    if form is not None:
        config["format"] = {"type": "json_schema", "schema": form["json_schema"]["schema"]}
    return config


def _turns(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The system's text, and the turns of user and assistant; those of one side that follow each other are one."""
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] in ("system", "developer"):
            system += [block["text"] for block in _blocks(message.get("content"))]
            continue
        role = "assistant" if message["role"] == "assistant" else "user"
        blocks = _message(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return "\n\n".join(system), turns


def _message(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    blocks = _blocks(message.get("content"))
    if message["role"] == "tool":
        return [{"type": "tool_result", "tool_use_id": _id(message.get("tool_call_id", "")), "content": blocks}]
    for call in message.get("tool_calls", ()):
        function = call["function"]
        blocks.append(
            {
                "type": "tool_use",
                "id": _id(call["id"]),
                "name": function["name"],
                "input": _arguments(function["arguments"]),
            }
        )
    return blocks


def _blocks(content: Any) -> list[dict[str, Any]]:
    """Texts and images; empty texts are refused there, and say nothing."""
    parts = [{"type": "text", "text": content or ""}] if not isinstance(content, list) else content
    return [_image(part) if part["type"] == "image_url" else part for part in parts if part.get("text") != ""]


def _image(part: Mapping[str, Any]) -> dict[str, Any]:
    url = part["image_url"]["url"]
    head = _DATA_URL.match(url)
    if head is None:
        return {"type": "image", "source": {"type": "url", "url": url}}
    return {"type": "image", "source": {"type": "base64", "media_type": head[1], "data": url[head.end() :]}}


def _arguments(text: str) -> dict[str, Any]:
    """Of a past call; what is no object cannot be sent as one."""
    try:
        value = orjson.loads(text or "{}")
    except orjson.JSONDecodeError:
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def _id(call_id: str) -> str:
    return _NO_ID.sub("_", call_id) or "_"


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    said = {"name": function["name"], "input_schema": function.get("parameters") or {"type": "object"}}
    return said | ({"description": function["description"]} if function.get("description") else {})


def _choice(asked: Mapping[str, Any]) -> dict[str, Any]:
    choice = asked.get("tool_choice", "auto")
    if isinstance(choice, dict):
        said: dict[str, Any] = {"type": "tool", "name": choice["function"]["name"]}
    else:
        said = {"type": _CHOICES[choice]}
    if asked.get("parallel_tool_calls", True) is False and said["type"] != "none":
        said["disable_parallel_tool_use"] = True
    return said


class AnthropicStream:
    """Implements AnswerStream."""

    def __init__(self) -> None:
        self._events = EventReader()
        self._calls = 0
        self._block = ""  # the type of the open one
        self._has_arguments = False
        self._reason: str | None = None
        self._stop_string: str | None = None
        self._usage: dict[str, Any] = {}
        self._is_over = False

    def feed(self, data: bytes) -> list[AnswerPart]:
        """What these bytes add. Raises ProviderFailed."""
        return [part for event in self._events.feed(data) for part in self._event(json_object(event.data))]

    def close(self) -> Finish:
        """The end of the bytes. Raises ProviderFailed."""
        if not self._is_over or self._reason is None:
            raise Overloaded(CUT_OFF)
        return Finish(REASONS.get(self._reason, "stop"), self._stop_string, _use_of(self._usage))

    def _event(self, event: Mapping[str, Any]) -> list[AnswerPart]:
        match event.get("type"):
            case "error":
                raise Overloaded(error_text(event))
            case "message_start":
                self._usage |= inner(inner(event, "message"), "usage")
            case "content_block_start":
                return self._begin(inner(event, "content_block"))
            case "content_block_delta":
                return self._delta(inner(event, "delta"))
            case "content_block_stop":
                return self._end_block()
            case "message_delta":
                delta = inner(event, "delta")
                self._reason = text_in(delta, "stop_reason") or self._reason
                self._stop_string = text_in(delta, "stop_sequence") or None
                self._usage |= {name: value for name, value in inner(event, "usage").items() if value is not None}
            case "message_stop":
                self._is_over = True
        return []

    def _begin(self, block: Mapping[str, Any]) -> list[AnswerPart]:
        self._block = text_in(block, "type")
        if self._block == "text":
            return _said("content", text_in(block, "text"))
        if self._block == "thinking":
            return _said("reasoning", text_in(block, "thinking"))
        if self._block != "tool_use":
            return []  # what a provider's own tools have done, and thoughts that nobody may read
        name = text_in(block, "name")
        if not name:
            raise Garbage("a call without a name")
        self._calls += 1
        self._has_arguments = False
        return [("call", "", self._calls - 1, name, text_in(block, "id") or None)]

    def _delta(self, delta: Mapping[str, Any]) -> list[AnswerPart]:
        match text_in(delta, "type"):
            case "text_delta":
                return _said("content", text_in(delta, "text"))
            case "thinking_delta":
                return _said("reasoning", text_in(delta, "thinking"))
            case "input_json_delta" if self._block == "tool_use":
                text = text_in(delta, "partial_json")
                self._has_arguments = self._has_arguments or bool(text)
                return [("call", text, self._calls - 1, None, None)] if text else []
        return []

    def _end_block(self) -> list[AnswerPart]:
        block, self._block = self._block, ""
        if block == "tool_use" and not self._has_arguments:
            return [("call", "{}", self._calls - 1, None, None)]
        return []


def _said(kind: str, text: str) -> list[AnswerPart]:
    return [(kind, text, 0, None, None)] if text else []


def _use_of(usage: Mapping[str, Any]) -> TokenUse | None:
    """Their three parts of the prompt add up to ours."""
    if not usage:
        return None
    read, written = tokens_in(usage, "cache_read_input_tokens"), tokens_in(usage, "cache_creation_input_tokens")
    return TokenUse(
        prompt_tokens=tokens_in(usage, "input_tokens") + read + written,
        cached_tokens=read,
        cache_written_tokens=written,
        output_tokens=tokens_in(usage, "output_tokens"),
        reasoning_tokens=tokens_in(inner(usage, "output_tokens_details"), "thinking_tokens"),
    )
