"""Which prompts begin, by their lengths alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.planner import BUDGET_CHUNKS, PrefillLimits, chunk_tokens, plan_admissions

LIMITS = PrefillLimits(rows=8, step_tokens=512)
LENGTHS = st.lists(st.integers(1, 5000), max_size=12)


@pytest.mark.parametrize(
    ("reading", "waiting", "admitted"),
    [
        ([], [], 0),
        ([], [5000], 1),
        ([], [20] * 20, 8),
        ([], [3000, 3000, 3000], 2),
        ([], [3000, 20, 20, 20], 2),
        ([2500], [20, 20], 1),
        ([2500, 20], [20], 0),
        ([], [1, 1, 1], 3),
        ([100], [129, 129, 129], 3),
    ],
)
def test_short_prompts_share_a_step_and_long_ones_do_not_pad_them_all(
    reading: list[int], waiting: list[int], admitted: int
) -> None:
    assert plan_admissions(reading, waiting, LIMITS) == admitted


@given(LENGTHS, LENGTHS)
def test_a_step_stays_within_its_budget_and_nobody_waits_for_nothing(reading: list[int], waiting: list[int]) -> None:
    admitted = plan_admissions(reading, waiting, LIMITS)
    assert admitted >= (1 if waiting and not reading else 0)
    if admitted and (reading or admitted > 1):
        chunks = [chunk_tokens(unread, LIMITS) for unread in [*reading, *waiting[:admitted]]]
        assert len(chunks) <= LIMITS.rows
        assert len(chunks) * max(chunks) <= BUDGET_CHUNKS * LIMITS.step_tokens


def test_an_architecture_that_reads_alone_begins_one_prompt_at_a_time() -> None:
    alone = PrefillLimits(rows=1, step_tokens=512)
    assert plan_admissions([], [10, 10], alone) == 1
    assert plan_admissions([10], [10], alone) == 0
