"""A Lark grammar as one regular expression, where no rule contains itself; pure.

That is how text of a grammar is written inside a JSON string: llguidance follows the escapes of one expression, but its
lexer could not tell several terminals apart whose escapes begin alike.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from api.openai.guiding import in_regex
from api.openai.lark_grammar import NotEmbeddable

MOST_CHARS = 16 * 1024
"""Rules that are used often are written often."""

COMMON: Mapping[str, str] = {
    "CNAME": "[_A-Za-z][_A-Za-z0-9]*",
    "CR": r"\r",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "DIGIT": "[0-9]",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
    "FLOAT": r"(?:[0-9]+[eE][+\-]?[0-9]+|(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+\-]?[0-9]+)?)",
    "HEXDIGIT": "[a-fA-F0-9]",
    "INT": "[0-9]+",
    "LCASE_LETTER": "[a-z]",
    "LETTER": "[A-Za-z]",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "SIGNED_INT": r"[+\-]?[0-9]+",
    "UCASE_LETTER": "[A-Z]",
    "WORD": "[A-Za-z]+",
    "WS": r"[ \t\x0C\r\n]+",
    "WS_INLINE": r"[ \t]+",
}
"""Terminals of Lark's library that can be imported here."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*")(?P<any_case>i?)
    |/(?P<regex>(?:\\.|[^/\\\n])+)/(?P<flags>[a-z]*)
    |%import[ \t]+common(?:\.(?P<one>\w+)|[ \t]*\((?P<many>[^)]*)\))(?![ \t]*->)
    |(?P<alias>->[ \t]*\w+)
    |(?P<head>[?!]?[A-Za-z_]\w*[ \t]*:)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<times>~[ \t]*(?P<least>[0-9]+)(?:[ \t]*\.\.[ \t]*(?P<most>[0-9]+))?)
    |(?P<braces>\{[0-9]*(?:,[0-9]*)?\})
    |(?P<range>\.\.)
    |(?P<sign>[()\[\]|?*+])""",
    re.VERBOSE,
)


def as_regex(grammar: str) -> str:
    """An expression for the same texts, of a grammar that llguidance takes. Raises NotEmbeddable."""
    return _Rules(grammar).regex("start")


class _Rules:
    """The definitions of a grammar."""

    def __init__(self, grammar: str) -> None:
        self._tokens: dict[str, list[re.Match[str]]] = {}
        self._known: dict[str, str] = {}
        self._open: set[str] = set()
        self._read(grammar)

    def regex(self, name: str) -> str:
        """Of one rule or terminal."""
        if name not in self._known:
            if name in self._open:
                raise NotEmbeddable(f"the rule {name!r} contains itself, which a JSON string cannot be bound to")
            if name not in self._tokens:
                raise NotEmbeddable(f"{name!r} is not defined, or not known here")
            self._open.add(name)
            self._known[name] = _Expression(self._tokens[name], self).whole()
            self._open.discard(name)
        return self._known[name]

    def _read(self, grammar: str) -> None:
        at, current = 0, None
        while at < len(grammar):
            token = _TOKEN.match(grammar, at)
            if token is None:
                raise NotEmbeddable(f"{grammar[at : at + 10]!r} is not supported inside a JSON string")
            at = token.end()
            if token["head"]:
                current = token["head"].strip("?! \t:")
                self._tokens[current] = []
            elif token["one"] or token["many"]:
                for name in re.findall(r"\w+", token["one"] or token["many"]):
                    self._import(name)
            elif not token["space"] and not token["alias"] and current is not None:
                self._tokens[current].append(token)

    def _import(self, name: str) -> None:
        if name not in COMMON:
            raise NotEmbeddable(f"common.{name} is not supported inside a JSON string")
        self._known[name] = COMMON[name]


class _Expression:
    """The right side of one definition, read from left to right."""

    def __init__(self, tokens: list[re.Match[str]], rules: _Rules) -> None:
        self._tokens = tokens
        self._rules = rules
        self._at = 0

    def whole(self) -> str:
        """All of it."""
        made = self._alternatives()
        if self._at < len(self._tokens):
            raise NotEmbeddable(f"{self._tokens[self._at][0]!r} is not expected where it stands")
        return made

    def _alternatives(self) -> str:
        found = [self._sequence()]
        while self._takes("|"):
            found.append(self._sequence())
        made = found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"
        if len(made) > MOST_CHARS:
            raise NotEmbeddable(f"written out, the grammar has more than {MOST_CHARS} characters")
        return made

    def _sequence(self) -> str:
        items = []
        while self._at < len(self._tokens) and self._tokens[self._at][0] not in ("|", ")", "]"):
            items.append(self._repeated())
        return "".join(items)

    def _repeated(self) -> str:
        item = self._atom()
        while self._at < len(self._tokens) and (times := _times(self._tokens[self._at])):
            item = f"(?:{item}){times}"
            self._at += 1
        return item

    def _atom(self) -> str:
        token = self._tokens[self._at]
        self._at += 1
        if token["name"]:
            return f"(?:{self._rules.regex(token['name'])})"
        if token["text"]:
            return self._range(token) if self._takes("..") else _literal(token)
        if token["regex"]:
            return _terminal(token)
        if token[0] not in ("(", "["):
            raise NotEmbeddable(f"{token[0]!r} is not expected where it stands")
        inside = self._alternatives()
        if not self._takes(")" if token[0] == "(" else "]"):
            raise NotEmbeddable(f"{token[0]!r} is not closed")
        return f"(?:{inside})" if token[0] == "(" else f"(?:{inside})?"

    def _range(self, first: re.Match[str]) -> str:
        last = self._tokens[self._at] if self._at < len(self._tokens) else first
        self._at += 1
        ends = [json.loads(token["text"]) if token["text"] else "" for token in (first, last)]
        if any(len(end) != 1 for end in ends):
            raise NotEmbeddable(f"{first[0]}.. is no range of characters")
        return f"[{in_regex(ends[0])}-{in_regex(ends[1])}]"

    def _takes(self, sign: str) -> bool:
        taken = self._at < len(self._tokens) and self._tokens[self._at][0] == sign
        self._at += taken
        return taken


def _times(token: re.Match[str]) -> str:
    """How often, in a regular expression; empty where that is not what the token says."""
    if token["times"]:
        return f"{{{token['least']},{token['most']}}}" if token["most"] else f"{{{token['least']}}}"
    if token["braces"]:
        least, comma, most = token["braces"][1:-1].partition(",")
        return f"{{{least or 0}{comma}{most}}}"
    return token[0] if token[0] in ("?", "*", "+") else ""


def _literal(token: re.Match[str]) -> str:
    try:
        text = in_regex(json.loads(token["text"]))
        text = text.replace("\n", r"\n").replace("\r", r"\r").replace("\t", r"\t")
    except ValueError as error:
        raise NotEmbeddable(f"{token['text']}: {error}") from error
    return f"(?i:{text})" if token["any_case"] else text


def _terminal(token: re.Match[str]) -> str:
    flags = token["flags"]
    if set(flags) - {"i", "s"}:
        raise NotEmbeddable(f"the flags of {token[0]} are not supported inside a JSON string")
    return f"(?{flags}:{token['regex']})"
