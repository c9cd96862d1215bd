"""First match wins; rules that cannot be applied are refused."""

from __future__ import annotations

import pytest

from scheduler.errors import InvalidRule
from scheduler.jobs import Lane
from scheduler.routing import Match, Rule, RuleSet, choose, in_order

GPT = Rule(name="gpt", match=Match.PREFIX, pattern="gpt-", model="demo", lane=Lane.LOW)
EXACT = Rule(name="exact", match=Match.EXACT, pattern="gpt-4", model="big")


def test_without_a_match_the_model_asked_for_serves() -> None:
    route = choose(in_order([GPT], 3), model="x", lane=Lane.HIGH)
    assert (route.model, route.lane, route.rule, route.rule_version) == ("x", Lane.HIGH, "", 3)
    assert choose(RuleSet(), model="x", lane=Lane.HIGH).rule_version == 0


@pytest.mark.parametrize(
    ("rules", "model", "served", "lane"),
    [
        ([EXACT, GPT], "gpt-4", "big", Lane.NORMAL),
        ([GPT, EXACT], "gpt-4", "demo", Lane.LOW),
        ([EXACT, GPT], "gpt-4o", "demo", Lane.LOW),
        ([EXACT, GPT], "GPT-4", "GPT-4", Lane.NORMAL),
    ],
)
def test_the_first_matching_rule_decides(rules: list[Rule], model: str, served: str, lane: Lane) -> None:
    route = choose(in_order(rules, 1), model=model, lane=Lane.NORMAL)
    assert (route.model, route.lane) == (served, lane)


@pytest.mark.parametrize(
    "rules",
    [
        [GPT, GPT],
        [Rule(name="a", match=Match.EXACT, pattern="", model="m")],
        [Rule(name="a", match=Match.EXACT, pattern="p", model="")],
    ],
)
def test_rules_that_cannot_be_applied_are_refused(rules: list[Rule]) -> None:
    with pytest.raises(InvalidRule):
        in_order(rules, 1)
