"""How a step's tokens are shared among prompts, and which prompts share a forward."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.engine.paged.paper_device import row_of
from workers.engine.paged.chunks import Chunk, PlanLimits, Want, pack_forwards, share_budget

LIMITS = PlanLimits(rows=8, step_tokens=512)
WANTS = st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 3000)).map(lambda pair: Want(*pair)), max_size=10)


@settings(deadline=None)
@given(WANTS, st.integers(1, 600), st.sampled_from([16, 100, 512]), st.sampled_from([1, 4, 16]))
def test_a_budget_is_kept_and_leaves_no_slivers(wants: list[Want], budget: int, chunk: int, size: int) -> None:
    limits = PlanLimits(rows=8, step_tokens=512, chunk_tokens=chunk)
    grants = share_budget(wants, budget, limits, size)
    assert sum(grants) <= max(budget, limits.smallest_chunk_tokens)
    for want, tokens in zip(wants, grants, strict=True):
        assert 0 <= tokens <= min(want.unread, chunk)
        if 0 < tokens < want.unread:
            assert tokens > limits.smallest_chunk_tokens - size
            assert (want.start + tokens) % size == 0 or tokens < size
    if wants and budget >= limits.smallest_chunk_tokens:
        assert grants[0] > 0


@pytest.mark.parametrize(
    ("unread", "budget", "grants"),
    [
        ([], 512, []),
        ([3000], 512, [512]),
        ([3000, 40], 512, [464, 40]),  # what is left over after the short one goes to the long one
        ([3000, 2000], 512, [256, 256]),
        ([3000, 2000, 2000], 512, [256, 256, 0]),
        ([3000, 100, 3000], 512, [256, 100, 144]),
        ([20, 3000], 512, [20, 480]),
        ([30] * 20, 512, [30] * 17 + [0] * 3),
        ([3000, 3000], 100, [96, 0]),
    ],
)
def test_the_oldest_prompt_gets_half_and_short_ones_pass_the_others(
    unread: list[int], budget: int, grants: list[int]
) -> None:
    assert share_budget([Want(0, count) for count in unread], budget, LIMITS, 16) == grants


@settings(deadline=None)
@given(st.lists(st.integers(1, 512), max_size=20), st.integers(1, 8))
def test_chunks_of_one_forward_are_of_similar_length(lengths: list[int], rows: int) -> None:
    row = row_of("p", [1], draws=1)
    chunks = [Chunk(row, place, tokens, -1) for place, tokens in enumerate(lengths)]
    forwards = pack_forwards(chunks, rows)
    assert sorted(chunk for forward in forwards for chunk in forward) == sorted(chunks)
    for forward in forwards:
        real = sum(chunk.tokens for chunk in forward)
        padding = len(forward) * max(chunk.tokens for chunk in forward) - real
        assert len(forward) <= rows
        assert padding <= max(32, 0.25 * real)
