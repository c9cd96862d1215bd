"""How many more sequences a worker should claim, given what its engine holds and can begin; pure.

What it does not claim stays in the queue, where another worker can take it and where lanes and tenants are still
weighed; what it has claimed can only wait inside the engine, or be preempted and computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

FULL_SHARE = 0.95
"""Of the cache's blocks: fuller than this, rows that grow will soon push each other out."""


@dataclass(frozen=True, slots=True)
class RowBounds:
    """What a worker may hold: `rows` sequences, of which the last `reserved` are the high lane's only.

    No more than `ahead` of them may wait for the engine to begin them (None: no such bound).
    """

    rows: int
    reserved: int = 0
    ahead: int | None = None


class Room(NamedTuple):
    """Sequences to claim, the last `reserved` of them from the high lane only."""

    rows: int
    reserved: int


def room(bounds: RowBounds, *, taken: int, begun: int, waiting: int, used_blocks: int, total_blocks: int) -> Room:
    """What may be claimed: nothing while memory is short.

    `taken` sequences are in hand, `begun` of them are known to have begun, and `waiting` in the engine have not;
    `used_blocks` of the cache's `total_blocks` belong to rows (0 blocks: this engine does not count them). A new row is
    expected to need what a row has now.
    """
    begun = min(taken, begun)
    free, reserved = max(0, bounds.rows - taken), bounds.reserved
    if bounds.ahead is not None:
        soon = max(0, min(free, bounds.ahead - (taken - begun)))
        free, reserved = soon, max(0, reserved - (free - soon))  # the high lane has what is not claimed now, too
    rows = min(taken, begun + waiting)
    if total_blocks == 0 or rows == 0:
        return Room(free, reserved)
    if waiting > 0 or used_blocks >= total_blocks * FULL_SHARE:
        return Room(0, reserved)
    blocks_per_row = max(1.0, used_blocks / rows)
    return Room(min(free, int((total_blocks - used_blocks) / blocks_per_row)), reserved)
