"""What is wrong with a grammar is said before there is a job; what is right passes."""

from __future__ import annotations

import json

import pytest

from scheduler.grammars import MOST_CHECKED_BYTES, MOST_GRAMMAR_BYTES, Grammar, GrammarKind, complaint, rule_of

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


@pytest.mark.parametrize(
    ("kind", "text", "part"),
    [
        (GrammarKind.JSON_SCHEMA, '{"properties": {"a": {"not": {"type": "string"}}}}', "'not'"),
        (GrammarKind.JSON_SCHEMA, '{"type": 5}', "type must be a string"),
        (GrammarKind.JSON_SCHEMA, '{"$ref": "#/$defs/nowhere"}', "/$defs/nowhere"),
        (GrammarKind.REGEX, "(?=a)b", "look-around"),
        (GrammarKind.LARK, 'start: "a', "lexer error"),
        (GrammarKind.LARK, 'begin: "a"', "start"),
        (GrammarKind.REGEX, "a" * (MOST_GRAMMAR_BYTES + 1), str(MOST_GRAMMAR_BYTES)),
    ],
)
def test_a_wrong_grammar_is_told_what_is_wrong(kind: GrammarKind, text: str, part: str) -> None:
    said = complaint(Grammar(kind, text))
    assert said is not None
    assert part in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(GrammarKind.JSON_OBJECT),
        Grammar(GrammarKind.JSON_SCHEMA, json.dumps(PERSON)),
        Grammar(GrammarKind.REGEX, r"[a-f]{2}|\d+"),
        Grammar(GrammarKind.LARK, 'start: "a" | "b"'),
        Grammar(GrammarKind.LARK, "x" * (MOST_CHECKED_BYTES + 1)),  # too long for a look: the engine will tell
    ],
)
def test_nothing_is_said_of_others(grammar: Grammar) -> None:
    assert complaint(grammar) is None


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(GrammarKind.JSON_OBJECT),
        Grammar(GrammarKind.JSON_SCHEMA, json.dumps(PERSON)),
        Grammar(GrammarKind.REGEX, r"[a-f]{2}/\d+"),
    ],
)
def test_a_grammar_can_be_a_rule_of_a_larger_one(grammar: Grammar) -> None:
    assert complaint(Grammar(GrammarKind.LARK, f'start: "<" answer ">"\nanswer: {rule_of(grammar)}')) is None
    with pytest.raises(ValueError, match="rules of its own"):
        rule_of(Grammar(GrammarKind.LARK, 'start: "a"'))
