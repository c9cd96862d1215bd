"""From OpenAI's messages and tools to what chat templates take; pure."""

from __future__ import annotations

from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.schemas import ContentPart, Message, Tool
from api.tool_calls import arguments_for_template
from scheduler.models import ModelCard

TEXT_PARTS = ("text", "input_text", "output_text")


def template_messages(messages: list[Message], card: ModelCard) -> list[dict[str, Any]]:
    """The conversation for a chat template: text contents, past calls with their arguments as objects.

    `developer` becomes `system` where the template does not know the word. Raises ApiError by path.
    """
    knows_developer = card.chat_template is not None and "developer" in card.chat_template
    return [_message(message, f"messages.{i}", knows_developer) for i, message in enumerate(messages)]


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
    out: dict[str, Any] = {"role": role, "content": _text(message, path)}
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


def _text(message: Message, path: str) -> str:
    if isinstance(message.content, str):
        return message.content
    if message.content is None:
        if message.role == "assistant" and (message.tool_calls or message.refusal or message.reasoning_content):
            return message.refusal or ""
        raise InvalidParameter(f"{path}.content", f"A message of role {message.role!r} needs content.")
    return "\n".join(_part(part, f"{path}.content.{i}") for i, part in enumerate(message.content))


def _part(part: ContentPart, path: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in (*TEXT_PARTS, "refusal"):
        raise Unsupported(f"{path}.type", f"Content parts of type {part.type!r} need a model that this server lacks.")
    if text is None:
        raise InvalidParameter(f"{path}.text", "A text part needs 'text'.")
    return text
