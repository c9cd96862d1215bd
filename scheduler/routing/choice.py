"""The first rule that matches, and the target that it draws for a request; pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from scheduler.jobs import Lane
from scheduler.routing.index import RuleIndex
from scheduler.routing.rules import (
    NO_CONDITIONS,
    NO_OVERRIDES,
    Asked,
    Match,
    Overrides,
    Rule,
    Sticky,
    Target,
    checked_rules,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """All rules in order, of one version; version 0 is the empty set of a new farm. Raises InvalidRule."""

    version: int = 0
    rules: tuple[Rule, ...] = ()
    index: RuleIndex = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        checked_rules(self.rules)
        object.__setattr__(self, "index", RuleIndex(self.rules))


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The decision: who is to serve, first the target that was drawn, then the fallback; and on which terms.

    `rule` is the name of the rule that said so ('' = none: the model asked for serves).
    """

    targets: tuple[Target, ...]
    lane: Lane
    rule: str = ""
    rule_version: int = 0
    overrides: Overrides = NO_OVERRIDES

    @property
    def model(self) -> str:
        """The model that is to serve."""
        return self.targets[0].model


def choose(rules: RuleSet, asked: Asked) -> Route:
    """Decide who serves a request."""
    for position in rules.index.candidates(asked):
        rule = rules.rules[position]
        if rule.when.unmet(asked) is None:
            return route_by(rule, asked, rules.version)
    return unrouted(asked.model, asked.lane, rules.version)


def other_names(rules: RuleSet) -> dict[str, str]:
    """Names that stand for one model whatever a request is: of exact rules without conditions that come first."""
    found = {}
    for position, rule in enumerate(rules.rules):
        if rule.match is Match.EXACT and rule.when == NO_CONDITIONS and len(rule.targets) == 1:
            asked = Asked(model=rule.pattern, lane=Lane.NORMAL)
            if next(iter(rules.index.candidates(asked)), None) == position:
                found[rule.pattern] = rule.targets[0].model
    return found


def unrouted(model: str, lane: Lane, version: int = 0) -> Route:
    """The route where no rule matches."""
    # the name is what a client sent, and has been checked as such
    return Route(targets=(Target.model_construct(model=model),), lane=lane, rule_version=version)


def route_by(rule: Rule, asked: Asked, version: int) -> Route:
    """The route of a rule that matches."""
    first = rule.targets[0] if len(rule.targets) == 1 else drawn(rule, asked)
    rest = tuple(target for target in rule.fallback if target.model != first.model)
    return Route(
        targets=(first, *rest),
        lane=rule.lane or asked.lane,
        rule=rule.name,
        rule_version=version,
        overrides=rule.overrides,
    )


def drawn(rule: Rule, asked: Asked) -> Target:
    """The target whose turn it is, by weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005).

    Every target draws a number from the identity's hash, and the best one serves: each has its part of the identities,
    the same identity stays where it is, and a changed weight moves no more of them than it has to.
    """
    identity = _identity(rule, asked)
    return min(_weighty(rule.targets), key=lambda target: _lateness(identity, target))


def _weighty(targets: Sequence[Target]) -> list[Target]:
    return [target for target in targets if target.weight]


def _lateness(identity: str, target: Target) -> tuple[float, str]:
    """When a clock of the target's weight strikes first: exponential, so that the earliest one is weighted."""
    digest = blake2b(f"{identity}\0{target.model}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 1) / (2**64 + 1)
    return -math.log(uniform) / target.weight, target.model


def _identity(rule: Rule, asked: Asked) -> str:
    """What the draw depends on; the rule's name is in it, so that two rules draw independently."""
    if rule.sticky is Sticky.TENANT:
        return f"{rule.name}\0t\0{asked.tenant}"
    if rule.sticky is Sticky.SESSION and asked.session:
        return f"{rule.name}\0s\0{asked.tenant}\0{asked.session}"
    return f"{rule.name}\0r\0{asked.request_id}"
