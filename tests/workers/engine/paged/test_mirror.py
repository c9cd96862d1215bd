"""What a draft model is taken to hold: nothing that it has not read, and whatever it has read and nobody overwrote."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.engine.paged.paper_device import row_of
from workers.engine.paged.blocks import BlockPool
from workers.engine.paged.mirror import Mirror
from workers.engine.paged.prefix import PrefixCache
from workers.engine.paged.rows import Row

SIZE = 4


def mirror() -> Mirror:
    return Mirror(PrefixCache(BlockPool(50, SIZE)), SIZE)


def placed(id: str, tokens: list[int], table: list[int]) -> Row:
    row = row_of(id, tokens, draws=50)
    row.table = table
    return row


def test_a_new_row_is_unread_and_a_read_one_is_read_as_far_as_it_says() -> None:
    held, row = mirror(), placed("a", list(range(10)), [1, 2, 3])
    assert held.reach(row) == 0
    held.begins(row, 0, 6)
    held.has_read(row, 6)
    assert held.reach(row) == 6


def test_guesses_count_as_read_as_far_as_they_turn_out_right() -> None:
    held, row = mirror(), placed("a", list(range(10)), [1, 2, 3, 4])
    held.has_read(row, 10, (10, 11, 77, 13))
    assert held.reach(row) == 10
    row.tokens += [10, 11, 12, 13]
    assert held.reach(row) == 12
    row.tokens += [77]
    assert held.reach(row) == 12


def test_the_newest_token_is_never_taken_as_read_from_a_guess() -> None:
    held, row = mirror(), placed("a", list(range(10)), [1, 2, 3, 4])
    held.has_read(row, 10, (10,))
    row.tokens += [10]
    assert held.reach(row) == 10
    held.has_read(row, 11)
    row.tokens += [11]
    assert held.reach(row) == 11


def test_a_block_that_is_found_as_a_prefix_is_known_and_a_rewritten_one_is_not() -> None:
    held, first = mirror(), placed("a", list(range(10)), [1, 2, 3])
    held.has_read(first, 9)
    held.forget(["a"])
    assert held.reach(placed("b", [*range(8), 50, 51, 52], [1, 2, 9])) == 8
    other = placed("c", [*range(40, 46)], [2, 5])
    assert held.reach(other) == 0
    held.begins(other, 0, 2)
    assert held.reach(placed("d", [*range(8), 50], [1, 2, 9])) == 4
    assert held.reach(placed("e", [*range(8), 50], [7, 8, 9])) == 0
    held.clear()
    assert held.reach(placed("f", [*range(8), 50], [1, 2, 9])) == 0


def test_a_row_that_lost_its_blocks_begins_again() -> None:
    held, row = mirror(), placed("a", list(range(10)), [1, 2, 3])
    held.has_read(row, 7, (3, 4))
    held.forget(["a"])
    row.table = [4, 5, 6]
    assert held.reach(row) == 0


@settings(deadline=None)
@given(seed=st.integers(0, 2**32))
def test_what_is_said_to_be_read_is_in_the_pools(seed: int) -> None:
    """Rows over few blocks, with common beginnings; a pool on paper keeps what was written where."""
    dice = random.Random(seed)
    pool = BlockPool(12, SIZE)
    prefix = PrefixCache(pool)
    held = Mirror(prefix, SIZE)
    content: dict[tuple[int, int], tuple[int, ...]] = {}
    rows: list[Row] = []
    for number in range(60):
        if len(rows) < 3 and dice.random() < 0.5:
            row = row_of(str(number), [*range(dice.choice((4, 8))), *(dice.randrange(9) for _ in range(3))], draws=50)
            found = prefix.find(row)
            if -(-len(row.tokens) // SIZE) - len(found) + 1 > pool.free_blocks - len(found):
                continue
            prefix.adopt(row, found)
            row.table += pool.allocate(-(-len(row.tokens) // SIZE) + 1 - len(row.table))
            row.computed = len(row.tokens) - 1
            prefix.publish(row)
            rows.append(row)
        elif rows:
            row = dice.choice(rows)
            reached = held.reach(row)
            known = [content.get((row.table[i // SIZE], i % SIZE)) for i in range(reached)]
            assert known == [tuple(row.tokens[: i + 1]) for i in range(reached)]
            if dice.random() < 0.2:
                rows.remove(row)
                pool.release(row.table)
                held.forget([row.id])
                continue
            end = dice.randint(reached, len(row.tokens))
            wrong = tuple(dice.randrange(9) for _ in range(dice.randint(0, 3) if end == len(row.tokens) else 0))
            text = [*row.tokens[:end], *wrong]
            held.begins(row, reached, len(text))
            for i in range(reached, len(text)):
                content[row.table[i // SIZE], i % SIZE] = tuple(text[: i + 1])
            held.has_read(row, end, wrong)
            if dice.random() < 0.3 and len(row.tokens) < (len(row.table) - 1) * SIZE:
                row.tokens.append(dice.choice((*wrong[:1], dice.randrange(9))))
