"""Rows that repeat themselves are given drafts, others are not, and nobody beyond their end."""

import pytest

from tests.workers.engine.paged.paper_device import row_of
from workers.engine.paged.drafts import MOST_DRAFTS
from workers.engine.paged.rows import Row
from workers.engine.paged.speculation import Speculation

CYCLE = [1, 2, 3, 4, 5]


@pytest.fixture
def speculation() -> Speculation:
    """One that has measured: a token more in a step costs next to nothing."""
    made = Speculation()
    for _ in range(20):
        made.timed([0], 0.010)
        made.timed([MOST_DRAFTS], 0.011)
    return made


def covers(row: Row, tokens: int) -> int:
    return tokens


def told(speculation: Speculation, row: Row, tokens: list[int]) -> Row:
    for token in tokens:
        row.tokens.append(token)
        speculation.learn(row, (token,))
    return row


def test_a_row_that_repeats_itself_is_given_what_comes_next(speculation: Speculation) -> None:
    row = told(speculation, row_of("cycle", CYCLE * 4, draws=50), CYCLE * 4)
    other = told(speculation, row_of("other", [9], draws=50), list(range(100, 120)))
    assert speculation.pays([row, other])
    speculation.guess([row, other], covers)
    assert row.drafts == tuple((CYCLE * 3)[: len(row.drafts)])
    assert len(row.drafts) > 2
    assert other.drafts == ()


def test_no_row_is_given_more_than_it_may_still_draw(speculation: Speculation) -> None:
    row = told(speculation, row_of("cycle", CYCLE * 4, draws=50), CYCLE * 4)
    row.draws_left = 2
    speculation.guess([row], covers)
    assert row.drafts == (1,)
    row.draws_left = 1
    assert not speculation.pays([row])


def test_a_row_that_has_gone_is_forgotten(speculation: Speculation) -> None:
    row = told(speculation, row_of("cycle", CYCLE * 4, draws=50), CYCLE * 4)
    speculation.forget(["cycle", "unknown"])
    assert not speculation.pays([row])
    assert not speculation.pays([])
    speculation.guess([], covers)


def test_a_row_that_comes_back_is_known_by_all_its_tokens(speculation: Speculation) -> None:
    row = told(speculation, row_of("cycle", CYCLE * 4, draws=50), CYCLE * 4)
    speculation.forget(["cycle"])
    told(speculation, row, [1])
    speculation.guess([row], covers)
    assert row.drafts[:2] == (2, 3)


def test_what_a_grammar_forces_is_a_draft(speculation: Speculation) -> None:
    row = told(speculation, row_of("guided", [9], draws=50), [100, 101])
    speculation.force(row, (7, 8))
    speculation.guess([row], covers)
    assert row.drafts == (7, 8)


def test_where_checks_are_dear_nothing_is_guessed() -> None:
    speculation = Speculation()
    for _ in range(20):
        speculation.timed([0], 0.010)
        speculation.timed([MOST_DRAFTS], 0.200)
        speculation.timed([1], 0.100)
    row = told(speculation, row_of("cycle", CYCLE * 4, draws=50), CYCLE * 4)
    assert not speculation.pays([row])
