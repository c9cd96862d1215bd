"""Where the tokens of one forward lie in the pool: index arrays and masks, made once and used by every layer.

A row of the forward has a block table, tokens that the pool holds already and new ones. Rows with fewer new tokens than
the longest are padded on the right; what is computed for the padding is written to block 0, which nobody owns. Reads
are planned per group of consecutive rows, so that a short row is not padded to the longest one of the batch.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from workers.engine.paged.sight import Ints, Mask, Sight

NULL_BLOCK = 0
PADDING_BOUND_TOKENS = 512  # a group is closed when its padding exceeds both bounds
PADDING_BOUND_SHARE = 0.25
SHARED_BOUND_TOKENS = 64  # a shorter common prefix is not worth an attention of its own


@dataclass(frozen=True, slots=True)
class Span:
    """One row of a forward: positions `start` to `start + tokens - 1` are new, those before them are in the pool.

    `table` has the block of every `block_tokens` positions and covers the new ones; it may be longer.
    """

    table: Sequence[int]
    start: int
    tokens: int


class Group(NamedTuple):
    """Consecutive rows that are attended together; their tables begin with the same `shared_blocks` full blocks."""

    first: int
    rows: int
    shared_blocks: int = 0

    @property
    def slice(self) -> slice:
        return slice(self.first, self.first + self.rows)


class View(NamedTuple):
    """What a group of rows sees of the pool: `blocks` (rows, n), next to each other, and which of their tokens."""

    blocks: Ints
    sight: Sight


class ForwardLayout:
    """Rows by new tokens, `tokens` being the most that any row has.

    Raises ValueError where a table does not cover its row, or the groups are not all rows in their order.
    """

    def __init__(self, spans: Sequence[Span], *, block_tokens: int, groups: Sequence[Group] | None = None) -> None:
        starts, counts = [span.start for span in spans], [span.tokens for span in spans]
        if not spans or min(counts) < 1 or min(starts) < 0:
            raise ValueError("every row needs a new token and a position from 0")
        self.block_tokens = block_tokens
        self.rows, self.tokens = len(spans), max(counts)
        self.groups = tuple(groups) if groups else (Group(0, self.rows),)
        self.is_fresh = not any(starts)  # whether no row has anything in the pool yet
        self.is_even = min(counts) == self.tokens  # whether no row is padded
        self._check_groups(starts)
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        self.tables = _padded_tables(spans, [-(-end // block_tokens) for end in ends])
        self.starts: Ints = np.array(starts, dtype=np.int32)
        self.ends: Ints = np.array(ends, dtype=np.int32)
        self.blocks_of: Ints = -(-self.ends // block_tokens)  # (rows,) blocks that each row has by the end
        self._indices: dict[Hashable, mx.array] = {}
        self._views: dict[tuple[Group, int | None], View] = {}
        self._fresh: dict[int | None, Sight] = {}
        self._window_groups: dict[int, tuple[Group, ...]] = {}

    @cached_property
    def written_blocks(self) -> Ints:
        """The blocks that the new tokens go to, without the null block."""
        if self.tokens == 1:
            return self.tables[np.arange(self.rows), self.blocks_of - 1]
        columns = np.arange(self.tables.shape[1], dtype=np.int32)
        written = (columns >= (self.starts // self.block_tokens)[:, None]) & (columns < self.blocks_of[:, None])
        return self.tables[written]

    @cached_property
    def offset(self) -> mx.array:
        """(rows,) int32: positions of the first new tokens."""
        return mx.array(self.starts)

    @cached_property
    def offset_after(self) -> mx.array:
        """(rows,) int32: where mlx-lm's caches stand after the forward, padding included."""
        return mx.array(self.starts + self.tokens)

    def groups_for(self, window: int | None) -> tuple[Group, ...]:
        """The rows' groups; a sliding window sees no shared prefix and has lengths of its own."""
        if window is None:
            return self.groups
        if window not in self._window_groups:
            seen = self.ends - np.maximum(self.starts - window + 1, 0)
            self._window_groups[window] = tuple(plan_groups(seen.tolist()))
        return self._window_groups[window]

    def writes(self, heads: int) -> mx.array:
        """(rows, heads, tokens) int32 rows of a pool [blocks * heads * block_tokens, width] for the new tokens."""
        if heads not in self._indices:
            blocks, inside = self._places
            first = np.arange(heads, dtype=np.int32) * self.block_tokens
            row = blocks * (heads * self.block_tokens) + inside
            self._indices[heads] = mx.array(row[:, None, :] + first[:, None])
        return self._indices[heads]

    def view(self, group: Group, window: int | None = None) -> View:
        key = (group, window)
        if key not in self._views:
            self._views[key] = self._make_view(group, window)
        return self._views[key]

    def reads(self, group: Group, window: int | None, heads: int) -> mx.array:
        """(rows, heads, n) int32 rows of a pool [blocks * heads, block_tokens * width] for the group's view."""
        key = (group, window, heads)
        if key not in self._indices:
            self._indices[key] = block_rows(self.view(group, window).blocks, heads)
        return self._indices[key]

    def shared_reads(self, group: Group, heads: int) -> mx.array:
        """(heads, shared_blocks) int32 rows, as `reads`, for the group's shared prefix."""
        key = (group, heads)
        if key not in self._indices:
            self._indices[key] = block_rows(self.tables[group.first, : group.shared_blocks], heads)
        return self._indices[key]

    def fresh_sight(self, window: int | None) -> Sight:
        """For attention to the new tokens alone: padding stands on the right, where nobody looks."""
        if window not in self._fresh:
            none = np.zeros_like(self.starts)
            self._fresh[window] = Sight(none, none + self.tokens, none, self.tokens, window)
        return self._fresh[window]

    @cached_property
    def everyone(self) -> Group:
        return Group(0, self.rows)

    def mask(self, window: int | None, narrower: int | None = None, *, return_array: bool = True) -> Mask:
        """(rows, 1, tokens, keys) for the view that all rows have as one group, in which `narrower` positions count.

        Without `return_array` in its simplest form.
        """
        sight = self.view(self.everyone, window).sight
        if not return_array and narrower in (None, window):
            return sight.mask
        key = ("mask", window, narrower)
        if key not in self._indices:
            self._indices[key] = sight.array(narrower)
        return self._indices[key]

    @cached_property
    def positions(self) -> Ints:
        """(rows, tokens) of the new tokens, and of padding as if it went on."""
        first: Ints = self.starts[:, None]
        further: Ints = np.arange(self.tokens, dtype=np.int32)
        return first + further

    @cached_property
    def _places(self) -> tuple[Ints, Ints]:
        """(rows, tokens) block of each new token, and its place inside; padding lies in block 0."""
        columns, inside = np.divmod(self.positions, np.int32(self.block_tokens))
        row = np.arange(self.rows)[:, None]
        if self.is_even:
            return self.tables[row, columns], inside
        blocks = self.tables[row, np.minimum(columns, self.tables.shape[1] - 1)]
        return np.where(self.positions < self.ends[:, None], blocks, NULL_BLOCK), inside

    def _check_groups(self, starts: Sequence[int]) -> None:
        place = 0
        for first, rows, shared_blocks in self.groups:
            if first != place or rows < 1:
                raise ValueError(f"groups {self.groups} are not {self.rows} rows in their order")
            place += rows
            if shared_blocks and shared_blocks * self.block_tokens > min(starts[first:place]):
                raise ValueError(f"group at row {first}: its shared prefix reaches into new tokens")
        if place != self.rows:
            raise ValueError(f"groups {self.groups} are not {self.rows} rows in their order")

    def first_blocks(self, group: Group, window: int | None) -> Ints:
        """(rows,) table columns of the first block that each row of the group reads by itself."""
        if window is None:
            return np.full(group.rows, group.shared_blocks, dtype=np.int32)
        return np.maximum(self.starts[group.slice] - window + 1, 0) // self.block_tokens

    def columns(self, group: Group, first: Ints, count: int) -> Ints:
        """(rows, count) block ids from each row's table column `first` on; its last block where it has no more."""
        tables = self.tables[group.slice]
        if (first == first[0]).all() and first[0] + count <= tables.shape[1]:
            return tables[:, first[0] : first[0] + count]
        columns = np.minimum(first[:, None] + np.arange(count, dtype=np.int32), self.blocks_of[group.slice, None] - 1)
        return tables[np.arange(group.rows)[:, None], columns]

    def sight(self, group: Group, base: Ints, window: int | None) -> Sight:
        """For keys of the group's rows that lie next to each other from position `base` (rows,) on."""
        return Sight(self.starts[group.slice], self.ends[group.slice], base, self.tokens, window)

    def _make_view(self, group: Group, window: int | None) -> View:
        first = self.first_blocks(group, window)
        blocks = self.columns(group, first, int((self.blocks_of[group.slice] - first).max()))
        return View(blocks, self.sight(group, first * self.block_tokens, window))


def _padded_tables(spans: Sequence[Span], blocks_of: Sequence[int]) -> Ints:
    """(rows, blocks of the longest); a shorter row is filled with its own last block, whose content is finite."""
    width = max(blocks_of)
    rows: list[Sequence[int]] = []
    for row, (span, blocks) in enumerate(zip(spans, blocks_of, strict=True)):
        if len(span.table) < blocks:
            raise ValueError(f"row {row}: {len(span.table)} blocks do not cover {span.start} + {span.tokens} tokens")
        rows.append(span.table[:blocks])
        if blocks < width:
            rows.append([span.table[blocks - 1]] * (width - blocks))
    return np.fromiter(chain.from_iterable(rows), np.int32, len(spans) * width).reshape(len(spans), width)


def block_rows(blocks: Ints, heads: int) -> mx.array:
    """(..., n) block ids -> (..., heads, n) rows of a pool [blocks * heads, ...]."""
    head = np.arange(heads, dtype=np.int32)[:, None]
    return mx.array(blocks[..., None, :] * heads + head)


def plan_groups(
    lengths: Sequence[int],
    *,
    first: int = 0,
    shared_blocks: int = 0,
    bound_tokens: int = PADDING_BOUND_TOKENS,
    bound_share: float = PADDING_BOUND_SHARE,
) -> list[Group]:
    """Consecutive rows of these lengths as groups that start at row `first`.

    A group ends before the row that would bring its padding above `bound_tokens` and above `bound_share` of its
    longest row times its rows. Best with rows sorted by length.
    """
    groups: list[Group] = []
    begin, longest, total = 0, 0, 0
    for row, length in enumerate(lengths):
        top = max(longest, length)
        padded = top * (row - begin + 1)
        padding = padded - total - length
        if row > begin and padding > bound_tokens and padding > bound_share * padded:
            groups.append(Group(first + begin, row - begin, shared_blocks))
            begin, total, top = row, 0, length
        longest, total = top, total + length
    if len(lengths) > begin:
        groups.append(Group(first + begin, len(lengths) - begin, shared_blocks))
    return groups


def _common_blocks(tables: Sequence[Sequence[int]], limit: int) -> int:
    """How many leading blocks all these tables have in common, at most `limit`."""
    some = tables[0]
    for table in tables[1:]:
        limit = next((i for i in range(limit) if table[i] != some[i]), limit)
    return limit


def arrange_rows(
    tables: Sequence[Sequence[int]], starts: Sequence[int], *, block_tokens: int
) -> tuple[list[int], list[Group]]:
    """An order of decoding rows, and the groups of the rows so ordered.

    Rows whose tables begin with the same block stand together and share what they have in common, if it is worth it;
    among themselves they are sorted by length, longest first. The groups stay valid while the rows only grow.
    """
    clusters: dict[int, list[int]] = {}
    for row, table in enumerate(tables):
        clusters.setdefault(table[0], []).append(row)
    shares: list[tuple[list[int], int]] = []
    alone: list[int] = []
    for members in clusters.values():
        limit = min(starts[row] for row in members) // block_tokens
        common = _common_blocks([tables[row] for row in members], limit) if len(members) > 1 else 0
        if common * block_tokens >= SHARED_BOUND_TOKENS:
            shares.append((members, common))
        else:
            alone += members
    order: list[int] = []
    groups: list[Group] = []
    for members, common in [*shares, (alone, 0)]:
        members.sort(key=lambda row: -starts[row])
        own = [starts[row] + 1 - common * block_tokens for row in members]
        groups += plan_groups(own, first=len(order), shared_blocks=common)
        order += members
    return order, groups
