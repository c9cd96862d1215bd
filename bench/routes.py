"""What does a routing decision cost with 1,000 rules, and what do hostile regular expressions cost at worst?

`python -m bench.routes`. Every rule has a condition, weighted targets and a fallback; requests ask for models that the
first, a middle, the last or no rule takes. Times are CPU time. The naive way, trying rule by rule, is the reference: it
must decide alike.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from scheduler.jobs import Lane
from scheduler.routing.choice import RuleSet, choose
from scheduler.routing.rules import MAX_NAME_CHARS, MAX_PROGRAMS_SIZE, Asked, Rule, compiled
from scheduler.routing.trial import MATCHES, steps

RULES = 1000
ROUNDS = 300
REPEATS = 7
LIMIT_US = 50.0

HOSTILE = ("(a|b|c)*a(a|b){40}.*", "(.*a){30}", ".*a.{40}b.*", "((a?){40}a)*", "(a+)+b")


def rule(number: int, match: str, pattern: str, tenant: str | None = None) -> Rule:
    """One of the thousand."""
    when = {"max_prompt_tokens": 100_000} | ({"tenants": [tenant]} if tenant else {})
    targets = [{"model": "a", "weight": 9}, {"model": "b"}]
    said = {"name": f"{match}-{number}", "match": match, "pattern": pattern, "when": when, "targets": targets}
    return Rule.model_validate(said | {"fallback": [{"model": "c"}]})


def mixed() -> tuple[list[Rule], list[str]]:
    """Four hundred names, three hundred prefixes, three hundred expressions."""
    rules = [rule(n, "exact", f"model-{n}") for n in range(400)]
    rules += [rule(n, "prefix", f"vendor-{n}/") for n in range(300)]
    rules += [rule(n, "regex", rf"gpt-{n}-\d+") for n in range(300)]
    return rules, ["model-0", "model-399", "vendor-150/x", "vendor-299/x", "gpt-0-8", "gpt-299-1", "nobody"]


def per_tenant() -> tuple[list[Rule], list[str]]:
    """A thousand tenants with a rule each for the same models."""
    return [rule(n, "prefix", "gpt-", f"tenant-{n}") for n in range(RULES)], ["gpt-4", "other"]


def nested() -> tuple[list[Rule], list[str]]:
    """Prefixes of a hundred lengths, all of which fit, and conditions that let only the last rule through."""
    rules = [rule(n, "prefix", "x" * (n % 100), f"tenant-{n % 10}") for n in range(RULES)]
    return rules, ["x" * 120, "y"]


def costs_us(rules: RuleSet, requests: Sequence[Asked]) -> list[float]:
    """The cost of each request's decision in CPU time: the least of the repeats."""
    costs = []
    for request in requests:
        taken = []
        for _ in range(REPEATS):
            begun = time.process_time()
            for _ in range(ROUNDS):
                choose(rules, request)
            taken.append((time.process_time() - begun) / ROUNDS * 1e6)
        costs.append(min(taken))
    return costs


def agrees(rules: RuleSet, request: Asked) -> bool:
    """Does trying them all find the same rule?"""
    last = steps(rules, request)[-1]
    return choose(rules, request).rule == (last.rule if last.outcome == MATCHES else "")


def hostile_ms() -> tuple[int, float]:
    """As many hostile expressions as a rule set takes, and the longest decision over names made for them."""
    rules: list[Rule] = []
    size = 0
    while True:
        pattern = HOSTILE[len(rules) % len(HOSTILE)] + f"[{chr(97 + len(rules) % 26)}-z]{{{len(rules) // 26}}}"
        size += compiled(pattern).programsize
        if size > MAX_PROGRAMS_SIZE:
            break
        rules.append(rule(len(rules), "regex", pattern))
    draw = random.Random(1)
    ruled, worst = RuleSet(rules=tuple(rules)), 0.0
    for _ in range(50):
        request = Asked(model="".join(draw.choices("ab", k=MAX_NAME_CHARS)), lane=Lane.NORMAL)
        begun = time.process_time()
        choose(ruled, request)
        worst = max(worst, time.process_time() - begun)
    return len(rules), worst * 1e3


def main() -> int:
    """Print the table; 1 when a decision is wrong or dearer than the limit."""
    wrong = False
    sets: dict[str, Callable[[], tuple[list[Rule], list[str]]]] = {
        "mixed": mixed,
        "one rule per tenant": per_tenant,
        "nested prefixes": nested,
    }
    print("| 1,000 rules | build ms | decision µs, median | dearest request µs |\n|---|---|---|---|")
    for name, make in sets.items():
        rules, models = make()
        begun = time.process_time()
        ruled = RuleSet(version=1, rules=tuple(rules))
        build_ms = (time.process_time() - begun) * 1e3
        requests = [Asked(model=model, lane=Lane.NORMAL, tenant="tenant-7", session="s") for model in models]
        costs = costs_us(ruled, requests)
        wrong |= max(costs) > LIMIT_US or not all(agrees(ruled, request) for request in requests)
        print(f"| {name} | {build_ms:.1f} | {statistics.median(costs):.1f} | {max(costs):.1f} |")
    count, worst_ms = hostile_ms()
    print(f"\n{count} hostile expressions: the longest decision took {worst_ms:.1f} ms")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
