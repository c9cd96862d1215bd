"""Working copies: the contexts of rows that are decoded together, kept next to each other from one step to the next.

Without them each step gathers every row's blocks anew. A copy belongs to a group of rows; as long as the same rows
come again, each a little longer, only their new tokens are added to it, and to the pools as always: a copy ends when
other rows come or somebody else has written to one of its blocks, and nothing is lost with it.
"""

from collections.abc import Sequence
from copy import copy

import mlx.core as mx
import numpy as np

from workers.engine.paged.layout import ForwardLayout, Group, block_rows
from workers.engine.paged.pools import JoinedPool, Sides
from workers.engine.paged.sight import Bools, Ints

MOST_NEW_TOKENS = 9  # per row of a forward that goes on with rows: one and its drafts; longer ones read prompts
LEAST_ROOM_BLOCKS = 4  # a copy is made with room for so many more blocks per row, or for a share of those it has
ROOM_SHARE = 0.125
KEPT_FORWARDS = 8  # an unused copy goes after so many forwards: reading prompts may come between two decoding steps


class GroupCopy:
    """One group's contexts, in each layer (rows, heads, capacity, width); `heads` are those of a joined pool.

    Row r holds the positions from `base[r]` to `ends[r]`. What stands behind that has no meaning.
    """

    def __init__(self, layout: ForwardLayout, group: Group, window: int | None) -> None:
        self.rows, self.shared_blocks, self.window = group.rows, group.shared_blocks, window
        self.used_at = 0
        self._block_tokens = layout.block_tokens
        self._first = layout.first_blocks(group, window)
        self._base: Ints = self._first * layout.block_tokens
        self._arrays: dict[JoinedPool, mx.array] = {}
        self._note(layout, group)
        columns = self._blocks.shape[1] + max(LEAST_ROOM_BLOCKS, int(self._blocks.shape[1] * ROOM_SHARE))
        self.capacity = int(columns) * layout.block_tokens  # tokens per row
        self._made_from = layout.columns(group, self._first, columns)

    def has_any(self, is_changed: Bools) -> bool:
        """Whether a block of this copy is true in `is_changed` (blocks,)."""
        return bool(is_changed[self._blocks].any())

    def continues(self, layout: ForwardLayout, group: Group) -> bool:
        """Whether the group's rows are this copy's, and there is room for their new tokens."""
        if group.rows != self.rows or group.shared_blocks != self.shared_blocks:
            return False
        starts = layout.starts[group.slice]
        reach = starts + (layout.tokens - self.capacity) if self._most + layout.tokens > self.capacity else None
        if reach is not None and (reach > self._base).any():
            return False
        goes_on = np.array_equal(starts, self._ends)
        if not goes_on and ((starts > self._ends).any() or self._went_back(layout, group)):
            return False
        blocks = layout.columns(group, self._first, self._blocks.shape[1])
        if np.array_equal(blocks, self._blocks):
            return True
        first_new = -(-starts // self._block_tokens) - self._first
        return bool(((blocks == self._blocks) | (np.arange(blocks.shape[1]) >= first_new[:, None])).all())

    def extend(self, layout: ForwardLayout, group: Group) -> None:
        """Get ready for a forward that this copy `continues`."""
        self._note(layout, group)

    def read(self, pool: JoinedPool, new: mx.array) -> Sides:
        """The group's keys and values, with `new` (rows, heads, tokens, width)."""
        array = self._arrays.get(pool)
        if array is None:
            array = pool.read_joined(block_rows(self._made_from, pool.heads))
            self._arrays[pool] = array
        elif self.sight.is_alike:
            array[:, :, self._most - new.shape[2] : self._most] = new
        else:
            array[self._new_places(pool.heads)] = new
        half, low, high = pool.heads // 2, self.sight.low, self.sight.high
        return Sides(array[:, :half, low:high], array[:, half:, low:high])

    def arrays(self) -> list[mx.array]:
        return list(self._arrays.values())

    def _note(self, layout: ForwardLayout, group: Group) -> None:
        self._ends: Ints = layout.ends[group.slice]
        own = int((layout.blocks_of[group.slice] - self._first).max())
        self._blocks: Ints = layout.columns(group, self._first, own)
        self._indices: dict[int, tuple[mx.array, mx.array, mx.array]] = {}
        self.sight = layout.sight(group, self._base, self.window)
        self._most = self.sight.high
        self._positions = layout.positions[group.slice]

    def _went_back(self, layout: ForwardLayout, group: Group) -> bool:
        """Whether a row sees tokens from before those that the copy was made of."""
        return self.window is not None and bool((layout.first_blocks(group, self.window) < self._first).any())

    def _new_places(self, heads: int) -> tuple[mx.array, mx.array, mx.array]:
        """(rows, heads, new tokens) each: row, head and place of the new tokens."""
        if heads not in self._indices:
            places = (self._positions - self._base[:, None])[:, None]
            shape = (self.rows, heads, places.shape[2])
            row, head = np.arange(self.rows)[:, None, None], np.arange(heads)[:, None]
            parts = (np.broadcast_to(part, shape).astype(np.int32) for part in (row, head, places))
            row_index, head_index, place_index = (mx.array(part) for part in parts)
            self._indices[heads] = row_index, head_index, place_index
        return self._indices[heads]


class WorkingCopies:
    """The copies of all groups, in at most `limit_bytes`."""

    def __init__(self, blocks: int, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._blocks = blocks
        self._now = 0
        self._copies: list[GroupCopy] = []
        self._plans: dict[int | None, list[GroupCopy | None]] = {}
        self._token_bytes: dict[int | None, int] = {}

    def adds(self, pool: JoinedPool, window: int | None) -> None:
        """A layer with this pool and window will ask for copies."""
        self._token_bytes[window] = self._token_bytes.get(window, 0) + pool.token_bytes

    def begin(self, layout: ForwardLayout) -> None:
        """Plan for a forward with this layout."""
        self._now += 1
        found = {window: self._continued(layout, window) for window in self._token_bytes}
        for window, copies in found.items():
            self._extend(layout, window, copies)
        self._drop(layout.written_blocks)
        self._plans = {window: self._completed(layout, window, copies) for window, copies in found.items()}

    def changed(self, blocks: Sequence[int]) -> None:
        """Blocks got another content in some other way."""
        self._now += 1
        self._drop(np.array(blocks, dtype=np.int32))

    def plan(self, window: int | None) -> list[GroupCopy | None]:
        """A copy, ready to be read, for each of the layout's groups, or None where there is none."""
        return self._plans[window]

    def arrays(self) -> list[mx.array]:
        """Of the copies that the last forward has made or added to. While they are not evaluated they hold pools."""
        return [copy(array) for held in self._copies if held.used_at == self._now for array in held.arrays()]

    @property
    def nbytes(self) -> int:
        return sum(self._bytes_of(held) for held in self._copies)

    def _drop(self, blocks: Ints) -> None:
        """What is not in use now: copies with any of these blocks, which are written to, and long unused ones."""
        is_changed = np.zeros(self._blocks, dtype=np.bool_)
        is_changed[blocks] = True
        self._copies = [
            held
            for held in self._copies
            if held.used_at == self._now or (self._now - held.used_at <= KEPT_FORWARDS and not held.has_any(is_changed))
        ]

    def _continued(self, layout: ForwardLayout, window: int | None) -> list[GroupCopy | None]:
        """For each group the copy that has its rows."""
        groups = layout.groups_for(window)
        if layout.tokens > MOST_NEW_TOKENS or layout.is_fresh:
            return [None] * len(groups)
        own = [held for held in self._copies if held.window == window]
        return [next((held for held in own if held.continues(layout, group)), None) for group in groups]

    def _extend(self, layout: ForwardLayout, window: int | None, copies: list[GroupCopy | None]) -> None:
        for group, held in zip(layout.groups_for(window), copies, strict=True):
            if held is not None:
                held.extend(layout, group)
                held.used_at = self._now

    def _completed(
        self, layout: ForwardLayout, window: int | None, copies: list[GroupCopy | None]
    ) -> list[GroupCopy | None]:
        """With new copies for the groups that have none, as far as there is room for them."""
        if layout.tokens > MOST_NEW_TOKENS or layout.is_fresh:
            return copies
        groups = layout.groups_for(window)
        return [held or self._made(layout, group, window) for group, held in zip(groups, copies, strict=True)]

    def _made(self, layout: ForwardLayout, group: Group, window: int | None) -> GroupCopy | None:
        made = GroupCopy(layout, group, window)
        made.used_at = self._now
        idle = sorted((c for c in self._copies if c.used_at < self._now), key=lambda c: c.used_at)
        while idle and self.nbytes + self._bytes_of(made) > self.limit_bytes:
            self._copies.remove(idle.pop(0))
        if self.nbytes + self._bytes_of(made) > self.limit_bytes:
            return None
        self._copies.append(made)
        return made

    def _bytes_of(self, held: GroupCopy) -> int:
        return int(held.rows * held.capacity) * self._token_bytes.get(held.window, 0)
