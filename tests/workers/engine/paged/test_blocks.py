"""The block pool against a slow model of itself, with rows that come, grow, fork, share a beginning and leave."""

import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from workers.engine.paged.blocks import NULL_BLOCK, BlockPool, OutOfBlocks, chain_hash, root_hash

BLOCK_TOKENS = 2
BLOCKS = 9
ROOT = root_hash("model", "adapter")
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=9)  # two ids only: many beginnings are the same


def hashes(tokens: Sequence[int]) -> list[bytes]:
    """Of the full blocks of `tokens`, front to back."""
    chain = [ROOT]
    for end in range(BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
        chain.append(chain_hash(chain[-1], tokens[end - BLOCK_TOKENS : end]))
    return chain[1:]


@dataclass
class Row:
    tokens: list[int]
    table: list[int] = field(default_factory=list)


class PoolMachine(RuleBasedStateMachine):
    """Rows over a pool, and beside it what each block holds and the order in which blocks were given back."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, BLOCK_TOKENS)
        self.rows: list[Row] = []
        self.content: dict[int, tuple[int, ...]] = {}  # all tokens up to the block's end
        self.published: dict[bytes, int] = {}
        self.cached: list[int] = []  # oldest first
        self.evictions = 0

    def references(self, block: int) -> int:
        return sum(row.table.count(block) for row in self.rows)

    def state(self) -> tuple[object, ...]:
        pool = self.pool
        findable = {known: pool.find(known) for known in self.published}
        counts = [pool.references(block) for block in range(BLOCKS)]
        return pool.free_blocks, pool.cached_blocks, pool.used_blocks, pool.evictions_total, counts, findable

    def allocate(self, count: int) -> list[int] | None:
        """As the pool does, compared with what the model expects; None if it refused."""
        used = {block for row in self.rows for block in row.table}
        unused = BLOCKS - 1 - len(used) - len(self.cached)
        before = self.state()
        try:
            blocks = self.pool.allocate(count)
        except OutOfBlocks:
            assert count > unused + len(self.cached)
            assert self.state() == before
            return None
        evicted = self.cached[: max(0, count - unused)]
        assert blocks[len(blocks) - len(evicted) :] == evicted  # oldest first, after all unused ones
        assert len(set(blocks)) == count
        assert not used & set(blocks)
        assert NULL_BLOCK not in blocks
        assert not (set(self.cached) - set(evicted)) & set(blocks)
        self.cached = self.cached[len(evicted) :]
        self.published = {known: block for known, block in self.published.items() if block not in evicted}
        self.evictions += len(evicted)
        return blocks

    def retain(self, block: int) -> None:
        self.pool.retain(block)
        if block in self.cached:
            self.cached.remove(block)

    def release(self, table: list[int]) -> None:
        """Of a row that is already gone from `rows`."""
        self.pool.release(table)
        for block in reversed(table):
            if self.references(block) == 0 and block in self.published.values():
                self.cached.append(block)

    def write(self, row: Row, start: int) -> None:
        """Fill the blocks of the tokens from `start` on and publish those that are full."""
        for index in range(start // BLOCK_TOKENS, len(row.table)):
            block = row.table[index]
            assert self.pool.is_writable(block)
            self.content[block] = tuple(row.tokens[: (index + 1) * BLOCK_TOKENS])
        for index, known in enumerate(hashes(row.tokens)):
            self.pool.publish(row.table[index], known)
            self.published.setdefault(known, row.table[index])

    @rule(tokens=TOKENS)
    def join(self, tokens: list[int]) -> None:
        row = Row(tokens)
        for known in hashes(tokens):
            block = self.pool.find(known)
            if block is None:
                break
            assert self.content[block] == tuple(tokens[: (len(row.table) + 1) * BLOCK_TOKENS])
            self.retain(block)
            row.table.append(block)
        found = len(row.table)
        self.rows.append(row)
        fresh = self.allocate(-(-len(tokens) // BLOCK_TOKENS) - found)
        if fresh is None:
            self.rows.remove(row)
            self.release(row.table)
            return
        row.table += fresh
        self.write(row, found * BLOCK_TOKENS)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), token=st.integers(0, 1))
    def grow(self, data: st.DataObject, token: int) -> None:
        row = data.draw(st.sampled_from(self.rows))
        start = len(row.tokens)
        if start % BLOCK_TOKENS == 0:
            fresh = self.allocate(1)
            if fresh is None:
                return
            row.table += fresh
        elif not self.pool.is_writable(row.table[-1]):  # a fork shares it: copy on write
            fresh = self.allocate(1)
            if fresh is None:
                return
            shared, row.table[-1] = row.table[-1], fresh[0]
            self.release([shared])
        row.tokens.append(token)
        self.write(row, start)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows))
        for block in row.table:
            self.retain(block)
        self.rows.append(Row(list(row.tokens), list(row.table)))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(self.rows))
        self.rows = [other for other in self.rows if other is not row]
        self.release(row.table)

    @invariant()
    def nothing_is_lost_and_nothing_shared_can_be_written(self) -> None:
        pool = self.pool
        pool.check([row.table for row in self.rows])
        used = {block for row in self.rows for block in row.table}
        assert pool.used_blocks == len(used)
        assert pool.cached_blocks == len(self.cached)
        assert pool.free_blocks + pool.used_blocks == BLOCKS - 1
        assert pool.evictions_total == self.evictions
        for block in range(BLOCKS):
            assert pool.references(block) == self.references(block)
            private = pool.references(block) == 1 and block not in self.published.values()
            assert pool.is_writable(block) == private

    @invariant()
    def only_what_was_published_is_found(self) -> None:
        for tokens in itertools.product((0, 1), repeat=2 * BLOCK_TOKENS):
            for known in hashes(tokens):
                assert self.pool.find(known) == self.published.get(known)

    def teardown(self) -> None:
        while self.rows:
            self.release(self.rows.pop().table)
        self.pool.check([])
        assert self.pool.free_blocks == BLOCKS - 1


PoolMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestRowsOverAPool = PoolMachine.TestCase


def filled(pool: BlockPool, tokens: Sequence[int]) -> list[int]:
    """The table of a row whose full blocks are published, those already known taken over."""
    table = []
    for known in hashes(tokens):
        block = pool.find(known)
        if block is None:
            [block] = pool.allocate(1)
            pool.publish(block, known)
        else:
            pool.retain(block)
        table.append(block)
    return table


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=12), min_size=1, max_size=6), st.integers(1, 30))
def test_a_block_is_never_evicted_before_what_continues_it(prompts: list[list[int]], evictions: int) -> None:
    pool = BlockPool(64, BLOCK_TOKENS)
    tables = [filled(pool, prompt) for prompt in prompts]
    for table in tables:
        pool.release(table)
    pool.allocate(min(pool.free_blocks, pool.free_blocks - pool.cached_blocks + evictions))
    for prompt in prompts:
        found = [pool.find(known) is not None for known in hashes(prompt)]
        assert found == sorted(found, reverse=True)


def test_a_cached_block_that_is_used_again_becomes_the_last_to_be_evicted() -> None:
    pool = BlockPool(4, BLOCK_TOKENS)
    first, second = filled(pool, [0, 0]), filled(pool, [1, 1])
    pool.release(first)
    pool.release(second)
    pool.retain(first[0])
    pool.release(first)
    assert pool.allocate(2) == [3, second[0]]
    assert pool.evictions_total == 1
    assert pool.find(hashes([0, 0])[0]) == first[0]
    assert pool.find(hashes([1, 1])[0]) is None


def test_the_second_block_of_the_same_content_stays_private() -> None:
    pool = BlockPool(4, BLOCK_TOKENS)
    [known] = hashes([0, 1])
    first, second = pool.allocate(2)
    pool.publish(first, known)
    pool.publish(first, known)
    pool.publish(second, known)
    assert pool.find(known) == first
    assert not pool.is_writable(first)
    assert pool.is_writable(second)
    pool.release([second])
    assert pool.cached_blocks == 0
    pool.check([[first]])


def test_the_null_block_is_never_owned_and_may_stand_in_a_table() -> None:
    pool = BlockPool(3, BLOCK_TOKENS)
    table = pool.allocate(2)
    assert NULL_BLOCK not in table
    assert not pool.is_writable(NULL_BLOCK)
    with pytest.raises(ValueError, match="neither used nor cached"):
        pool.retain(NULL_BLOCK)
    with pytest.raises(ValueError, match="without an owner"):
        pool.publish(NULL_BLOCK, ROOT)
    pool.check([[NULL_BLOCK, *table]])
    pool.release([NULL_BLOCK, *table])
    pool.check([])


def test_mistakes_of_the_owner_are_refused() -> None:
    pool = BlockPool(4, BLOCK_TOKENS)
    [block] = pool.allocate(1)
    one, other = hashes([0, 0, 1, 1])
    pool.publish(block, one)
    with pytest.raises(ValueError, match="under another hash"):
        pool.publish(block, other)
    pool.release([block])
    with pytest.raises(ValueError, match="more often"):
        pool.release([block])
    with pytest.raises(ValueError, match="without an owner"):
        pool.publish(block, one)
    with pytest.raises(ValueError, match="neither used nor cached"):
        pool.retain(3)
    with pytest.raises(ValueError, match="2 blocks"):
        BlockPool(1, BLOCK_TOKENS)


def test_check_finds_a_reference_that_no_table_has() -> None:
    pool = BlockPool(4, BLOCK_TOKENS)
    table = pool.allocate(2)
    with pytest.raises(AssertionError, match="references"):
        pool.check([table[:1]])


@given(TOKENS, TOKENS)
def test_different_tokens_have_different_names(first: list[int], second: list[int]) -> None:
    assert (chain_hash(ROOT, first) == chain_hash(ROOT, second)) == (first == second)
    assert chain_hash(chain_hash(ROOT, first), second) != chain_hash(ROOT, [*first, *second])


def test_the_identity_is_part_of_every_name() -> None:
    assert root_hash("ab", "c") != root_hash("a", "bc") != root_hash("abc")
    assert root_hash("model") == root_hash(b"model")
    assert chain_hash(root_hash("model"), [1]) != chain_hash(root_hash("other"), [1])


def test_names_are_the_same_on_every_machine_and_of_ids_that_fit() -> None:
    assert chain_hash(root_hash("model"), [1, 2, 300_000]).hex() == "e3ab3ebce56e922ce7990c83aa12164f"
    with pytest.raises(struct.error):
        chain_hash(ROOT, [2**32])
    with pytest.raises(struct.error):
        chain_hash(ROOT, [-1])
    with pytest.raises(ValueError, match="16 bytes"):
        chain_hash(b"short", [1])
