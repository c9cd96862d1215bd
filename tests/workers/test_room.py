"""A worker claims what its memory can hold, and nothing while what it has claimed cannot begin."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.room import claimable_rows

counts = st.integers(0, 10_000)


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
    assert claimable_rows(free_rows, rows=rows, waiting=waiting, used_blocks=used, total_blocks=total) == expected


@given(free=counts, rows=counts, waiting=counts, used=counts, more=counts)
def test_never_more_than_is_free_and_never_more_when_more_is_used(
    free: int, rows: int, waiting: int, used: int, more: int
) -> None:
    total = used + more
    claimed = claimable_rows(free, rows=rows, waiting=waiting, used_blocks=used, total_blocks=total)
    assert 0 <= claimed <= free
    if total and rows:
        fuller = claimable_rows(free, rows=rows, waiting=waiting, used_blocks=min(total, used + 7), total_blocks=total)
        assert fuller <= claimed


@given(free=st.integers(1, 100), total=counts)
def test_an_idle_worker_always_claims(free: int, total: int) -> None:
    assert claimable_rows(free, rows=0, waiting=0, used_blocks=0, total_blocks=total) == free
