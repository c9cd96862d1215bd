"""One row's bookkeeping, and which blocks it may take over."""

from collections.abc import Callable

import pytest

from workers.engine.paged.blocks import NULL_BLOCK, BlockPool, root_hash
from workers.engine.paged.prefix import PrefixCache, Snapshots
from workers.engine.paged.rows import Phase, Row
from workers.engine.sequence import Limits, Prompt, SamplingParams, Sequence, StopRule
from workers.engine.text import TextStream

ROOT = root_hash("rows")
SIZE = 4


class Silent:
    """A detokenizer for rows whose text nobody reads."""

    def push(self, token: int) -> str:
        return ""

    def flush(self) -> str:
        return ""


def row_of(tokens: range | list[int], *, draws: int = 9, resumed: tuple[int, ...] = (), root: bytes = ROOT) -> Row:
    prompt = Prompt(
        id="p",
        token_ids=tuple(tokens),
        sampling=SamplingParams(temperature=0),
        stop=StopRule(max_tokens=draws, ignore_eos=True),
        resume_ids=resumed,
    )
    sequence = Sequence(prompt, Limits(1000, None, frozenset()), lambda stops: TextStream(Silent(), stops))
    return Row(sequence, arrival=0, root=root)


def computed(pool: BlockPool, prefix: PrefixCache, row: Row, tokens: int) -> Row:
    """As if the first tokens had been read."""
    row.table += pool.allocate(-(-tokens // SIZE) - len(row.table))
    row.computed = tokens
    prefix.publish(row)
    return row


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(100, SIZE)


def test_a_resumed_row_goes_on_behind_what_it_has_said() -> None:
    row = row_of(range(10), draws=9, resumed=(50, 51))
    assert (row.tokens, row.prompt_target, row.draws_left) == ([*range(10), 50, 51], 11, 7)
    assert row.output_ids == [50, 51]


def test_a_row_takes_what_was_drawn_and_gives_back_what_was_guessed_wrong() -> None:
    row = row_of(range(10), draws=9)
    row.drafts, row.computed, row.draws_left, row.unread = (1, 2, 3), 13, 5, 1
    row.take((1, 7))
    assert (row.tokens[10:], row.computed, row.draws_left, row.unread) == ([1, 7], 11, 7, 0)
    assert not row.drafts
    assert row.computed == row.prompt_target


def test_a_preempted_row_keeps_its_tokens_and_the_one_that_is_being_drawn() -> None:
    row = row_of(range(10))
    row.table, row.computed, row.unread, row.draws_left = [1, 2, 3], 10, 1, 8
    row.forget()
    row.take((42,))
    assert (row.tokens[10:], row.computed, row.table, row.draws_left) == ([42], 0, [], 8)
    assert row.phase is Phase.WAITING


def test_full_blocks_are_found_but_never_that_of_the_last_token(pool: BlockPool) -> None:
    prefix = PrefixCache(pool)
    first = computed(pool, prefix, row_of(range(20)), 18)
    assert prefix.find(row_of(range(20))) == first.table[:4]  # 16 of 18 computed tokens
    assert prefix.find(row_of(range(17))) == first.table[:4]
    assert prefix.find(row_of(range(16))) == first.table[:3]  # its last token has to be computed
    assert prefix.find(row_of([*range(8), 99, *range(9, 20)])) == first.table[:2]
    assert prefix.find(row_of(range(1, 20))) == []
    assert prefix.find(row_of(range(20), root=root_hash("another model"))) == []


def test_a_block_that_has_gone_ends_what_is_found(pool: BlockPool) -> None:
    prefix = PrefixCache(pool)
    first = computed(pool, prefix, row_of(range(40)), 40)
    pool.release(first.table)
    pool.allocate(99 - 3)  # evicts the ends of the row's table
    assert len(prefix.find(row_of(range(40)))) == 3


def test_a_row_takes_over_more_when_it_looks_again(pool: BlockPool) -> None:
    prefix = PrefixCache(pool)
    first, second = row_of(range(40)), row_of(range(40))
    computed(pool, prefix, first, 8)
    prefix.adopt(second, prefix.find(second))
    assert (second.computed, second.table) == (8, first.table)
    computed(pool, prefix, first, 24)
    prefix.adopt(second, prefix.find(second))
    assert (second.computed, second.published, second.table) == (24, 6, first.table)
    assert prefix.hit_tokens_total == 24
    pool.check([first.table, second.table])


def test_what_a_running_step_still_draws_is_not_published(pool: BlockPool) -> None:
    prefix = PrefixCache(pool)
    row = row_of(range(7))
    computed(pool, prefix, row, 8)  # the eighth token is not known yet
    assert row.published == 1
    row.tokens.append(77)
    prefix.publish(row)
    assert row.published == 2
    assert len(prefix.find(row_of([*range(7), 77, 0]))) == 2


def test_turned_off_nothing_is_found(pool: BlockPool) -> None:
    prefix = PrefixCache(pool, enabled=False)
    computed(pool, prefix, row_of(range(20)), 20)
    again = row_of(range(20))
    assert (prefix.find(again), prefix.next_hash(again)) == ([], None)


@pytest.mark.parametrize(
    ("gone", "found"),
    [
        (set(), [0, 0, 0, 4, 5, 6, 7]),
        ({0, 1, 2}, [0, 0, 0, 4, 5, 6, 7]),
        ({3}, [1, 2, 3]),
        ({6}, [0, 0, 3, 4, 5, 6]),
    ],
)
def test_with_a_window_only_what_is_seen_has_to_be_there(
    pool: BlockPool, gone: set[int], found: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = PrefixCache(pool, window_tokens=14)  # a token at 28 sees 15 to 28: blocks 3 to 6
    first = computed(pool, prefix, row_of(range(40)), 28)
    assert first.table == [1, 2, 3, 4, 5, 6, 7]
    missing = {prefix.hash_at(first, index) for index in gone}
    find: Callable[[bytes], int | None] = pool.find
    monkeypatch.setattr(pool, "find", lambda block_hash: None if block_hash in missing else find(block_hash))
    assert prefix.find(row_of(range(40))) == found


def test_recurrent_rows_go_on_where_a_snapshot_is(pool: BlockPool) -> None:
    snapshots = Snapshots(first=8, count=2)
    prefix = PrefixCache(pool, snapshots=snapshots)
    first = computed(pool, prefix, row_of(range(40)), 36)
    assert prefix.find(row_of(range(40))) == []
    assert snapshots.put(prefix.hash_at(first, 4)) == 8
    assert prefix.find(row_of(range(40))) == first.table[:5]
    assert prefix.find(row_of(range(20))) == []


def test_the_snapshot_that_was_not_used_for_longest_makes_room() -> None:
    snapshots = Snapshots(first=8, count=2)
    assert [snapshots.put(name) for name in (b"a", b"b", b"a")] == [8, 9, None]
    assert snapshots.take(b"a") == 8
    assert snapshots.put(b"c") == 9
    assert (b"a" in snapshots, b"b" in snapshots, b"c" in snapshots) == (True, False, True)
    assert Snapshots(first=0, count=0).put(b"a") is None


def test_null_blocks_are_not_retained(pool: BlockPool) -> None:
    prefix = PrefixCache(pool, window_tokens=4)
    first = computed(pool, prefix, row_of(range(40)), 32)
    row = row_of(range(40))
    prefix.adopt(row, prefix.find(row))
    assert row.table[:7] == [NULL_BLOCK] * 7
    pool.check([first.table, row.table])
