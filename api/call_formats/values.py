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
    value = parsed(text) if text.strip() != "null" else None
    is_json = value is not None or text.strip() == "null"
    if is_json and (not types or _fits(value, types)):
        return _dumped(value)
    if types and not is_json and "string" not in types:
        value = _python_literal(text)
        if value is not _MISSING and _fits(value, types):
            return _dumped(value)
    if isinstance(value, float) and "integer" in types and value.is_integer():
        return _dumped(int(value))
    return _dumped(text if "string" in types or not is_json else value)


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


def _fits(value: Any, types: Sequence[str]) -> bool:
    name = _type_of(value)
    return name in types or (name == "integer" and "number" in types)


def _type_of(value: Any) -> str:
    return next((name for kind, name in _NAMES if isinstance(value, kind)), "")


def _python_literal(text: str) -> Any:
    """True, None, {'a': 1} as Python writes them; _MISSING when it is none."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return _MISSING


def _dumped(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
