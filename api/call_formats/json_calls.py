"""Calls whose arguments are a JSON object: Hermes' and Qwen's `json_tools`, Kimi K2, Mistral; pure."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from api.call_formats.parts import CallPart, as_json_text, as_name

_TEXT = r'"(?:[^"\\]|\\.)+"'
_NAMED = rf'\{{\s*"name"\s*:\s*(?P<quoted>{_TEXT})\s*,\s*"arguments"\s*:\s*(?=\{{)'
HERMES_HEAD = re.compile(rf"[\s\[\]}},]*{_NAMED}")
MISTRAL_LIST_HEAD = re.compile(rf'(?:\s*,\s*"id"\s*:\s*"(?P<id>\w*)")?[\s\[\]}},]*{_NAMED}')
MISTRAL_HEAD = re.compile(
    r"\s*(?:\[TOOL_CALLS\]\s*)?(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*(?P<id>\w+)\s*)?\[ARGS\]\s*(?=\{)"
)
KIMI_HEAD = re.compile(
    r"(?:\s|<\|tool_call_end\|>|<\|tool_call_begin\|>)*(?P<id>(?:functions\.)?(?P<name>[^\s<:]+):\d+)\s*"
    r"<\|tool_call_argument_begin\|>\s*(?=\{)"
)
LONGEST_HEAD_CHARS = 1024
"""The first head is looked for in so much of a section, before it is whole."""

STRING = re.compile(r'"(?:[^"\\\n]|\\[\s\S])*(?P<end>["\n])?')
"""A string, or what there is of it; a line break ends it too, because a string has none."""

_IN_STRING = re.compile(r'["\\]')
_OUTSIDE = re.compile(r'["{}\[\]]')


class JsonObjectScanner:
    """Finds the end of a JSON object in a text that grows, looking at every character once."""

    def __init__(self, start: int) -> None:
        self.at = start
        self.is_over = False
        self._depth = 0
        self._in_string = False

    def scan(self, text: str) -> None:
        """Move `at` forward: behind the object, or to the end of the text so far."""
        while not self.is_over:
            found = (_IN_STRING if self._in_string else _OUTSIDE).search(text, self.at)
            if found is None:
                self.at = len(text)
                return
            char = found[0]
            if char == "\\" and found.end() == len(text):  # what it escapes has not come yet
                self.at = found.start()
                return
            self.at = found.end() + (char == "\\")
            if char == '"':
                self._in_string = not self._in_string
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                self.is_over = self._depth == 0


class JsonCalls:
    """Implements CallReader. `heads` match what stands in front of a call's arguments, and name it."""

    def __init__(self, *heads: re.Pattern[str]) -> None:
        self._heads = heads
        self._scanner: JsonObjectScanner | None = None
        self._arguments: list[str] = []
        self._at = 0
        self._calls = 0
        self.is_broken = False

    def read(self, inside: str, *, whole: bool) -> list[CallPart]:
        """See CallReader."""
        parts: list[CallPart] = []
        while self._scanner is not None or self._begin(inside, parts, whole):
            assert self._scanner is not None
            start = self._at
            self._scanner.scan(inside)
            self._at = self._scanner.at
            self._grow(parts, inside[start : self._at])
            if not self._scanner.is_over:
                self.is_broken = self.is_broken or whole
                break
            self._scanner = None
            self.is_broken = self.is_broken or parsed("".join(self._arguments)) is None
            self._arguments = []
        if whole and not self._calls:
            return self._otherwise(inside)
        return parts

    def _begin(self, inside: str, parts: list[CallPart], whole: bool) -> bool:
        if not whole and not self._calls:
            inside = inside[:LONGEST_HEAD_CHARS]
        head = next((match for head in self._heads if (match := head.match(inside, self._at))), None)
        if head is None:
            return False
        named = head.groupdict()
        name = json.loads(named["quoted"], strict=False) if named.get("quoted") else named["name"]
        parts.append(CallPart("", as_name(name), named.get("id")))
        self._calls += 1
        self._at = head.end()
        self._scanner = JsonObjectScanner(self._at)
        return True

    def _grow(self, parts: list[CallPart], arguments: str) -> None:
        self._arguments.append(arguments)
        if parts and parts[-1].name is not None and not parts[-1].arguments:
            parts[-1] = CallPart(arguments, parts[-1].name, parts[-1].call_id)
        elif arguments:
            parts.append(CallPart(arguments))

    def _otherwise(self, inside: str) -> list[CallPart]:
        """Calls in JSON with other keys or in another order."""
        calls = calls_of(parsed(inside))
        self.is_broken = not calls
        self._calls = len(calls)
        return calls


def calls_of(value: Any) -> list[CallPart]:
    """`{"name", "arguments" or "parameters"}`, or a list of them; empty when it is something else."""
    listed = value if isinstance(value, list) else [value]
    calls = [_call_of(item) for item in listed]
    return [call for call in calls if call is not None] if all(calls) else []


def _call_of(value: Any) -> CallPart | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = parsed(arguments)
    if not isinstance(arguments, dict):
        return None
    return CallPart(as_json_text(arguments), as_name(value["name"]))


def parsed(text: str) -> Any:
    """JSON, with line breaks inside strings as models write them; None when it is not."""
    try:
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def is_in_string(strings: re.Pattern[str], text: str, at: int) -> bool | None:
    """Is a place inside a string? None: in one that has not been closed so far."""
    for string in strings.finditer(text):
        if string.start() >= at:
            break
        if at < string.end() or string["end"] is None:
            return None if string["end"] is None else string["end"] != "\n"
    return False
