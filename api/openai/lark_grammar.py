"""A caller's Lark grammar as rules of a larger one; pure."""

from __future__ import annotations

import re

LARK = "x-lark"
"""A keyword of our own in a schema: the string follows this grammar.

Where calls write strings without JSON's quotes its rules become rules of the call; inside JSON it becomes one
expression, where it can (lark_regex.py).
"""

_TOKEN = re.compile(
    r"""(?P<comment>//[^\n]*)
    |(?P<text>"(?:\\.|[^"\\\n])*"i?|/(?:\\.|[^/\\\n])+/[a-z]*)
    |%import[ \t]+common(?:\.(?P<one>\w+)|[ \t]*\((?P<many>[^)]*)\))(?![ \t]*->)
    |(?P<alias>->[ \t]*\w+)
    |(?P<name>[A-Za-z_]\w*)
    |(?P<unknown>%\w*|<|\[)
    |(?P<other>[\s\S])""",
    re.VERBOSE,
)


class NotEmbeddable(Exception):
    """A grammar that is right by itself, and has what cannot stand inside another one."""


def embedded(grammar: str, rule: str) -> list[str]:
    """Its rules, all of them named after `rule`, which is where they start; imports as they are.

    Raises NotEmbeddable.
    """
    tokens = list(_TOKEN.finditer(grammar))
    imported = {name for token in tokens for name in re.findall(r"\w+", token["one"] or token["many"] or "")}
    rules = "".join(_renamed(token, rule, imported) for token in tokens)
    return [*(f"%import common.{name}" for name in sorted(imported)), *filter(str.strip, rules.splitlines())]


def _renamed(token: re.Match[str], rule: str, imported: set[str]) -> str:
    match token.lastgroup:
        case "comment" | "alias" | "one" | "many":
            return ""
        case "name" if token[0] not in imported:
            return _name(token[0], rule)
        case "unknown":
            raise NotEmbeddable(f"{token[0]!r} is not supported in the grammar of a tool's input")
        case _:
            return token[0]


def _name(name: str, rule: str) -> str:
    if name == "start":
        return rule
    return f"{rule.upper()}_{name}" if name.isupper() else f"{rule}_{name}"
