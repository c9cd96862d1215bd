"""How far a draft model has read each row. Pure.

Its pools have as many blocks as its target's, and a row has one table for both: a block number stands for the row's
tokens there, in both models' pools. So blocks are allocated, shared, found again and released once, for both; what the
draft model holds in them is known here. It may hold less, never something else: whatever it has not read, or has read
on a wrong guess, it reads before it goes on. (Even a mistake here would only make its guesses worse.)
"""

from collections.abc import Collection, Sequence

from workers.engine.paged.prefix import PrefixCache
from workers.engine.paged.rows import Row


class Mirror:
    """What the draft model's pools hold: per row, the tokens from its beginning; per block, the content of full ones.

    A full block stays known by its hash when its row has gone, so that rows which find it as a prefix need not have it
    read again.
    """

    def __init__(self, prefix: PrefixCache, block_tokens: int) -> None:
        self._prefix = prefix
        self._block_tokens = block_tokens
        self._content: dict[int, bytes] = {}
        self._reached: dict[str, int] = {}
        self._ahead: dict[str, tuple[int, ...]] = {}

    def reach(self, row: Row) -> int:
        """How many of the row's tokens are read, from its beginning on."""
        before = reached = self._reached.get(row.id, 0)
        size = self._block_tokens
        if len(row.tokens) > before:
            for token in self._ahead.pop(row.id, ()):
                if reached >= len(row.tokens) - 1 or row.tokens[reached] != token:
                    break
                reached += 1
            self._note(row, before, reached)
        while reached % size == 0 and reached + size < len(row.tokens):
            block = row.table[reached // size]
            if self._content.get(block) != self._prefix.hash_at(row, reached // size):
                break
            reached += size
        self._reached[row.id] = reached
        return reached

    def begins(self, row: Row, start: int, end: int) -> None:
        """The row's positions from `start` to `end` - 1 are about to be written."""
        for block in row.table[start // self._block_tokens : -(-end // self._block_tokens)]:
            self._content.pop(block, None)

    def has_read(self, row: Row, reached: int, ahead: Sequence[int] = ()) -> None:
        """The first `reached` tokens of the row are read, and these guesses behind them."""
        before = self._reached.get(row.id, 0)
        self._reached[row.id], self._ahead[row.id] = reached, tuple(ahead)
        self._note(row, before, reached)

    def forget(self, row_ids: Collection[str]) -> None:
        """These rows have no tables any more."""
        for row_id in row_ids:
            self._reached.pop(row_id, None)
            self._ahead.pop(row_id, None)

    def clear(self) -> None:
        """Nothing is held any more."""
        self._content.clear()
        self._reached.clear()
        self._ahead.clear()

    def _note(self, row: Row, before: int, reached: int) -> None:
        """Keep the names of the blocks that became full between `before` and `reached`."""
        for index in range(before // self._block_tokens, reached // self._block_tokens):
            self._content[row.table[index]] = self._prefix.hash_at(row, index)
