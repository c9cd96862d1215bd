"""How many blocks the cache gets: what a node can spare, and no more than its sequences can use. Pure."""

from dataclasses import dataclass

ASSUMED_CONTEXT_TOKENS = 32_768  # of models whose configuration names no bound
SMALL_CACHE_BYTES = 128 << 20  # a cache may always be that large, where there is a node's share of memory for it
WEIGHTS_TIMES = 4  # and otherwise so many times as large as the weights
MOST_SNAPSHOTS = 64
BLOCKS_PER_SNAPSHOT = 4
SNAPSHOT_SHARE = 0.25  # of the cache's bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheNeeds:
    """What the size follows from. `block_bytes` is 0 for a model without attention; `spare_bytes` is what the node
    gives at most, `context_tokens` what one sequence may reach."""

    block_tokens: int
    block_bytes: int
    weight_bytes: int
    max_sequences: int
    context_tokens: int | None
    spare_bytes: int


def cache_blocks(needs: CacheNeeds, *, kv_blocks: int | None = None, kv_bytes: int | None = None) -> int:
    """Blocks for tokens (the null block comes on top): as asked for by `kv_blocks` or `kv_bytes`, or else

    enough for every sequence to reach its end, as far as that fits into the node's spare memory, and into four times
    the weights or 128 MiB; but one whole context wherever that is spare.
    """
    context_blocks = -(-(needs.context_tokens or ASSUMED_CONTEXT_TOKENS) // needs.block_tokens)
    useful = needs.max_sequences * context_blocks
    if kv_blocks is not None:
        return max(1, kv_blocks)
    if needs.block_bytes == 0:
        return useful
    if kv_bytes is not None:
        return max(1, kv_bytes // needs.block_bytes)
    modest_bytes = min(needs.spare_bytes, max(SMALL_CACHE_BYTES, WEIGHTS_TIMES * needs.weight_bytes))
    spare = needs.spare_bytes // needs.block_bytes
    return max(1, min(useful, max(modest_bytes // needs.block_bytes, min(context_blocks, spare))))


def snapshot_slots(*, slot_bytes: int, blocks: int, block_bytes: int) -> int:
    """How many copies of a sequence's recurrent state are kept, so that prompts can go on from there.

    One is worth nothing without the blocks before it.
    """
    if slot_bytes == 0:
        return 0
    spare_bytes = int(SNAPSHOT_SHARE * max(blocks * block_bytes, SMALL_CACHE_BYTES))
    return min(MOST_SNAPSHOTS, blocks // BLOCKS_PER_SNAPSHOT, spare_bytes // slot_bytes)
