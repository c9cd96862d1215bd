"""Arguments that are written without quotes: what JSON value a text stands for, by the schema's types; pure."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from api.call_formats.json_calls import parsed

MOST_REFERENCES = 8
"""How deep `$ref` and alternatives are followed when a schema's types are looked up."""

_NAMES: Sequence[tuple[type, str]] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
    (type(None), "null"),
)
_MISSING = object()


def as_json(text: str, types: Sequence[str]) -> str:
    """An argument's text as JSON; no `types`: nothing is known of it."""
    if tuple(types) == ("string",):
        return _dumped(text)
    for reading in (_json_value, _python_value, str):
        value = _fitted(reading(text), types)
        if value is not _MISSING:
            return _dumped(value)
    return _dumped(_json_value(text))


def argument_types(schema: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The JSON types of each property of a function's parameters."""
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {str(name): tuple(sorted(types_of(part, schema or {}))) for name, part in properties.items()}


def types_of(schema: Any, root: Mapping[str, Any], depth: int = 0) -> set[str]:
    """The JSON types that a schema names, through references inside `root` and alternatives; empty: it names none."""
    if not isinstance(schema, Mapping) or depth > MOST_REFERENCES:
        return set()
    named = schema.get("type")
    types = {named} if isinstance(named, str) else set(named) if isinstance(named, list) else set()
    if not types:
        types = {_type_of(value) for value in _listed(schema.get("enum"))}
        types |= {_type_of(schema["const"])} if "const" in schema else set()
    for keyword in ("anyOf", "oneOf", "allOf"):
        for part in _listed(schema.get(keyword)):
            types |= types_of(part, root, depth + 1)
    if isinstance(reference := schema.get("$ref"), str):
        types |= types_of(resolved(reference, root), root, depth + 1)
    return {name for name in types if isinstance(name, str)}


def resolved(reference: str, root: Mapping[str, Any]) -> Any:
    """What `#/…` points to (RFC 6901, without escapes); None where there is nothing."""
    target: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        target = target.get(step) if isinstance(target, Mapping) else None
    return target


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _fitted(value: Any, types: Sequence[str]) -> Any:
    """The value where it is of one of the types (3.0 is an integer, if need be); else _MISSING."""
    name = _type_of(value)
    if not types or name in types or (name == "integer" and "number" in types):
        return value
    return int(value) if name == "number" and "integer" in types and value.is_integer() else _MISSING


def _type_of(value: Any) -> str:
    return next((name for kind, name in _NAMES if isinstance(value, kind)), "")


def _json_value(text: str) -> Any:
    """The text itself where it is no JSON."""
    value = parsed(text)
    return text if value is None and text.strip() != "null" else value


def _python_value(text: str) -> Any:
    """True, None, {'a': 1} as Python writes them; the text itself where it is nothing of the kind."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
