"""Grammars that an answer can be bound to, and what can be known of them before a model sees them; pure.

The worker's engine compiles them for its model's tokenizer and has the last word; a grammar that it refuses fails its
job as an invalid request. What is plainly wrong is told here, before there is a job.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum

from llguidance import LLMatcher, regex_to_lark

MOST_GRAMMAR_BYTES = 128 * 1024
"""What the engine takes, in UTF-8."""

MOST_CHECKED_BYTES = 16 * 1024
"""llguidance descends recursively: longer texts are left to the engine, whose compiler has a stack for them."""

SPACE = r"[\x20\x0A\x0D\x09]{1,40}"
"""Between the words of JSON: a model that may write any number of spaces sometimes does nothing else."""


class GrammarKind(StrEnum):
    """In the engine's words."""

    JSON_SCHEMA = "json_schema"
    JSON_OBJECT = "json_object"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole text of an answer looks like: `text` is a JSON Schema, a regular expression or a Lark grammar."""

    kind: GrammarKind
    text: str = ""


def complaint(grammar: Grammar) -> str | None:
    """What is wrong with a grammar, in one line; None when nothing is known to be. Takes milliseconds."""
    size = len(grammar.text.encode())
    if size > MOST_GRAMMAR_BYTES:
        return f"it is longer than {MOST_GRAMMAR_BYTES} bytes"
    if size > MOST_CHECKED_BYTES or grammar.kind is GrammarKind.JSON_OBJECT:
        return None
    error = LLMatcher.validate_grammar(_source(grammar))
    if not error:
        return None
    if grammar.kind is GrammarKind.JSON_SCHEMA:
        return _in_words(error)
    lines = [line.removeprefix("error: ") for line in error.splitlines() if line.startswith("error: ")]
    return lines[0] if lines else error.splitlines()[0]


def rule_of(grammar: Grammar) -> str:
    """A grammar as the right side of a rule in a larger Lark grammar. Raises ValueError for a Lark grammar."""
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            schema = {"x-guidance": {"whitespace_pattern": SPACE}, **json.loads(grammar.text)}
            return f"%json {json.dumps(schema, ensure_ascii=False)}"
        case GrammarKind.JSON_OBJECT:
            return rule_of(Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}'))
        case GrammarKind.REGEX:
            return f"/{regex_to_lark(grammar.text, 'dw')}/"
        case GrammarKind.LARK:
            raise ValueError("a Lark grammar has rules of its own")


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(grammar.text, 'dw')}/")
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.text)
        case _:
            return LLMatcher.grammar_from_json_schema(grammar.text)


def _in_words(error: str) -> str:
    line = error.splitlines()[0]
    start = "Unimplemented keys: "
    if not line.startswith(start):
        return line
    keywords = ", ".join(map(repr, json.loads(line.removeprefix(start))))
    return f"the schema uses what is not supported: {keywords}"
