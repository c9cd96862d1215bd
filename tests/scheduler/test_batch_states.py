"""Properties of a batch's life: what it counts adds up, its window holds, and only legal moves are made."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.batches.states import (
    ACTIVE,
    ENDED,
    MOVES,
    BatchState,
    Counts,
    Outcome,
    lines_to_take,
    next_state,
)

counts = st.builds(
    lambda total, taken, done: Counts(total=total + taken, taken=taken).plus(Outcome.SUCCEEDED, min(done, taken)),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)


@given(counts, st.integers(1, 5000), st.integers(1, 500))
def test_no_more_lines_are_taken_than_the_window_and_the_input_have(before: Counts, window: int, at_once: int) -> None:
    taken = lines_to_take(before, window=window, at_once=at_once)
    assert 0 <= taken <= at_once
    assert taken <= before.waiting
    if taken:
        assert before.open + taken <= window


@given(counts, st.integers(1, 5000), st.integers(1, 500))
def test_lines_are_taken_together_and_never_too_late(before: Counts, window: int, at_once: int) -> None:
    taken = lines_to_take(before, window=window, at_once=at_once)
    if taken:
        assert taken >= min(before.waiting, at_once, max(1, window // 8))
    elif before.waiting:
        assert before.open > window * 7 / 8 - 1, "most of the window is left to work on"


@given(st.integers(1, 100), st.integers(1, 50), st.integers(1, 40), st.integers())
def test_every_line_is_taken_once_and_ends_once_whatever_the_order(
    total: int, window: int, at_once: int, seed: int
) -> None:
    state, seen, draw = Counts(total=total), 0, random.Random(seed)
    while state.done < total:
        take = lines_to_take(state, window=window, at_once=at_once)
        state = Counts(total, state.taken + take, state.succeeded, state.errored, state.canceled, state.expired)
        assert state.open <= window
        for _ in range(draw.randint(0, state.open)):
            state = state.plus(draw.choice(list(Outcome)))
            seen += 1
    assert (seen, state.open, state.waiting) == (total, 0, 0)


@given(st.sampled_from(sorted(ACTIVE)), counts, st.integers(0, 10), st.integers(0, 10))
def test_a_batch_moves_only_where_the_table_says(state: BatchState, now: Counts, now_ms: int, expires_ms: int) -> None:
    after = next_state(state, now, now_ms=now_ms, expires_ms=expires_ms)
    assert after is state or after in MOVES[state]


@given(counts)
def test_a_window_that_is_over_ends_the_run(now: Counts) -> None:
    assert next_state(BatchState.IN_PROGRESS, now, now_ms=5, expires_ms=5) is BatchState.FINALIZING
    missed = now.done < now.total
    ended = next_state(BatchState.FINALIZING, now, now_ms=5, expires_ms=5)
    assert ended is (BatchState.EXPIRED if missed else BatchState.COMPLETED)


def test_every_state_leads_to_an_end() -> None:
    reached = {state: _reachable(state) for state in BatchState}
    assert all(found & ENDED for state, found in reached.items() if state in ACTIVE)
    assert all(not reached[state] for state in ENDED)


def _reachable(state: BatchState) -> frozenset[BatchState]:
    found: set[BatchState] = set()
    ways = set(MOVES[state])
    while ways:
        way = ways.pop()
        found.add(way)
        ways |= MOVES[way] - found
    return frozenset(found)
