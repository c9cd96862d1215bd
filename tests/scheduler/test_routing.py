"""First match wins, whatever finds it; draws are fair and stay; rules that cannot be applied are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import InvalidRule
from scheduler.jobs import Lane
from scheduler.requests import JobRequest, Sampling, Stopping
from scheduler.routing import rules as limits
from scheduler.routing.choice import RuleSet, choose, route_by, unrouted
from scheduler.routing.rules import Asked, Overrides, Rule, read_rule
from scheduler.routing.trial import MATCHES, difference, steps, unreachable, without_effect
from tests.scheduler.ruling import asked, rule

GPT = rule("gpt", "prefix", "gpt-", lane="low")
EXACT = rule("exact", "exact", "gpt-4", "big")
REGEX = rule("regex", "regex", r"gpt-\d", "digit")

MODELS = st.sampled_from(["a", "ab", "abc", "b", "ba", "é", "aé", ""]) | st.text("abé", max_size=5)
PATTERNS = {
    "exact": MODELS.filter(bool),
    "prefix": MODELS,
    "regex": st.sampled_from(
        ["a.*", "[ab]+", "(a|b)*", ".", "é?", "a{1,3}", ".*b", "(?i)AB", "a|b|ab", "^a$", "(?s).*"]
    ),
}
NAMES = st.sampled_from(["", "x", "y"])
CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "tenants": st.lists(NAMES.filter(bool), max_size=3),
        "keys": st.lists(NAMES.filter(bool), max_size=3),
        "lanes": st.lists(st.sampled_from(list(Lane)), max_size=2),
        "min_prompt_tokens": st.integers(1, 5),
        "max_prompt_tokens": st.integers(1, 5),
        "tools": st.booleans(),
        "images": st.booleans(),
        "hours": st.sampled_from([{"start": 22, "end": 2}, {"start": 0, "end": 12}]),
    },
)


@st.composite
def rule_sets(draw: st.DrawFn) -> RuleSet:
    """Rules whose patterns and conditions overlap."""
    rules = []
    for number in range(draw(st.integers(0, 12))):
        match = draw(st.sampled_from(list(PATTERNS)))
        pattern = draw(PATTERNS[match])
        rules.append(rule(f"r{number}", match, pattern, f"m{number}", when=draw(CONDITIONS)))
    return RuleSet(version=1, rules=tuple(rules))


REQUESTS = st.builds(
    Asked,
    model=MODELS,
    lane=st.sampled_from(list(Lane)),
    tenant=NAMES,
    key=NAMES,
    prompt_tokens=st.integers(0, 6),
    has_tools=st.booleans(),
    has_images=st.booleans(),
    hour=st.sampled_from([0, 1, 2, 11, 12, 22, 23]),
)


@given(rule_sets(), REQUESTS)
@settings(max_examples=200, deadline=None)
def test_the_index_finds_the_rule_that_trying_them_all_in_order_finds(rules: RuleSet, request: Asked) -> None:
    matching = [step.rule for step in steps(rules, request) if step.outcome == MATCHES]
    assert choose(rules, request).rule == (matching[0] if matching else "")


@given(rule_sets(), REQUESTS)
@settings(max_examples=100, deadline=None)
def test_a_rule_that_is_called_unreachable_never_decides(rules: RuleSet, request: Asked) -> None:
    assert choose(rules, request).rule not in unreachable(rules.rules)


@given(rule_sets())
@settings(max_examples=100, deadline=None)
def test_a_rule_is_read_as_it_was_written(rules: RuleSet) -> None:
    assert tuple(read_rule(each.as_json()) for each in rules.rules) == rules.rules


def test_without_a_match_the_model_asked_for_serves() -> None:
    route = choose(RuleSet(version=3, rules=(GPT,)), asked("x", lane=Lane.HIGH))
    assert (route.model, route.lane, route.rule, route.rule_version) == ("x", Lane.HIGH, "", 3)
    assert choose(RuleSet(), asked("x")).rule_version == 0


@pytest.mark.parametrize(
    ("rules", "model", "served", "lane"),
    [
        ([EXACT, GPT], "gpt-4", "big", Lane.NORMAL),
        ([GPT, EXACT], "gpt-4", "demo", Lane.LOW),
        ([EXACT, GPT], "gpt-4o", "demo", Lane.LOW),
        ([EXACT, GPT], "GPT-4", "GPT-4", Lane.NORMAL),
        ([REGEX, EXACT], "gpt-4", "digit", Lane.NORMAL),
        ([REGEX, GPT], "gpt-45", "demo", Lane.LOW),
        ([rule("all", "prefix", "", "any")], "x" * 300, "any", Lane.NORMAL),
        ([rule("all", "regex", ".*", "any")], "x" * 300, "x" * 300, Lane.NORMAL),
    ],
)
def test_the_first_matching_rule_decides(rules: list[Rule], model: str, served: str, lane: Lane) -> None:
    route = choose(RuleSet(version=1, rules=tuple(rules)), asked(model))
    assert (route.model, route.lane) == (served, lane)


@pytest.mark.parametrize(
    "said",
    [
        {"name": ""},
        {"pattern": ""},
        {"match": "glob"},
        {"pattern": "p" * 257},
        {"targets": []},
        {"targets": [{"model": ""}]},
        {"targets": [{"model": "m", "weight": 0}]},
        {"targets": [{"model": "m"}, {"model": "m"}]},
        {"targets": [{"model": "m", "weight": "1"}]},
        {"targets": [{"model": "m", "timeout_s": 0}]},
        {"when": {"hours": {"start": 1, "end": 1}}},
        {"when": {"hours": {"start": 1, "end": 24}}},
        {"when": {"weather": "fine"}},
        {"overrides": {"temperature": 3}},
        {"overrides": {"stop": "x"}},
        {"match": "regex", "pattern": "(?<=a)b"},
        {"match": "regex", "pattern": "(a"},
        {"match": "regex", "pattern": r"\pL{40}"},
        {"match": "regex", "pattern": "((a{0,30}){0,30}){0,30}"},
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(InvalidRule, match="A rule cannot be read"):
        read_rule({"name": "r", "match": "exact", "pattern": "p", "targets": [{"model": "m"}], **said})


def test_a_providers_model_has_one_name_however_it_is_said() -> None:
    apart, together = rule("r", "exact", "p", {"model": "m", "provider": "cloud"}), rule("r", "exact", "p", "cloud/m")
    assert apart.targets == together.targets
    assert apart.as_json()["targets"] == [{"model": "cloud/m"}]


def test_two_rules_of_one_name_too_many_and_too_large_ones_are_refused() -> None:
    with pytest.raises(InvalidRule, match="Two rules have the name 'gpt'"):
        RuleSet(rules=(GPT, GPT))
    with pytest.raises(InvalidRule, match="more than 2000"):
        RuleSet(rules=(GPT,) * (limits.MAX_RULES + 1))
    large = [rule(f"r{number}", "regex", "(.*a){40}" + str(number)) for number in range(100)]
    with pytest.raises(InvalidRule, match="more than 10000"):
        RuleSet(rules=tuple(large))


def test_expressions_that_need_more_memory_than_their_set_has_are_matched_all_the_same() -> None:
    patterns = [f"(a|b|c)*a(a|b){{{length}}}.*{length}" for length in range(12, 40)]
    rules = RuleSet(rules=tuple(rule(pattern, "regex", pattern, pattern) for pattern in patterns))
    for name in ("ab" * 100 + "39", "a" * 200 + "12", "ba" * 64 + "c"):
        first = next((each for each in rules.rules if each.fits(name)), None)
        assert choose(rules, asked(name)).rule == (first.name if first else "")


SPLIT = rule("split", "prefix", "", {"model": "a", "weight": 3}, {"model": "b"}, {"model": "off", "weight": 0})


def drawn_by(split: Rule, **more: Any) -> str:
    """The model that a request gets."""
    return route_by(split, asked("m", **more), 1).model


@pytest.mark.parametrize(
    ("sticky", "drawn_for"), [("session", "session"), ("tenant", "tenant"), ("request", "request_id")]
)
def test_targets_are_drawn_by_weight(sticky: str, drawn_for: str) -> None:
    split = read_rule({**SPLIT.as_json(), "sticky": sticky})
    counts = Counter(drawn_by(split, **{drawn_for: f"{number}"}) for number in range(4000))
    assert counts.keys() == {"a", "b"}
    assert 2850 < counts["a"] < 3150


def test_a_session_stays_with_its_target_and_others_draw_one_by_one() -> None:
    assert len({drawn_by(SPLIT, session="s", request_id=str(number)) for number in range(50)}) == 1
    assert len({drawn_by(SPLIT, request_id=str(number)) for number in range(50)}) == 2
    assert len({drawn_by(SPLIT, session="s", tenant=str(number)) for number in range(50)}) == 2


def test_a_changed_weight_moves_only_those_that_have_to() -> None:
    more = rule("split", "prefix", "", {"model": "a", "weight": 6}, {"model": "b"})
    moved = [(drawn_by(SPLIT, session=str(n)), drawn_by(more, session=str(n))) for n in range(2000)]
    assert {pair for pair in moved if pair[0] != pair[1]} == {("b", "a")}
    assert not {pair for pair in moved if pair == ("a", "b")}


def test_the_fallback_follows_the_target_and_never_repeats_it() -> None:
    chain = rule("r", "prefix", "", "a", fallback=[{"model": "a"}, {"model": "b", "timeout_s": 3}])
    assert [target.model for target in route_by(chain, asked("m"), 1).targets] == ["a", "b"]


def test_overrides_are_the_parameters_in_effect_and_only_shorten() -> None:
    request = JobRequest(
        kind="k",
        model="m",
        prompts=((1,),),
        sampling=Sampling(top_p=0.5),
        stopping=Stopping(max_tokens=9, min_tokens=4),
    )
    made = Overrides(temperature=0, top_k=-1, max_tokens=3).on(request)
    assert made.sampling == Sampling(temperature=0, top_p=0.5, top_k=0)
    assert (made.stopping.max_tokens, made.stopping.min_tokens) == (3, 3)
    assert Overrides(max_tokens=20).on(request) == request == Overrides().on(request)


def test_a_difference_names_what_changes() -> None:
    before, after = RuleSet(version=1, rules=(GPT,)), RuleSet(version=2, rules=(EXACT, GPT))
    assert difference(before, after, asked("gpt-4")).what == ("target", "lane")
    assert difference(before, after, asked("gpt-3")).what == ()
    unruled = difference(before, RuleSet(), asked("gpt-3"))
    assert unruled.after == unrouted("gpt-3", Lane.NORMAL)


def test_rules_that_never_act_are_found() -> None:
    late = rule("late", "exact", "gpt-4", "x")
    narrow = rule("narrow", "prefix", "gpt-", when={"tools": True})
    assert unreachable([GPT, late, narrow, REGEX]) == {"late": "gpt", "narrow": "gpt"}
    assert unreachable([narrow, late, GPT]) == {}
    assert without_effect([rule("same", "exact", "m", "m"), GPT]) == ["same"]


def test_one_tenants_rules_are_not_in_the_way_of_anothers() -> None:
    rules = tuple(rule(f"r{n}", "prefix", "gpt-", f"m{n}", when={"tenants": [f"t{n}"]}) for n in range(50))
    both = RuleSet(rules=rules)
    assert list(both.index.candidates(asked("gpt-4", tenant="t33"))) == [33]
    assert choose(both, replace(asked("gpt-4"), tenant="t33")).model == "m33"
