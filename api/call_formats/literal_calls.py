"""Calls as programs write them: LFM's Python lists, Gemma's objects; read when they are whole; pure."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from typing import Any

from api.call_formats.json_calls import parsed
from api.call_formats.parts import CallPart, as_json_text

MOST_DEPTH = 64
_JSON_WORDS = {"true": True, "false": False, "null": None}
PYTHON_STRING = re.compile(r"""(?P<quote>["'])(?:(?!(?P=quote))[^\\\n]|\\[\s\S])*(?P<end>(?P=quote)|\n)?""")
_GEMMA_HEAD = re.compile(r"\s*,?\s*call:(?P<name>[\w.-]+)\s*(?=\{)")
_GEMMA_KEY = re.compile(r"\s*(?P<key>[^\s:{}\[\],]+)\s*:")
_GEMMA_BARE = re.compile(r"\s*([^,{}\[\]]*)")


class _Unreadable(Exception):
    """It is not in the format."""


class LiteralCalls:
    """Implements CallReader over a parser of whole sections, which raises _Unreadable."""

    def __init__(self, parse: Callable[[str], list[CallPart]]) -> None:
        self._parse = parse
        self.is_broken = False

    def read(self, inside: str, *, whole: bool) -> list[CallPart]:
        """See CallReader."""
        if not whole:
            return []
        try:
            return self._parse(inside)
        except _Unreadable:
            self.is_broken = True
            return []


def python_calls(text: str) -> list[CallPart]:
    """`[name(key="value", other=[1, true])]`, with JSON's words allowed."""
    try:
        listed = ast.parse(text.strip(), mode="eval").body
        calls = listed.elts if isinstance(listed, ast.List) else [listed]
        return [_python_call(call) for call in calls]
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _Unreadable from error


def gemma_calls(quote: str) -> Callable[[str], list[CallPart]]:
    """A parser of `call:name{key:value,…}`, in which strings stand between `quote`s."""

    def parse(text: str) -> list[CallPart]:
        reader = _GemmaReader(text, quote)
        calls = []
        while head := _GEMMA_HEAD.match(text, reader.at):
            reader.at = head.end()
            calls.append(CallPart(_dumped(reader.value(0)), head["name"]))
        if not calls or text[reader.at :].strip():
            raise _Unreadable
        return calls

    return parse


def in_gemma_string(quote: str) -> Callable[[str, int], bool | None]:
    """Is a place inside a string between `quote`s? None: in one that has not been closed so far."""

    def is_in(text: str, at: int) -> bool | None:
        if text.count(quote, 0, at) % 2 == 0:
            return False
        return True if text.find(quote, at) >= 0 else None

    return is_in


class _JsonWords(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:
        """`true`, `false` and `null` are values."""
        return ast.Constant(_JSON_WORDS[node.id]) if node.id in _JSON_WORDS else node


def _python_call(node: ast.expr) -> CallPart:
    if not isinstance(node, ast.Call) or node.args or any(keyword.arg is None for keyword in node.keywords):
        raise _Unreadable
    name = ast.unparse(node.func)
    if not all(part.isidentifier() for part in name.split(".")):
        raise _Unreadable
    arguments = {keyword.arg: ast.literal_eval(_JsonWords().visit(keyword.value)) for keyword in node.keywords}
    return CallPart(_dumped(arguments), name)


class _GemmaReader:
    """Reads values from `at` on."""

    def __init__(self, text: str, quote: str) -> None:
        self._text = text
        self._quote = quote
        self.at = 0

    def value(self, depth: int) -> Any:
        """An object, an array, a string, or a bare word. Raises _Unreadable."""
        if depth > MOST_DEPTH:
            raise _Unreadable
        if self._take("{"):
            return dict(self._items("}", lambda: (self._key(), self.value(depth + 1))))
        if self._take("["):
            return self._items("]", lambda: self.value(depth + 1))
        if self._take(self._quote):
            return self._until_quote()
        bare = _GEMMA_BARE.match(self._text, self.at)
        if bare is None or not bare[1].strip():
            raise _Unreadable
        self.at = bare.end()
        word = bare[1].strip()
        value = parsed(word)
        return word if value is None and word != "null" else value

    def _items(self, closing: str, read: Callable[[], Any]) -> list[Any]:
        items: list[Any] = []
        while not self._take(closing):
            if items and not self._take(","):
                raise _Unreadable
            items.append(read())
        return items

    def _key(self) -> str:
        if self._take(self._quote):
            key = self._until_quote()
            if not self._take(":"):
                raise _Unreadable
            return key
        match = _GEMMA_KEY.match(self._text, self.at)
        if match is None:
            raise _Unreadable
        self.at = match.end()
        return match["key"]

    def _until_quote(self) -> str:
        end = self._text.find(self._quote, self.at)
        if end < 0:
            raise _Unreadable
        start, self.at = self.at, end + len(self._quote)
        return self._text[start:end]

    def _take(self, token: str) -> bool:
        at = self.at
        while at < len(self._text) and self._text[at].isspace():
            at += 1
        if not self._text.startswith(token, at):
            return False
        self.at = at + len(token)
        return True


def _dumped(value: Any) -> str:
    if not isinstance(value, dict):
        raise _Unreadable
    try:
        return as_json_text(value)
    except (TypeError, ValueError) as error:
        raise _Unreadable from error
