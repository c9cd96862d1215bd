"""Arguments as Gemma's models write them: JSON without quotes around keys, strings between quotes of its own; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from api.call_formats.values import types_of
from api.openai.argument_grammar import (
    RAW,
    TOLD,
    Inexpressible,
    alternatives,
    as_list,
    check_keywords,
    json_value,
    lark_rules,
    listed,
    literals_of,
    properties_of,
)
from api.openai.guiding import schema_grammar
from api.openai.lark_grammar import LARK
from scheduler.grammars import rule_of

QUOTE = "quote"
"""The rule of Gemma's quote; whoever uses the values below defines it, and RAW, which ends with one."""

_SCALARS = frozenset({"integer", "number", "boolean", "null"})
_ANYTHING = "anything"


def gemma_value(schema: Mapping[str, Any], root: Mapping[str, Any], rule: str) -> tuple[str, list[str]]:
    """See argument_grammar.Value."""
    values = _Values(root, rule)
    return values.name_of(schema), values.rules()


def anything_in_gemma() -> list[str]:
    """Rules of any value, which others use."""
    scalar = rule_of(schema_grammar({"type": sorted(_SCALARS)}))
    items = f'"[" ({_ANYTHING} ("," {_ANYTHING})*)? "]"'
    return [
        f'{_ANYTHING}: {QUOTE} {RAW} | scalar | {items} | "{{" (pair ("," pair)*)? "}}"',
        f'pair: /[A-Za-z0-9_.-]+/ ":" {_ANYTHING}',
        f"scalar: {scalar}",
    ]


class _Values:
    """Rules of values, one for each part of a schema, however often and in what circles it is referred to."""

    def __init__(self, root: Mapping[str, Any], rule: str) -> None:
        self._root = root
        self._rule = rule
        self._names: dict[int, str] = {}
        self._waiting: list[tuple[str, Mapping[str, Any]]] = []

    def name_of(self, schema: Any) -> str:
        """The rule of a part of the schema."""
        if not isinstance(schema, Mapping) or not set(schema) - TOLD:
            return _ANYTHING
        if id(schema) not in self._names:
            self._names[id(schema)] = f"{self._rule}_{len(self._names)}"
            self._waiting.append((self._names[id(schema)], schema))
        return self._names[id(schema)]

    def rules(self) -> list[str]:
        """All that are needed. Raises Inexpressible."""
        rules: list[str] = []
        while self._waiting:
            rule, schema = self._waiting.pop()
            forms: list[str] = []
            for index, part in enumerate(alternatives(schema, self._root)):
                forms += self._forms(part, f"{rule}_{index}", rules)
            rules.append(f"{rule}: {' | '.join(forms)}")
        return rules

    def _forms(self, part: Mapping[str, Any], rule: str, rules: list[str]) -> list[str]:
        """What one alternative may look like."""
        if LARK in part:
            rules += lark_rules(part, f"{rule}_text")
            return [f"{QUOTE} {rule}_text {QUOTE}"]
        literals = literals_of(part)
        if literals is not None:
            return [_literal(value) for value in literals]
        types = sorted(types_of(part, self._root))
        if not types:
            check_keywords(part, TOLD)
            return [_ANYTHING]
        return [self._typed(name, part, f"{rule}_{name}", rules) for name in types]

    def _typed(self, name: str, part: Mapping[str, Any], rule: str, rules: list[str]) -> str:
        """A value of one type."""
        if name in _SCALARS:
            rules += json_value({**part, "type": name}, self._root, rule)[1]
            return rule
        if name == "string":
            check_keywords(part, TOLD | {"type"})
            return f"{QUOTE} {RAW}"
        if name == "array":
            check_keywords(part, TOLD | {"type", "items"})
            item = self.name_of(part.get("items"))
            return f'"[" ({item} ("," {item})*)? "]"'
        properties = properties_of(part, self._root)
        items = [(f'"{each.name}:" {self.name_of(each.schema)}', each.is_required) for each in properties]
        rules += listed(items, rule, ",")
        return f'"{{" {rule} "}}"'


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return f"{QUOTE} {json.dumps(value, ensure_ascii=False)} {QUOTE}" if value else f"{QUOTE} {QUOTE}"
    if as_list(value) or isinstance(value, dict):
        raise Inexpressible("a value of 'enum' is no plain text and no number")
    return json.dumps(json.dumps(value))
