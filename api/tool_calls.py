"""Tool calls as the JSON that models write, `{"name": …, "arguments": {…}}`; pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asked for; `arguments` is a JSON object as text."""

    name: str
    arguments: str


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


class CallReader:
    """Reads a call while it is written, in the format that its grammar allows: its name, then its arguments."""

    def __init__(self) -> None:
        self.name: str | None = None
        self._at = 0
        self._depth = 0
        self._in_string = self._is_escaped = self._is_over = False

    def read(self, inside: str) -> str:
        """The arguments' text that is new in `inside`, which is all of the call so far."""
        if self.name is None:
            head = _HEAD.match(inside)
            if head is None:
                return ""
            self.name, self._at = json.loads(head[1]), head.end()
        start = self._at
        while self._at < len(inside) and not self._is_over:
            self._take(inside[self._at])
            self._at += 1
        return inside[start : self._at]

    def _take(self, char: str) -> None:
        if self._in_string:
            self._in_string = self._is_escaped or char != '"'
            self._is_escaped = char == "\\" and not self._is_escaped
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self._is_over = self._depth == 0


def arguments_for_template(arguments: str) -> Any:
    """A past call's arguments as the object that chat templates print; the text itself when it is no JSON."""
    parsed = _object(arguments)
    return arguments if parsed is None else parsed


def _object(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
