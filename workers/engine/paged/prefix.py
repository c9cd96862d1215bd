"""Which computed blocks a row can take over instead of computing them, and which of its own others can. Pure."""

from collections import OrderedDict

from workers.engine.paged.blocks import NULL_BLOCK, BlockPool, chain_hash
from workers.engine.paged.rows import Row


class Snapshots:
    """Where copies of recurrent state lie, by the hash of the tokens that led to them; the least recently used go.

    Slots are numbered from `first`.
    """

    def __init__(self, *, first: int, count: int) -> None:
        self._free = list(range(first + count - 1, first - 1, -1))
        self._slots: OrderedDict[bytes, int] = OrderedDict()

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._slots

    def take(self, block_hash: bytes) -> int:
        """The slot of a snapshot that exists."""
        self._slots.move_to_end(block_hash)
        return self._slots[block_hash]

    def put(self, block_hash: bytes) -> int | None:
        """A slot to write a new snapshot to; None where there is none, or one exists already."""
        if block_hash in self._slots:
            self._slots.move_to_end(block_hash)
            return None
        if not self._free and not self._slots:
            return None
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        self._slots[block_hash] = slot
        return slot


class PrefixCache:
    """Finds, for a row, the blocks that hold what it still has to read. Turned off, it finds and publishes nothing.

    `window_tokens`: no layer looks further back, so blocks before that are not needed. `snapshots`: the model has
    recurrent state, so that a row can only continue where a copy of the state exists.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        enabled: bool = True,
        window_tokens: int | None = None,
        snapshots: Snapshots | None = None,
    ) -> None:
        self._pool = pool
        self._enabled = enabled
        self.window_tokens = window_tokens
        self._snapshots = snapshots
        self._tails: dict[bytes | None, Row] = {}
        self.hit_tokens_total = self.looked_up_tokens_total = 0

    def hash_at(self, row: Row, index: int) -> bytes:
        """The name of what the row's tokens are up to the end of block `index`; those tokens must be known."""
        size, hashes = self._pool.block_tokens, row.hashes
        while len(hashes) <= index:
            begin = len(hashes) * size
            hashes.append(chain_hash(hashes[-1] if hashes else row.root, row.tokens[begin : begin + size]))
        return hashes[index]

    def first_visible(self, position: int) -> int:
        """The first block that a token at `position` looks at."""
        if self.window_tokens is None:
            return 0
        return max(0, position - self.window_tokens + 1) // self._pool.block_tokens

    def window_blocks(self, chunk_tokens: int) -> int | None:
        """The most blocks that a row needs at once while it reads chunks of this size; None: all of its tokens'."""
        if self.window_tokens is None:
            return None
        return (self.window_tokens + chunk_tokens) // self._pool.block_tokens + 2

    def next_hash(self, row: Row) -> bytes | None:
        """The name of the block that the row computes next; None where nobody could wait for it."""
        index, inside = divmod(row.computed, self._pool.block_tokens)
        if not self._takes_over(row) or inside or (index + 1) * self._pool.block_tokens > len(row.tokens):
            return None
        return self.hash_at(row, index)

    def find(self, row: Row) -> list[int]:
        """Blocks to append to the row's table, from the block border where the row is; [] for none.

        The last known token is always left to be computed, and so the block that it lies in is never shared.
        """
        size = self._pool.block_tokens
        start, beyond = row.computed // size, row.prompt_target // size
        if not self._takes_over(row) or row.computed % size:
            return []
        found: list[int] = []
        best = run = start
        for index in range(start, beyond):
            block_hash = self.hash_at(row, index)
            block = self._pool.find(block_hash)
            found.append(NULL_BLOCK if block is None else block)
            if block is None:
                if self.window_tokens is None:
                    break
                run = index + 1
            elif run <= max(start, self.first_visible((index + 1) * size)) and (
                self._snapshots is None or block_hash in self._snapshots
            ):
                best = index + 1
        hidden = max(0, self.first_visible(best * size) - start)
        return [NULL_BLOCK if index < hidden else block for index, block in enumerate(found[: best - start])]

    def adopt(self, row: Row, blocks: list[int]) -> None:
        """Take over what `find` found."""
        for block in blocks:
            if block != NULL_BLOCK:
                self._pool.retain(block)
        row.table += blocks
        row.published = len(row.table)
        tokens = len(blocks) * self._pool.block_tokens
        row.computed += tokens
        self.hit_tokens_total += tokens
        row.reused += 0 if row.preemptions else tokens  # then it may be its own

    def find_tail(self, row: Row) -> int | None:
        """A block of another row that begins with all that this one still has to read, less than a block; or None.

        Its owner writes behind that: it is to be copied.
        """
        index = row.prompt_target // self._pool.block_tokens
        if (
            not self._tails
            or row.wants_scores
            or row.computed != index * self._pool.block_tokens
            or len(row.table) != index
        ):
            return None
        owner = self._tails.get(self._tail_name(row))
        block = NULL_BLOCK if owner is None else owner.table[index]
        return None if block == NULL_BLOCK else block

    def offer_tail(self, row: Row) -> None:
        """All that the row had to read is computed, or handed to the device: others may copy its end."""
        name = self._tail_name(row)
        if name is not None and name not in self._tails:
            self._tails[name], row.tail = row, name

    def withdraw_tail(self, row: Row) -> None:
        """The row's blocks are about to go."""
        self._tails.pop(row.tail, None)
        row.tail = None

    def _tail_name(self, row: Row) -> bytes | None:
        """Of what the row had to read, if that ends inside of a block; state behind such an end is not kept."""
        index, inside = divmod(row.prompt_target, self._pool.block_tokens)
        if not self._enabled or not inside or self._snapshots is not None:
            return None
        parent = self.hash_at(row, index - 1) if index else row.root
        return chain_hash(parent, row.tokens[row.prompt_target - inside : row.prompt_target])

    def look_up(self, row: Row) -> None:
        """Count a row's beginning."""
        size = self._pool.block_tokens
        self.looked_up_tokens_total += row.prompt_target // size * size if self._takes_over(row) else 0

    def _takes_over(self, row: Row) -> bool:
        """Not what it has to read itself, because the log-probabilities on the way are wanted."""
        return self._enabled and not row.wants_scores

    def publish(self, row: Row) -> None:
        """Offer the row's full blocks; only of work that has been handed to the device, or never will be again."""
        full = min(row.computed, len(row.tokens)) // self._pool.block_tokens
        if not self._enabled or full <= row.published:
            return
        for index in range(row.published, full):
            if row.table[index] != NULL_BLOCK:
                self._pool.publish(row.table[index], self.hash_at(row, index))
        row.published = full
