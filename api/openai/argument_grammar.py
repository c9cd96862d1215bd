"""The arguments of a call as Lark rules, by a function's schema: as one JSON object, or each by itself; pure."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from api.call_formats.values import resolved, types_of
from api.errors import InvalidParameter
from api.openai.guiding import schema_grammar
from api.openai.lark_grammar import LARK, NotEmbeddable, embedded
from api.openai.lark_regex import as_regex
from api.openai.schemas import FunctionDefinition
from scheduler.grammars import Grammar, GrammarKind, complaint, rule_of

RAW = "raw"
"""The rule of text without quotes, up to what closes it and with that; whoever uses the values below defines it."""

DEFINED = ("$defs", "definitions")
TOLD = frozenset({"title", "description", "default", "examples", "deprecated", "$comment", "$schema", "$id", *DEFINED})
_OBJECT = TOLD | {"type", "properties", "required", "additionalProperties"}
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]+")

Value = Callable[[Mapping[str, Any], Mapping[str, Any], str], tuple[str, list[str]]]
"""What a value that fits a schema looks like, and rules for that, named after the third argument. Takes the schema and
the one that its references point into; raises Inexpressible."""


class Inexpressible(Exception):
    """The model's way of writing has no grammar for a schema."""


@dataclass(frozen=True, slots=True)
class OfferedFunction:
    """A function that may be called, and the path of its definition in the body."""

    path: str
    definition: FunctionDefinition

    @property
    def texts(self) -> list[str]:
        """Arguments that are text of a Lark grammar."""
        properties = (self.definition.parameters or {}).get("properties")
        listed = properties.items() if isinstance(properties, Mapping) else ()
        return [name for name, part in listed if isinstance(part, Mapping) and _is_text(part)]

    @property
    def unquotable_texts(self) -> list[str]:
        """Those of them whose grammar cannot be followed inside JSON."""
        properties = (self.definition.parameters or {}).get("properties", {})
        return [name for name in self.texts if "pattern" not in quotable(properties[name])]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument; references in its `schema` point into `root`."""

    name: str
    schema: Mapping[str, Any]
    root: Mapping[str, Any]
    is_required: bool


def whole_arguments(function: OfferedFunction) -> str:
    """All arguments as one JSON object; any object where the schema is not strict and cannot be followed."""
    schema: dict[str, Any] = function.definition.parameters or {"properties": {}, "additionalProperties": False}
    if function.texts:
        schema = schema | {"properties": {name: quotable(part) for name, part in schema["properties"].items()}}
    grammar = schema_grammar({"type": "object"} | schema)
    trouble = complaint(grammar)
    if trouble is None:
        return rule_of(grammar)
    if function.definition.strict:
        raise InvalidParameter(f"{function.path}.parameters", f"{trouble}.")
    return rule_of(Grammar(GrammarKind.JSON_OBJECT))


def _is_text(schema: Mapping[str, Any]) -> bool:
    return isinstance(schema.get(LARK), str) and "pattern" not in schema


def quotable(schema: Any) -> Any:
    """The schema of a text, with its Lark grammar as a pattern where it can be one."""
    if not isinstance(schema, Mapping) or not _is_text(schema):
        return schema
    try:
        return {**schema, "pattern": f"^(?:{as_regex(schema[LARK])})$"}
    except NotEmbeddable:
        return schema


def parameters_of(function: OfferedFunction) -> list[Parameter]:
    """A function's arguments, in the order of its schema. Raises Inexpressible where that says more than a list."""
    schema = function.definition.parameters or {}
    return properties_of(schema, schema)


def listed(items: Sequence[tuple[str, bool]], rule: str, separator: str) -> list[str]:
    """Rules of a list, in order, of items that are required (True) or not, with a separator between two of them."""
    if not separator:
        parts = [item if is_required else f"({item})?" for item, is_required in items]
        return [f"{rule}: {' '.join(parts) or '//'}"]
    comma = json.dumps(separator)
    rules = [f"{rule}: {rule}_first_0", f"{rule}_first_{len(items)}: //", f"{rule}_next_{len(items)}: //"]
    for index, (item, is_required) in enumerate(items):
        then = f"{rule}_next_{index + 1}"
        rules.append(f"{rule}_item_{index}: {item}")
        skipped = "" if is_required else f" | {rule}_first_{index + 1}"
        rules.append(f"{rule}_first_{index}: {rule}_item_{index} {then}{skipped}")
        skipped = "" if is_required else f" | {then}"
        rules.append(f"{rule}_next_{index}: {comma} {rule}_item_{index} {then}{skipped}")
    return rules


def json_value(schema: Mapping[str, Any], root: Mapping[str, Any], rule: str) -> tuple[str, list[str]]:
    """A value as JSON; see Value."""
    grammar = schema_grammar({**{name: root[name] for name in DEFINED if name in root}, **quotable(schema)})
    trouble = complaint(grammar)
    if trouble is not None:
        raise Inexpressible(trouble)
    return rule, [f"{rule}: {rule_of(grammar)}"]


def bare_value(close: str, schema: Mapping[str, Any], root: Mapping[str, Any], rule: str) -> tuple[str, list[str]]:
    """A value that ends where `close` stands: text without quotes, all else as JSON; see Value."""
    if LARK in schema:
        return rule, lark_rules(schema, rule)
    parts = alternatives(schema, root)
    texts = _listed_texts(parts)
    if texts is not None:
        return rule, [f"{rule}: {_one_of(texts, close)}"]
    types = types_of(schema, root)
    if types and "string" not in types:
        return json_value(schema, root, rule)
    if types - {"string", "null"}:
        raise Inexpressible("text without quotes cannot be told from values of other types: name one type")
    for part in parts:
        check_keywords(part, TOLD | {"type"})
    return RAW, []


def lark_rules(schema: Mapping[str, Any], rule: str) -> list[str]:
    """Text that follows a grammar of the caller's. Raises Inexpressible."""
    try:
        return embedded(str(schema[LARK]), rule)
    except NotEmbeddable as error:
        raise Inexpressible(str(error)) from error


def properties_of(schema: Mapping[str, Any], root: Mapping[str, Any]) -> list[Parameter]:
    """The properties of an object. Raises Inexpressible where the schema says more of them, or leaves them open."""
    check_keywords(schema, _OBJECT)
    properties = schema.get("properties") or {}
    required = as_list(schema.get("required"))
    if not properties and schema and schema.get("additionalProperties") is not False:
        raise Inexpressible("an object whose properties are not listed")
    missing = [name for name in required if name not in properties]
    odd = [name for name in properties if not _PLAIN_KEY.fullmatch(name)]
    if missing or odd:
        raise Inexpressible(f"the property {(missing or odd)[0]!r} is not listed, or its name has other characters")
    return [
        Parameter(name, part if isinstance(part, Mapping) else {}, root, name in required)
        for name, part in properties.items()
        if part is not False
    ]


def alternatives(schema: Any, root: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a schema is one of, through references and `anyOf`, each followed once. Raises Inexpressible."""
    found: list[Mapping[str, Any]] = []
    waiting, followed = [schema], set()
    while waiting:
        part = waiting.pop(0)
        if not isinstance(part, Mapping):
            raise Inexpressible("a part of it is missing, or no object")
        reference = part.get("$ref")
        choices = as_list(part.get("anyOf")) + as_list(part.get("oneOf"))
        if reference is None and not choices:
            found.append(part)
            continue
        check_keywords(part, TOLD | {"anyOf", "oneOf", "$ref"})
        waiting += choices
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)
            waiting.append(resolved(reference, root))
    if not found:
        raise Inexpressible("its references go in circles")
    return found


def literals_of(part: Mapping[str, Any]) -> list[Any] | None:
    """All values that a schema allows, where it lists them."""
    if "const" in part:
        return [part["const"]]
    return [None] if part.get("type") == "null" else as_list(part.get("enum")) or None


def check_keywords(schema: Mapping[str, Any], known: frozenset[str]) -> None:
    """Raise Inexpressible for a keyword that no grammar here follows."""
    unknown = sorted(set(schema) - known)
    if unknown:
        raise Inexpressible(f"this model's calls cannot be bound to the keyword {unknown[0]!r}")


def as_list(value: Any) -> list[Any]:
    """A list, whatever a schema has in its place."""
    return value if isinstance(value, list) else []


def _literals(parts: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    found = [literals_of(part) for part in parts]
    return None if None in found else [value for values in found for value in values or ()]


def _listed_texts(parts: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """What a value is written as, where all that it can be is listed and is text or null."""
    literals = _literals(parts)
    if literals is None or not all(text is None or isinstance(text, str) for text in literals):
        return None
    return ["null" if text is None else str(text) for text in literals]


def _one_of(texts: Sequence[str], close: str) -> str:
    """An expression for one of these texts, up to `close`. Raises Inexpressible."""
    if any(text.strip() != text or not text or close in text for text in texts):
        raise Inexpressible("a value of 'enum' that is empty, or has white space around it, cannot be told apart")
    return " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
