"""Waiting times that help: long enough that there is room, short enough to be waited for, never all the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.backpressure import LONGEST_S, SHORTEST_S, SPREAD, UNKNOWN_S, wait_s

counts = st.integers(1, 10**9)


def test_the_wait_is_what_is_missing_over_what_drains() -> None:
    assert wait_s(bound=1000, used=1000, needed=500, drained_per_s=50, draw=0) == 10


def test_a_place_for_one_is_not_worth_a_rush() -> None:
    assert wait_s(bound=1000, used=1000, needed=1, drained_per_s=10, draw=0) == 5


def test_without_a_measurement_the_wait_is_a_guess() -> None:
    assert wait_s(bound=10, used=10, needed=1, drained_per_s=0, draw=0) == UNKNOWN_S


@given(bound=counts, used=counts, needed=counts, rate=st.floats(0, 1e9), draw=st.floats(0, 1, exclude_max=True))
def test_every_wait_is_within_what_clients_bear(bound: int, used: int, needed: int, rate: float, draw: float) -> None:
    wait = wait_s(bound=bound, used=used, needed=needed, drained_per_s=rate, draw=draw)
    assert SHORTEST_S <= wait <= LONGEST_S * (1 + SPREAD)  # a draw just below 1 may be rounded to it


@given(used=counts, rate=st.floats(1e-3, 1e6), faster=st.floats(1, 1000))
def test_a_faster_drain_never_means_a_longer_wait(used: int, rate: float, faster: float) -> None:
    slow, fast = (
        wait_s(bound=1000, used=used, needed=1, drained_per_s=speed, draw=0.5) for speed in (rate, rate * faster)
    )
    assert fast <= slow
