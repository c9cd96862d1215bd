"""What a set of rules would do, step by step or as a difference, and which rules never act; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.routing.choice import Route, RuleSet, choose
from scheduler.routing.rules import NO_OVERRIDES, Asked, Conditions, Match, Rule

MATCHES = "matches"
PATTERN = "pattern"


@dataclass(frozen=True, slots=True)
class Step:
    """What became of one rule: `matches`, or the first thing that did not hold (`pattern`, or a condition's name)."""

    rule: str
    outcome: str


@dataclass(frozen=True, slots=True)
class Difference:
    """One request under two sets of rules; `what` names the parts of the route that differ."""

    before: Route
    after: Route
    what: tuple[str, ...]


def steps(rules: RuleSet, asked: Asked) -> list[Step]:
    """The rules up to the first that matches: the definition of what `choose` decides."""
    taken = []
    for rule in rules.rules:
        outcome = _outcome(rule, asked)
        taken.append(Step(rule.name, outcome))
        if outcome == MATCHES:
            break
    return taken


def difference(before: RuleSet, after: RuleSet, asked: Asked) -> Difference:
    """The routes of a request under both."""
    old, new = choose(before, asked), choose(after, asked)
    parts = {
        "target": old.model != new.model,
        "fallback": old.targets[1:] != new.targets[1:],
        "lane": old.lane != new.lane,
        "timeout_s": old.targets[0].timeout_s != new.targets[0].timeout_s,
        "overrides": old.overrides != new.overrides,
    }
    return Difference(old, new, tuple(name for name, differs in parts.items() if differs))


def unreachable(rules: Sequence[Rule]) -> dict[str, str]:
    """Rules that can never match, each with the earlier rule that takes all of its requests.

    Only what is certain: two regular expressions are not compared unless they are the same.
    """
    hidden: dict[str, str] = {}
    open_to_all: list[Rule] = []
    for rule in rules:
        taker = next((earlier for earlier in open_to_all if _covers(earlier, rule)), None)
        if taker is not None:
            hidden[rule.name] = taker.name
        elif rule.when == Conditions():
            open_to_all.append(rule)
    return hidden


def without_effect(rules: Sequence[Rule]) -> list[str]:
    """Rules that change nothing where they match, other than to end the search."""
    return [
        rule.name
        for rule in rules
        if rule.match is Match.EXACT
        and [target.model for target in rule.targets] == [rule.pattern]
        and rule.targets[0].timeout_s is None
        and (rule.lane, rule.fallback, rule.overrides) == (None, (), NO_OVERRIDES)
    ]


def _outcome(rule: Rule, asked: Asked) -> str:
    if not rule.fits(asked.model):
        return PATTERN
    return rule.when.unmet(asked) or MATCHES


def _covers(earlier: Rule, later: Rule) -> bool:
    """Does the earlier pattern fit every name that the later one fits?"""
    if later.match is Match.EXACT:
        return earlier.fits(later.pattern)
    if later.match is Match.PREFIX:
        return earlier.match is Match.PREFIX and later.pattern.startswith(earlier.pattern)
    return (earlier.match, earlier.pattern) in ((Match.REGEX, later.pattern), (Match.PREFIX, ""))
