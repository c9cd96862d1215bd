"""A routing rule from flags, and in the cells of a table."""

from __future__ import annotations

from typing import Any

import pytest

from farm.errors import UsageRefused
from farm.rule_words import rule_of_flags, rule_row
from scheduler.routing.rules import read_rule


def of_flags(**changes: Any) -> dict[str, Any]:
    """A rule by flags."""
    flags: dict[str, Any] = {
        "patterns": {"exact": None, "prefix": "gpt-", "regex": None},
        "targets": ["big=3", "small"],
        "fallback": ["tiny"],
        "timeout_s": 60.0,
        "conditions": ["tenants=a,b", "tools=true", "hours=22-6", "min_prompt_tokens=9"],
        "parameters": ["temperature=0.2", "max_tokens=5"],
        "choices": {"lane": "low", "sticky": None},
    }
    return rule_of_flags("r", **flags | changes)


def test_flags_say_a_rule_that_can_be_applied() -> None:
    said = of_flags()
    rule = read_rule(said)
    assert [(target.model, target.weight, target.timeout_s) for target in rule.targets] == [
        ("big", 3, 60),
        ("small", 1, 60),
    ]
    when = rule.when
    assert (when.tenants, when.tools, when.min_prompt_tokens) == (("a", "b"), True, 9)
    assert when.hours is not None
    assert (when.hours.start, when.hours.end) == (22, 6)
    assert (rule.overrides.temperature, rule.overrides.max_tokens) == (0.2, 5)
    cells = ["r", "prefix", "gpt-", "tenants=a,b tools=true hours=22-6 min_prompt_tokens=9"]
    assert rule_row(said) == [*cells, "big=3, small=1", "tiny", "low", "temperature=0.2 max_tokens=5"]


@pytest.mark.parametrize(
    "changes",
    [
        {"patterns": {"exact": None, "prefix": None}},
        {"patterns": {"exact": "a", "prefix": "b"}},
        {"targets": []},
        {"targets": ["m=much"]},
        {"conditions": ["tools"]},
        {"parameters": ["temperature"]},
    ],
)
def test_flags_that_say_no_rule_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageRefused):
        of_flags(**changes)
