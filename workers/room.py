"""How many more sequences a worker should claim, given what its engine's memory holds; pure.

What it does not claim stays in the queue, where another worker can take it and where lanes and tenants are still
weighed; what it has claimed can only wait inside the engine, or be preempted and computed again.
"""

from __future__ import annotations

FULL_SHARE = 0.95
"""Of the cache's blocks: fuller than this, rows that grow will soon push each other out."""


def claimable_rows(free_rows: int, *, rows: int, waiting: int, used_blocks: int, total_blocks: int) -> int:
    """Sequences to claim: at most `free_rows`, none while memory is short.

    `rows` sequences are in the engine and `waiting` of them have not begun; `used_blocks` of the cache's `total_blocks`
    belong to rows (0 blocks: this engine does not count them). A new row is expected to need what a row has now.
    """
    if total_blocks == 0 or rows == 0:
        return free_rows
    if waiting > 0 or used_blocks >= total_blocks * FULL_SHARE:
        return 0
    blocks_per_row = max(1.0, used_blocks / rows)
    return min(free_rows, int((total_blocks - used_blocks) / blocks_per_row))
