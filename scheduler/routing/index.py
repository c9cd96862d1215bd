"""The rules that a request may match, in order, without trying them all.

Exact patterns lie in a dict, and so do prefixes, each with the rules of the shorter ones: the longest that fits says
all. Regular expressions are one RE2 set, which runs all of them over the name together. Behind each pattern its rules
lie by the tenant or the key that they are for, so that a thousand rules for a thousand tenants cost no more than one.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import re2

from scheduler.routing.rules import MAX_NAME_CHARS, Asked, Match, Rule, compiled, re2_options

SET_MEMORY_BYTES = 32 * 2**20

Scope: TypeAlias = "tuple[str, str]"
_EVERYBODY: Scope = ("", "")

Shelf: TypeAlias = "dict[Scope, list[int]]"
"""Positions of the rules of one pattern, by whom they are for."""


class RuleIndex:
    """Made once for a set of rules."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        shelves: dict[tuple[Match, str], Shelf] = defaultdict(lambda: defaultdict(list))
        for position, rule in enumerate(rules):
            for scope in _scopes(rule):
                shelves[rule.match, rule.pattern][scope].append(position)
        kinds: dict[Match, dict[str, Shelf]] = {match: {} for match in Match}
        for (match, pattern), shelf in shelves.items():
            kinds[match][pattern] = dict(shelf)
        self._exact = kinds[Match.EXACT]
        self._prefixes = _with_shorter_ones(kinds[Match.PREFIX])
        self._lengths = sorted({len(prefix) for prefix in self._prefixes}, reverse=True)
        self._expressions = _Expressions(kinds[Match.REGEX])

    def candidates(self, asked: Asked) -> Iterator[int]:
        """Positions of the rules whose pattern fits and that are for this tenant or key, in order."""
        scopes = (_EVERYBODY, ("tenant", asked.tenant), ("key", asked.key))
        runs = [run for shelf in self._shelves(asked.model) for scope in scopes if (run := shelf.get(scope))]
        return iter(runs[0]) if len(runs) == 1 else heapq.merge(*runs)

    def _shelves(self, model: str) -> Iterator[Shelf]:
        shelf = self._exact.get(model)
        if shelf is not None:
            yield shelf
        for length in self._lengths:
            shelf = self._prefixes.get(model[:length])
            if shelf is not None:
                yield shelf
                break
        yield from self._expressions.shelves(model)


def _with_shorter_ones(prefixes: dict[str, Shelf]) -> dict[str, Shelf]:
    """Each prefix with the rules of all prefixes that it begins with itself, so that the longest one says all."""
    whole: dict[str, Shelf] = {}
    for prefix in sorted(prefixes, key=len):
        shorter = next((whole[prefix[:end]] for end in range(len(prefix) - 1, -1, -1) if prefix[:end] in whole), {})
        own = prefixes[prefix]
        whole[prefix] = {scope: sorted([*shorter.get(scope, ()), *own.get(scope, ())]) for scope in {**shorter, **own}}
    return whole


class _Expressions:
    """Regular expressions, matched together.

    A set runs as a DFA of bounded memory, and where that does not suffice RE2 answers as if nothing had matched. So
    there is one expression more, which matches everything: where it is missing, the others are tried one by one.
    """

    def __init__(self, shelves: dict[str, Shelf]) -> None:
        self._patterns = tuple(shelves)
        self._shelves = tuple(shelves.values())
        self._set: Any = None
        if shelves:
            self._set = re2.Set.FullMatchSet(re2_options(SET_MEMORY_BYTES))
            for pattern in (*self._patterns, r"(?s).*"):
                self._set.Add(pattern)
            self._set.Compile()

    def shelves(self, model: str) -> Iterable[Shelf]:
        """Those of the expressions that match all of the name."""
        if self._set is None or len(model) > MAX_NAME_CHARS:
            return ()
        found: list[int] = self._set.Match(model) or []
        witness = len(self._patterns)
        if witness not in found:
            found = [at for at, pattern in enumerate(self._patterns) if compiled(pattern).fullmatch(model)]
        return [self._shelves[at] for at in found if at != witness]


def _scopes(rule: Rule) -> list[Scope]:
    """Whom a rule is for, by its narrower condition; the other one is checked with the rest."""
    if rule.when.keys:
        return [("key", key) for key in dict.fromkeys(rule.when.keys)]
    if rule.when.tenants:
        return [("tenant", tenant) for tenant in dict.fromkeys(rule.when.tenants)]
    return [_EVERYBODY]
