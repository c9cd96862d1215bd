"""A conversation in items as the messages of a chat: calls and thoughts join the assistant's message; pure.

Every message knows the path of the item that began it, so that a refusal names what the caller wrote.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.errors import InvalidParameter, Unsupported
from api.openai.responses.schemas import Item, Part

_SEALED = "farm1."
"""Begins what we return as `encrypted_content`. It is packed, not secret: thoughts are shown anyway."""

_MOST_THOUGHT_BYTES = 4 * 1024 * 1024


@dataclass(slots=True)
class Messages:
    """Chat messages, and for each the path of its first item."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    def add(self, message: dict[str, Any], path: str) -> None:
        """Append one."""
        self.messages.append(message)
        self.paths.append(path)

    def assistant(self, path: str, *, speaks: bool = False) -> dict[str, Any]:
        """The assistant's message to go on with: the last one, unless it `speaks` or has called already."""
        last = self.messages[-1] if self.messages else {}
        done = "content" in last or ("tool_calls" in last and speaks)
        if last.get("role") != "assistant" or (speaks and done):
            self.add({"role": "assistant"}, path)
        return self.messages[-1]


def messages_of(instructions: str | None, items: Iterable[tuple[str, Item]], names: CallNames) -> Messages:
    """The chat's messages of a conversation: (path, item) pairs. Raises ApiError by path."""
    made = Messages()
    if instructions:
        made.add({"role": "system", "content": instructions}, "instructions")
    for path, item in items:
        _add(made, path, item, names)
    _join_leading(made)
    return made


@dataclass(frozen=True, slots=True)
class CallNames:
    """How tools with a namespace are called in the chat: (namespace, name) → the chat's name."""

    flat: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, item: Item) -> str:
        """A past call's name."""
        name = item.name or ""
        return self.flat.get((item.namespace, name), name) if item.namespace else name


def kind_of(item: Item) -> str:
    """An item's type; what has a role is a message."""
    return item.type or ("message" if item.role else "item_reference" if item.id else "")


def _add(made: Messages, path: str, item: Item, names: CallNames) -> None:
    match kind_of(item):
        case "message":
            _add_message(made, path, item)
        case "reasoning":
            if thoughts := _thoughts(path, item):
                message = made.assistant(path, speaks=True)
                message["reasoning_content"] = message.get("reasoning_content", "") + thoughts
        case "function_call":
            _add_call(made, path, item, names, item.arguments or "{}")
        case "custom_tool_call":
            _add_call(made, path, item, names, json.dumps({"input": item.input or ""}, ensure_ascii=False))
        case "function_call_output" | "custom_tool_call_output":
            if item.output is None:
                raise InvalidParameter(f"{path}.output", "A tool's output needs 'output'.")
            call = {"tool_call_id": item.call_id} if item.call_id else {}
            made.add({"role": "tool", "content": _content(item.output, f"{path}.output"), **call}, path)
        case "":
            raise InvalidParameter(f"{path}.type", "An item needs a type, or a role and content.")
        case other:
            raise Unsupported(f"{path}.type", f"Items of type {other!r} are for hosted tools, which this server lacks.")


def _add_message(made: Messages, path: str, item: Item) -> None:
    if item.role is None:
        raise InvalidParameter(f"{path}.role", "A message needs a role.")
    if item.content is None:
        raise InvalidParameter(f"{path}.content", "A message needs content.")
    content = _content(item.content, f"{path}.content")
    if item.role == "assistant":
        made.assistant(path, speaks=True)["content"] = content
    else:
        made.add({"role": item.role, "content": content}, path)


def _add_call(made: Messages, path: str, item: Item, names: CallNames, arguments: str) -> None:
    if not item.name:
        raise InvalidParameter(f"{path}.name", "A call needs the name of its tool.")
    function = {"name": names.of(item), "arguments": arguments}
    call = {"id": item.call_id or "", "type": "function", "function": function}
    made.assistant(path).setdefault("tool_calls", []).append(call)


def _content(content: str | list[Part], path: str) -> str | list[dict[str, Any]]:
    """Text as it is, parts in chat's words; what a model cannot see, chat refuses."""
    if isinstance(content, str):
        return content
    return [_part(part, f"{path}.{index}") for index, part in enumerate(content)]


def _part(part: Part, path: str) -> dict[str, Any]:
    extra = part.model_extra or {}
    if part.type != "input_image":
        return part.model_dump(include={"type", "text", "refusal"}, exclude_none=True)
    if not isinstance(extra.get("image_url"), str):
        raise Unsupported(f"{path}.file_id", "Images come as image_url.")
    detail = {"detail": extra["detail"]} if extra.get("detail") else {}
    return {"type": "image_url", "image_url": {"url": extra["image_url"], **detail}}


def _join_leading(made: Messages) -> None:
    """Instructions and the developer's first messages as one: many templates know a system message only in front."""
    count = 0
    for message in made.messages:
        if message["role"] not in ("system", "developer") or not _is_text(message["content"]):
            break
        count += 1
    if count > 1:
        text = "\n\n".join(_text(message["content"]) for message in made.messages[:count])
        made.messages[:count] = [{"role": "system", "content": text}]
        made.paths[:count] = made.paths[:1]


def _is_text(content: str | Sequence[dict[str, Any]]) -> bool:
    return isinstance(content, str) or all(part["type"] in ("input_text", "text") for part in content)


def _text(content: str | Sequence[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def sealed(thoughts: str) -> str:
    """Thoughts as an opaque text that clients send back (`reasoning.encrypted_content`)."""
    return _SEALED + base64.urlsafe_b64encode(zlib.compress(thoughts.encode())).decode()


def _thoughts(path: str, item: Item) -> str:
    """What a reasoning item says: its text, or what we sealed. Another server's cannot be read and are left out."""
    if item.content:
        return item.content if isinstance(item.content, str) else "".join(part.text or "" for part in item.content)
    if item.encrypted_content is None or not item.encrypted_content.startswith(_SEALED):
        return ""
    try:
        packed = base64.urlsafe_b64decode(item.encrypted_content.removeprefix(_SEALED))
        return zlib.decompressobj().decompress(packed, _MOST_THOUGHT_BYTES).decode()
    except (binascii.Error, zlib.error, ValueError) as error:
        raise InvalidParameter(f"{path}.encrypted_content", "It is not what this server has sent.") from error
