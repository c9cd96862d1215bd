"""One attention layer's cache: what stands where mlx-lm's cache stood, over a pool of blocks."""

import mlx.core as mx

from workers.engine.paged.attention import AttendingCache, AttentionReader, Trace
from workers.engine.paged.layout import ForwardLayout
from workers.engine.paged.pools import BlockArray, KvPool, Sides, make_pool
from workers.engine.paged.sight import Mask


class PagedLayer(AttendingCache):
    """One attention layer's cache, for the rows of the layout that it was given last.

    A direct layer answers the seam itself. Any other gives the model the keys and values of all rows' contexts, padded
    to the longest, and the mask that belongs to them.
    """

    def __init__(self, blocks: int, block_tokens: int, window: int | None, *, rounds: bool = False) -> None:
        self.window = window  # of what is read: the last `window` positions
        self.needs_masks = True
        self.grouped_masks = False  # masks (rows, 1, 1, tokens, keys), for scores that split query heads by key heads
        self.pool: KvPool | None = None
        self._reader: AttentionReader | None = None
        self._blocks, self._block_tokens, self._rounds = blocks, block_tokens, rounds
        self._layout: ForwardLayout | None = None
        self._updated = False
        self._fetched: Sides | None = None

    def make_direct(self, reader: AttentionReader, window: int | None) -> None:
        """From now on the layer attends by itself, to the last `window` positions or to all. It must have a pool."""
        if self.pool is None:
            raise RuntimeError("a direct layer needs a pool")
        reader.adds(self.pool, window)
        self.direct, self._reader, self.window = True, reader, window

    @property
    def arrays(self) -> dict[str, BlockArray]:
        """By name; none before the first update."""
        return {} if self.pool is None else self.pool.arrays

    def begin(self, layout: ForwardLayout) -> None:
        self._layout, self._updated = layout, False

    def end(self) -> None:
        """Drop everything that refers to the pool's present arrays."""
        self._layout = self._fetched = None

    @property
    def offset(self) -> mx.array:
        """(rows,) int32: like mlx-lm's caches it has moved on once the layer was updated."""
        layout = self._require_layout()
        return layout.offset_after if self._updated else layout.offset

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Mask:
        layout = self._require_layout()
        if Trace.active is not None:
            mask = self._shaped(layout.mask(self.window, window_size))
            return Trace.active.makes_mask(mask, window_size or self.window)
        if not self.needs_masks:
            return None
        return self._shaped(layout.mask(self.window, window_size, return_array=return_array))

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        layout = self._require_layout()
        if self.pool is None:
            self.pool = make_pool(self._blocks, self._block_tokens, keys, values, rounds=self._rounds)
        self._updated = True
        if self.direct:
            return keys, values  # which come back to `attend`
        self.pool.write(layout, keys, values)
        self._fetched = self.pool.read(layout, layout.everyone, self.window)
        if Trace.active is not None:
            Trace.active.hands_out(self, self._fetched)
        return self._fetched

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What the update returned, for a later layer that has no keys and values of its own."""
        if self._fetched is None:
            raise RuntimeError("a layer shares keys and values that no layer has computed")
        if Trace.active is not None:
            Trace.active.shares(self)
        return self._fetched

    def attend(
        self, queries: mx.array, keys: mx.array, values: mx.array, scale: float, sinks: mx.array | None
    ) -> mx.array:
        layout, pool, reader = self._require_layout(), self.pool, self._reader
        if pool is None or reader is None:
            raise RuntimeError("attention before the layer's cache was updated")
        return reader.attend(queries, keys, values, pool, layout, window=self.window, scale=scale, sinks=sinks)

    def empty(self) -> bool:
        return self.pool is None

    def size(self) -> int:
        return 0

    def is_trimmable(self) -> bool:
        return False

    def _shaped(self, mask: Mask) -> Mask:
        return mask[:, None] if self.grouped_masks and isinstance(mask, mx.array) else mask

    def _require_layout(self) -> ForwardLayout:
        if self._layout is None:
            raise RuntimeError("a paged layer is used outside of a forward")
        return self._layout
