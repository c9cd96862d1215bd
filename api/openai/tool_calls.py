"""Tool calls as the JSON that models write, `{"name": …, "arguments": {…}}`, and as OpenAI's objects; pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for; `arguments` is a JSON object as text."""

    name: str
    arguments: str

    def as_object(self, call_id: str) -> dict[str, Any]:
        """OpenAI's `tool_calls` entry."""
        return {"id": call_id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


def parse_call(inside: str) -> ToolCall | None:
    """Read what stands between the markers; None when it is not a call (the caller shows it as text)."""
    try:
        call = json.loads(inside)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not call["name"]:
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(call["name"], json.dumps(arguments, ensure_ascii=False))


def arguments_for_template(arguments: str) -> Any:
    """A past call's arguments as the object that chat templates print; the text itself when it is no JSON."""
    parsed = _object(arguments)
    return arguments if parsed is None else parsed


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
