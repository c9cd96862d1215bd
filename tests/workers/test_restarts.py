"""The pause before a dead model process is started again."""

from __future__ import annotations

from workers.restarts import FIRST_DELAY_S, FREE_DEATHS, LAST_DELAY_S, STABLE_S, Restarts


def test_a_few_early_deaths_cost_no_more_than_the_first() -> None:
    restarts = Restarts()
    assert {restarts.delay_s(1.0) for _ in range(FREE_DEATHS)} == {FIRST_DELAY_S}


def test_a_process_that_keeps_dying_is_started_ever_more_slowly() -> None:
    restarts = Restarts()
    delays = [restarts.delay_s(0.0) for _ in range(FREE_DEATHS + 20)]
    assert delays == sorted(delays)
    assert delays[FREE_DEATHS] == 2 * FIRST_DELAY_S
    assert delays[-1] == LAST_DELAY_S


def test_a_process_that_has_served_for_long_begins_anew() -> None:
    restarts = Restarts()
    for _ in range(20):
        restarts.delay_s(0.0)
    assert restarts.delay_s(STABLE_S) == FIRST_DELAY_S
    assert restarts.delay_s(0.0) == FIRST_DELAY_S
