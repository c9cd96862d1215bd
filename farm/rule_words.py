"""A routing rule in words: from flags to its JSON, and from its JSON to the cells of a table; pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from farm.errors import UsageRefused

LISTS = ("tenants", "keys", "lanes")


def rule_of_flags(
    name: str,
    patterns: Mapping[str, str | None],
    targets: Sequence[str],
    fallback: Sequence[str],
    timeout_s: float | None,
    conditions: Sequence[str],
    parameters: Sequence[str],
    choices: Mapping[str, str | None],
) -> dict[str, Any]:
    """The rule as the API takes it. Raises UsageRefused."""
    given = {match: pattern for match, pattern in patterns.items() if pattern is not None}
    if len(given) != 1:
        raise UsageRefused("Say which models: one of --exact, --prefix and --regex.")
    if not targets:
        raise UsageRefused("Say who serves: --to MODEL.")
    [(match, pattern)] = given.items()
    timeout = {} if timeout_s is None else {"timeout_s": timeout_s}
    rule: dict[str, Any] = {"name": name, "match": match, "pattern": pattern}
    rule["targets"] = [_target(text) | timeout for text in targets]
    if fallback:
        rule["fallback"] = [{"model": model} | timeout for model in fallback]
    if conditions:
        rule["when"] = dict(_condition(*_pair(text, "--when")) for text in conditions)
    if parameters:
        rule["overrides"] = {name: _value(text) for name, text in (_pair(each, "--set") for each in parameters)}
    return rule | {choice: value for choice, value in choices.items() if value is not None}


def rule_row(rule: Mapping[str, Any]) -> list[str]:
    """The cells: name, match, pattern, when, targets, fallback, lane, overrides."""
    targets = ", ".join(_weighted(target, alone=len(rule["targets"]) == 1) for target in rule["targets"])
    fallback = ", ".join(target["model"] for target in rule.get("fallback", ()))
    when, overrides = _words(rule.get("when", {})), _words(rule.get("overrides", {}))
    return [rule["name"], rule["match"], rule["pattern"], when, targets, fallback, rule.get("lane", ""), overrides]


def _target(text: str) -> dict[str, Any]:
    """`model` or `model=weight`."""
    model, equals, weight = text.rpartition("=")
    if not equals:
        return {"model": text}
    if not weight.isascii() or not weight.isdigit():
        raise UsageRefused(f"--to {text!r}: a weight is a whole number, as in --to {model}=3.")
    return {"model": model, "weight": int(weight)}


def _pair(text: str, flag: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageRefused(f"{flag} {text!r}: write it as NAME=VALUE.")
    return name, value


def _condition(name: str, text: str) -> tuple[str, Any]:
    if name in LISTS:
        return name, text.split(",")
    if name == "hours":
        start, _, end = text.partition("-")
        return name, {"start": _value(start), "end": _value(end)}
    return name, _value(text)


def _value(text: str) -> Any:
    """A number, true or false; else the text itself, which the API refuses where it does not fit."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _weighted(target: Mapping[str, Any], *, alone: bool) -> str:
    return str(target["model"]) if alone else f"{target['model']}={target.get('weight', 1)}"


def _words(said: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_word(value)}" for name, value in said.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return f"{value['start']}-{value['end']}"
    return json.dumps(value)
