"""Arguments that are written without quotes: what JSON value a text stands for, by the schema's types; pure."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

from api.call_formats.json_calls import parsed
from api.call_formats.parts import as_json_text

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
        return as_json_text(text)
    for reading in (_json_value, _python_value, str):
        value = _fitted(reading(text), types)
        if value is not _MISSING:
            return as_json_text(value, str)
    return as_json_text(_json_value(text), str)


def argument_types(schema: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """The JSON types of each property of a function's parameters."""
    properties = (schema or {}).get("properties")
    if not isinstance(properties, Mapping):
        return {}
    return {str(name): tuple(sorted(types_of(part, schema or {}))) for name, part in properties.items()}


def types_of(schema: Any, root: Mapping[str, Any]) -> set[str]:
    """The JSON types that a schema names, through references inside `root` and alternatives; empty: it names none."""
    types: set[str] = set()
    waiting, followed = [schema], set()
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping):
            continue
        types |= _own_types(part)
        for keyword in ("anyOf", "oneOf", "allOf"):
            waiting += _listed(part.get(keyword))
        reference = part.get("$ref")
        if isinstance(reference, str) and reference not in followed:
            followed.add(reference)  # once: they may go in circles
            waiting.append(resolved(reference, root))
    return types


def _own_types(schema: Mapping[str, Any]) -> set[str]:
    named = schema.get("type")
    types = {named} if isinstance(named, str) else {name for name in _listed(named) if isinstance(name, str)}
    values = _listed(schema.get("enum")) + ([schema["const"]] if "const" in schema else [])
    return types or {_type_of(value) for value in values}


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
