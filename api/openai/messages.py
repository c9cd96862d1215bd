"""From OpenAI's messages and tools to what chat templates take; pure."""

from __future__ import annotations

from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.images import Shown
from api.openai.schemas import ContentPart, Message, Tool
from api.tool_calls import arguments_for_template
from scheduler.models import ModelCard

TEXT_PARTS = ("text", "input_text", "output_text")
IMAGE_PART = "image_url"
SHOWING_ROLES = ("user", "tool")
"""Whose messages may have images; whether they may for a certain model is its template's matter."""

Content = str | list[dict[str, str]]
"""A text, or the parts {type: text, text} and {type: image} in order."""


def template_messages(messages: list[Message], card: ModelCard) -> list[dict[str, Any]]:
    """The conversation for a chat template: contents, past calls with their arguments as objects.

    `developer` becomes `system` where the template does not know the word. Raises ApiError by path.
    """
    knows_developer = card.chat_template is not None and "developer" in card.chat_template
    return [_message(message, f"messages.{i}", knows_developer) for i, message in enumerate(messages)]


def shown_images(messages: list[Message]) -> Shown:
    """The images of a conversation in order. Raises ApiError by path."""
    named = []
    for i, message in enumerate(messages):
        for j, part in enumerate(message.content if isinstance(message.content, list) else ()):
            if part.type != IMAGE_PART:
                continue
            path = f"messages.{i}.content.{j}"
            if part.image_url is None:
                raise InvalidParameter(f"{path}.image_url", "An image part needs image_url: {url}.")
            if message.role not in SHOWING_ROLES:
                raise Unsupported(f"{path}.type", f"Messages of role {message.role!r} show no images.")
            named.append((f"{path}.image_url", part.image_url.url))
    return Shown(named)


def without_effect(messages: list[Message]) -> list[str]:
    """The paths of what was asked of images and is not done."""
    return [
        f"messages.{i}.content.{j}.image_url.detail"
        for i, message in enumerate(messages)
        for j, part in enumerate(message.content if isinstance(message.content, list) else ())
        if part.image_url is not None and part.image_url.detail not in (None, "auto")
    ]


def text_of(content: Content) -> str:
    """The text of a message for a template."""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def template_tools(tools: list[Tool]) -> tuple[list[dict[str, Any]], list[str]]:
    """Function tools for the template, and the paths of what is ignored: tools of other types."""
    offered: list[dict[str, Any]] = []
    ignored: list[str] = []
    for index, tool in enumerate(tools):
        if tool.type != "function":
            ignored.append(f"tools.{index}")
            continue
        if tool.function is None:
            raise InvalidParameter(f"tools.{index}.function", "A function tool needs 'function'.")
        function = tool.function.model_dump(exclude_unset=True, exclude={"strict"})
        offered.append({"type": "function", "function": function})
    return offered, ignored


def _message(message: Message, path: str, knows_developer: bool) -> dict[str, Any]:
    role = "system" if message.role == "developer" and not knows_developer else message.role
    out: dict[str, Any] = {"role": role, "content": _content(message, path)}
    if message.name is not None:
        out["name"] = message.name
    if message.role == "tool" and message.tool_call_id is not None:
        out["tool_call_id"] = message.tool_call_id
    if message.role == "assistant":
        reasoning = message.reasoning_content or message.reasoning
        if reasoning:
            out["reasoning_content"] = reasoning
        if message.tool_calls:
            out["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": arguments_for_template(call.function.arguments or "{}"),
                    },
                }
                for call in message.tool_calls
            ]
    return out


def _content(message: Message, path: str) -> Content:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role == "assistant" and (message.tool_calls or message.refusal or message.reasoning_content):
            return message.refusal or ""
        raise InvalidParameter(f"{path}.content", f"A message of role {message.role!r} needs content.")
    paths = [f"{path}.content.{i}" for i in range(len(message.content))]
    if all(part.type != IMAGE_PART for part in message.content):
        return "\n".join(map(_part, message.content, paths))
    parts: list[dict[str, str]] = []
    for part, at in zip(message.content, paths, strict=True):
        if part.type == IMAGE_PART:
            parts.append({"type": "image"})
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += "\n" + _part(part, at)
        else:
            parts.append({"type": "text", "text": _part(part, at)})
    return parts


def _part(part: ContentPart, path: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in (*TEXT_PARTS, "refusal"):
        raise Unsupported(f"{path}.type", f"Content parts of type {part.type!r} need a model that this server lacks.")
    if text is None:
        raise InvalidParameter(f"{path}.text", "A text part needs 'text'.")
    return text
