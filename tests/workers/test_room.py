"""A worker claims what its memory can hold, and nothing while what it has claimed cannot begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.room import Room, RowBounds, room

counts = st.integers(0, 10_000)


def claimed(free: int, rows: int, waiting: int, used: int, total: int) -> int:
    """Of an engine without a bound on what waits; `rows` are in it, `waiting` of them have not begun."""
    begun = max(0, rows - waiting)
    bounds = RowBounds(rows + free)
    return room(bounds, taken=rows, begun=begun, waiting=waiting, used_blocks=used, total_blocks=total).rows


@pytest.mark.parametrize(
    ("free_rows", "rows", "waiting", "used", "total", "expected"),
    [
        (8, 0, 0, 0, 100, 8),  # idle
        (8, 4, 0, 20, 100, 8),  # 80 blocks are free, rows have 5 each
        (8, 4, 0, 60, 100, 2),  # 40 are free, rows have 15 each
        (8, 4, 1, 20, 100, 0),  # one cannot begin
        (8, 4, 0, 95, 100, 0),  # full
        (8, 4, 3, 0, 0, 8),  # an engine without blocks
    ],
)
def test_rows_follow_the_blocks_that_are_free(
    free_rows: int, rows: int, waiting: int, used: int, total: int, expected: int
) -> None:
    assert claimed(free_rows, rows, waiting, used, total) == expected


@given(free=counts, rows=counts, waiting=counts, used=counts, more=counts)
def test_never_more_than_is_free_and_never_more_when_more_is_used(
    free: int, rows: int, waiting: int, used: int, more: int
) -> None:
    total = used + more
    found = claimed(free, rows, waiting, used, total)
    assert 0 <= found <= free
    if total and rows:
        assert claimed(free, rows, waiting, min(total, used + 7), total) <= found


@given(free=st.integers(1, 100), total=counts)
def test_an_idle_worker_always_claims(free: int, total: int) -> None:
    assert claimed(free, 0, 0, 0, total) == free


def of_a_slow_beginner(taken: int, begun: int, reserved: int = 0) -> Room:
    """Of an engine of 8 rows that lets two wait for their beginning."""
    return room(RowBounds(8, reserved, ahead=2), taken=taken, begun=begun, waiting=0, used_blocks=0, total_blocks=0)


@pytest.mark.parametrize(
    ("taken", "begun", "expected"),
    [
        (0, 0, 2),
        (2, 0, 0),  # both wait
        (2, 1, 1),
        (6, 6, 2),
        (7, 7, 1),  # the last row
        (8, 8, 0),
        (1, 3, 2),  # two have ended since the engine was asked
        (5, 0, 0),  # a job of many choices
    ],
)
def test_what_an_engine_cannot_begin_soon_stays_in_the_queue(taken: int, begun: int, expected: int) -> None:
    assert of_a_slow_beginner(taken, begun).rows == expected


@given(taken=st.integers(0, 8), begun=st.integers(0, 8), reserved=st.integers(0, 7))
def test_as_many_rows_as_are_reserved_are_left_to_the_high_lane(taken: int, begun: int, reserved: int) -> None:
    found = of_a_slow_beginner(taken, begun, reserved)
    taken_by_others = max(0, found.rows - found.reserved)
    assert taken_by_others <= max(0, 8 - reserved - taken)
    if taken == begun and taken < 8 - reserved:
        assert taken_by_others > 0, "a lane that nobody is before is served"
