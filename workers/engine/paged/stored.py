"""Between the pool and the store on disk: what a waiting prompt is brought from there, and what is kept there.

Both happen between two steps, when nothing is running that reads or writes the pools.
"""

import time
from collections.abc import Iterable

import mlx.core as mx

from workers.engine.paged.blocks import NULL_BLOCK, BlockPool
from workers.engine.paged.cache import PagedModel
from workers.engine.paged.prefix import PrefixCache
from workers.engine.paged.rows import Row
from workers.engine.paged.store import PrefixStore, StoreStats

STATS_AGE_S = 1.0  # counting the files takes a while
KEPT_AT_ONCE_BLOCKS = 64  # of a long prompt, so that the others do not wait for its copy


class StoredPrefixes:
    """One model's blocks in one store."""

    def __init__(self, store: PrefixStore, model: PagedModel, pool: BlockPool, prefix: PrefixCache) -> None:
        self._store = store
        self._model = model
        self._pool = pool
        self._prefix = prefix
        self._stats, self._stats_s = store.stats, time.monotonic()

    @property
    def stats(self) -> StoreStats:
        """Up to a second old."""
        if time.monotonic() - self._stats_s > STATS_AGE_S:
            self._stats, self._stats_s = self._store.stats, time.monotonic()
        return self._stats

    def fetch(self, rows: Iterable[Row]) -> None:
        """Bring into the pool, as cached blocks, what the rows need and the store has; once for each row."""
        for row in rows:
            if not row.is_fetched and not row.wants_scores:
                row.is_fetched = True
                self._fetch(row)

    def keep_some(self, rows: Iterable[Row]) -> None:
        """Store published blocks of the rows, a few at a time."""
        left = KEPT_AT_ONCE_BLOCKS
        for row in rows:
            if row.kept < row.published and left > 0:
                end = min(row.published, row.kept + left)
                left -= end - row.kept
                self._keep(row, end)

    def keep(self, row: Row) -> None:
        """Store all of a row that is about to go."""
        self._prefix.publish(row)
        if row.kept < row.published:
            self._keep(row, row.published)

    def close(self) -> None:
        self._store.close()
        self._stats = self._store.stats

    def _fetch(self, row: Row) -> None:
        size = self._pool.block_tokens
        hashes = [self._prefix.hash_at(row, index) for index in range(row.prompt_target // size)]
        held = [block for block_hash in hashes if (block := self._pool.find(block_hash)) is not None]
        stored = self._store.find(hashes)
        known = next((i for i, name in enumerate(hashes) if self._pool.find(name) is None), len(hashes))
        first = max(known, self._prefix.first_visible(stored * size))
        if first >= len(hashes):
            return
        loaded = self._store.load(hashes[first:])
        for block in held:
            self._pool.retain(block)
        count = min(loaded.blocks, self._pool.free_blocks)
        blocks = self._pool.allocate(count)
        if blocks:
            mx.synchronize()  # only then are the pools written in place
            self._model.write_blocks(blocks, {name: array[:count] for name, array in loaded.arrays.items()})
            for block, block_hash in zip(blocks, hashes[first:], strict=False):
                self._pool.publish(block, block_hash)
        self._pool.release([*held, *blocks])

    def _keep(self, row: Row, end: int) -> None:
        places = [index for index in range(row.kept, end) if row.table[index] != NULL_BLOCK]
        row.kept = end
        hashes = [self._prefix.hash_at(row, index) for index in places]
        missing = self._store.missing(hashes)
        if missing:
            arrays = self._model.read_blocks([row.table[places[index]] for index in missing])
            self._store.save([hashes[index] for index in missing], arrays)
