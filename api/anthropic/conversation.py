"""From Anthropic's turns to OpenAI's messages, and back from a path in those to the caller's field; pure.

Turns of one role that follow each other become one. Results of tools become messages of role `tool`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from api.anthropic.blocks import Blocks, Part, numbered, required, text_part
from api.anthropic.schemas import Block, Content, Message
from api.anthropic.thoughts import carried
from api.errors import InvalidParameter

ERROR = "Error: "
"""In front of a tool's result that says is_error: templates have no word for it."""


@dataclass(slots=True)
class Turn:
    """One message of the chat. `paths`: of the block that each part came from."""

    role: str
    path: str
    parts: list[Part] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    fields: dict[str, Any] = field(default_factory=dict)

    def add(self, parts: list[tuple[str, Part]]) -> None:
        """More content."""
        for path, part in parts:
            self.parts.append(part)
            self.paths.append(path)

    def message(self) -> dict[str, Any]:
        """As OpenAI's message: text where nothing else is in it."""
        content: Any = self.parts
        if all(part["type"] == "text" for part in self.parts):
            content = "\n".join(part["text"] for part in self.parts)
        if self.role == "assistant" and not self.parts and self.fields:
            content = None
        return {"role": self.role, "content": content, **self.fields}


class Conversation:
    """Reads turns, one after the other. Raises ApiError by path."""

    def __init__(self, system: Content | None, messages: list[Message]) -> None:
        self._blocks = Blocks()
        self._tools: dict[str, str] = {}
        self.turns: list[Turn] = []
        if system is not None:
            self._system(system, "system")
        for index, message in enumerate(messages):
            path = f"messages.{index}.content"
            match message.role:
                case "system":
                    self._system(message.content, path)
                case "user":
                    self._user(message.content, path)
                case "assistant":
                    self._assistant(message.content, path)
        if not any(turn.role != "system" for turn in self.turns):
            raise InvalidParameter("messages", "At least one turn must be a user's.")

    @property
    def ignored(self) -> list[str]:
        """Paths of blocks that are left out of the prompt."""
        return self._blocks.ignored

    @property
    def prefilled(self) -> bool:
        """Does the answer go on with a text of the assistant's?"""
        last = self.turns[-1]
        return last.role == "assistant" and bool(last.parts) and "tool_calls" not in last.fields

    def _system(self, content: Content, path: str) -> None:
        if text := self._blocks.text(content, path):
            self._turn("system", path).add([(path, text_part(text))])

    def _user(self, content: Content, path: str) -> None:
        seen: list[tuple[str, Part]] = []
        for at, block in numbered(content, path):
            if block.type == "tool_result":
                seen += self._tool_result(block, at)
            else:
                seen += self._blocks.block_parts(block, at)
        if seen or isinstance(content, str):
            self._turn("user", path).add(seen)

    def _tool_result(self, block: Block, path: str) -> list[tuple[str, Part]]:
        """Add the result's text; returns what else is in it: messages of role tool are text."""
        call_id = required(block.tool_use_id, path, "tool_use_id", block.type)
        if call_id not in self._tools:
            raise InvalidParameter(f"{path}.tool_use_id", f"No tool_use block before has the id {call_id!r}.")
        parts = self._blocks.parts(block.content if block.content is not None else "", f"{path}.content")
        told = Turn("tool", path, fields={"tool_call_id": call_id, "name": self._tools[call_id]})
        told.add([found for found in parts if found[1]["type"] == "text"])
        if block.is_error:
            told.parts.insert(0, text_part(ERROR + told.parts.pop(0)["text"] if told.parts else ERROR.rstrip()))
            told.paths = told.paths or [path]
        self.turns.append(told)
        return [found for found in parts if found[1]["type"] != "text"]

    def _assistant(self, content: Content, path: str) -> None:
        turn = self._turn("assistant", path)
        for at, block in numbered(content, path):
            match block.type:
                case "thinking":
                    self._thinking(turn, block, at)
                case "tool_use":
                    self._tool_use(turn, block, at)
                case _:
                    turn.add(self._blocks.block_parts(block, at))

    def _thinking(self, turn: Turn, block: Block, path: str) -> None:
        text = required(block.thinking, path, "thinking", block.type) or carried(block.signature or "") or ""
        if text:
            before = turn.fields.get("reasoning_content")
            turn.fields["reasoning_content"] = f"{before}\n{text}" if before else text

    def _tool_use(self, turn: Turn, block: Block, path: str) -> None:
        call_id = required(block.id, path, "id", block.type)
        name = required(block.name, path, "name", block.type)
        if not name:
            raise InvalidParameter(f"{path}.name", "A tool has a name.")
        self._tools[call_id] = name
        arguments = json.dumps(block.input or {}, ensure_ascii=False)
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        turn.fields.setdefault("tool_calls", []).append(call)

    def _turn(self, role: str, path: str) -> Turn:
        """The last turn, where it has this role; else a new one."""
        if not self.turns or self.turns[-1].role != role:
            self.turns.append(Turn(role, path))
        return self.turns[-1]


def field_of(turns: Sequence[Turn], path: str) -> str:
    """The caller's field that a path in the chat's messages stands for (`messages.3.content.1.type`)."""
    number, _, inner = path.removeprefix("messages.").partition(".")
    if not number.isdigit() or int(number) >= len(turns):
        return "messages"
    turn = turns[int(number)]
    part = inner.removeprefix("content.").partition(".")[0]
    if inner.startswith("content.") and part.isdigit() and int(part) < len(turn.paths):
        return turn.paths[int(part)]
    return turn.path
