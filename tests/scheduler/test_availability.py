"""A lease runs while Redis answers; pure, on times that the test makes up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.availability import MOST_SPANS, Availability

LEASE_S = 10.0


def watched(*spans: tuple[float, float], uptime_s: float = 0.0) -> Availability:
    """A server that answered in these spans of time, another one in each."""
    seen = Availability()
    for number, (start_s, end_s) in enumerate(spans):
        seen.answered(f"run-{number}", uptime_s, start_s)
        seen.answered(f"run-{number}", uptime_s, end_s)
    return seen


def test_nobody_is_dead_before_anything_is_known() -> None:
    assert Availability().overdue_s(LEASE_S) is None


def test_who_has_just_started_counts_from_the_start_of_the_server() -> None:
    assert watched((100, 100), uptime_s=9).overdue_s(LEASE_S) is None
    assert watched((100, 101), uptime_s=9).overdue_s(LEASE_S) == 0
    assert watched((100, 100), uptime_s=5000).overdue_s(LEASE_S) == 0


def test_a_lease_does_not_run_in_an_outage() -> None:
    """The worker renewed it at 97 at the latest that Redis knows of; it has had 3 s and then 7 s to do so again."""
    seen = watched((0, 100), (130, 137))
    assert seen.overdue_s(LEASE_S) == 30
    assert watched((0, 100), (130, 500)).overdue_s(LEASE_S) == 0


def test_outages_do_not_add_a_lease_each() -> None:
    """Three starts of Redis within a lease: only what it was away is added."""
    assert watched((0, 100), (101, 104), (105, 108), (109, 111)).overdue_s(LEASE_S) == 3


def test_a_server_that_starts_again_and_again_does_not_keep_the_dead_alive() -> None:
    assert watched(*((2.0 * turn, 2.0 * turn + 1) for turn in range(50))).overdue_s(LEASE_S) == 9


def test_a_server_that_did_not_answer_was_away_though_it_is_the_same() -> None:
    seen = Availability()
    seen.answered("run", 0, 0)
    seen.answered("run", 0, 20)
    seen.failed()
    seen.answered("run", 0, 35)
    assert seen.overdue_s(LEASE_S) == 15


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), min_size=1, max_size=MOST_SPANS + 20))
def test_only_who_was_silent_for_a_whole_lease_of_answers_is_dead(spans: list[tuple[float, float]]) -> None:
    """(away, there) in turn: what is left of the time since the last renewal without the outages is a lease."""
    seen, now_s, there = Availability(), 0.0, []
    for number, (away_s, there_s) in enumerate(spans):
        start_s = now_s + away_s
        now_s = start_s + there_s
        seen.answered(f"run-{number}", 0, start_s)
        seen.answered(f"run-{number}", 0, now_s)
        there.append((start_s, now_s))
    there = there[-MOST_SPANS:]
    overdue_s = seen.overdue_s(LEASE_S)
    if overdue_s is None:
        assert sum(end_s - start_s for start_s, end_s in there) < LEASE_S + 1e-6
    else:
        renewed_s = now_s - overdue_s - LEASE_S
        answered_s = sum(max(0.0, end_s - max(start_s, renewed_s)) for start_s, end_s in there)
        assert answered_s == pytest.approx(LEASE_S)
