"""Which model serves a request, and in which lane: rules in, route out; pure.

Rules come from SQL (store.py) as one versioned list, first match wins; without a match the model asked for is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from scheduler.errors import InvalidRule
from scheduler.jobs import Lane


class Match(StrEnum):
    """How a rule's pattern is compared with the model name asked for."""

    EXACT = "exact"
    PREFIX = "prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`lane` None keeps the lane that the request asked for."""

    name: str
    match: Match
    pattern: str
    model: str
    lane: Lane | None = None

    def matches(self, model: str) -> bool:
        """Does the rule apply to this model name?"""
        return model == self.pattern if self.match is Match.EXACT else model.startswith(self.pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules in order, of one version; version 0 is the empty set of a new farm."""

    version: int = 0
    rules: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        names = [rule.name for rule in self.rules]
        if len(names) != len(set(names)):
            raise InvalidRule("Two rules have the same name.")
        for rule in self.rules:
            if not rule.pattern or not rule.model:
                raise InvalidRule(f"Rule {rule.name!r} needs a pattern and a model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The decision: the model that serves, its lane, and the rule that said so ('' = none)."""

    model: str
    lane: Lane
    rule: str
    rule_version: int


def choose(rules: RuleSet, *, model: str, lane: Lane) -> Route:
    """Decide who serves a request for `model` that asks for `lane`."""
    for rule in rules.rules:
        if rule.matches(model):
            return Route(model=rule.model, lane=rule.lane or lane, rule=rule.name, rule_version=rules.version)
    return Route(model=model, lane=lane, rule="", rule_version=rules.version)


def in_order(rules: Sequence[Rule], version: int) -> RuleSet:
    """A rule set of this version. Raises InvalidRule for duplicate names or empty fields."""
    return RuleSet(version=version, rules=tuple(rules))
