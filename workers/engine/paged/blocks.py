"""The pool's blocks: who refers to them, what they hold, which is given away next. Pure; no arrays.

A block is a number. It is in exactly one of three places: used (someone refers to it), cached (nobody does, but its
content is known by a hash and can be found), or unused. Used and cached blocks may be published under the hash of all
tokens up to their end, so that a prompt with the same beginning finds them (the prefix cache of vLLM: Kwon et al.,
"Efficient Memory Management for Large Language Model Serving with PagedAttention", 2023).
"""

import hashlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence

NULL_BLOCK = 0  # padded positions are written there; stands in a table for a block that is no longer needed
HASH_BYTES = 16


class OutOfBlocks(Exception):
    """More blocks were asked for than are unused or cached; nothing was changed."""


def root_hash(*identity: str | bytes) -> bytes:
    """The parent of a first block: what its content depends on besides its tokens (model, adapter, ...)."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES, person=b"root")
    for part in identity:
        part_bytes = part.encode() if isinstance(part, str) else part
        digest.update(struct.pack("<Q", len(part_bytes)))
        digest.update(part_bytes)
    return digest.digest()


def chain_hash(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """The name of a block that holds `token_ids` after the tokens that `parent` names; 16 bytes, same on all machines.

    Raises ValueError if the parent is no hash, `struct.error` if an id is outside of 0..2**32-1.
    """
    if len(parent) != HASH_BYTES:
        raise ValueError(f"a parent hash has {HASH_BYTES} bytes, this one {len(parent)}")
    packed = struct.pack(f"<{len(token_ids)}I", *token_ids)
    return hashlib.blake2b(parent + packed, digest_size=HASH_BYTES).digest()


class BlockPool:
    """References, hashes and eviction order of `blocks` blocks of `block_tokens` tokens each. O(1) per block.

    `NULL_BLOCK` is one of them but is never allocated, referred to or published; giving it back does nothing.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        """Raises ValueError for less than two blocks (one is the null block) or blocks without tokens."""
        if blocks < 2 or block_tokens < 1:
            raise ValueError(f"a pool needs 2 blocks and 1 token per block, not {blocks} and {block_tokens}")
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.evictions_total = 0
        self._references = [0] * blocks
        self._hash_of: list[bytes | None] = [None] * blocks
        self._block_of: dict[bytes, int] = {}
        self._unused = list(range(blocks - 1, NULL_BLOCK, -1))  # a stack: low numbers first, so that new rows lie close
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def free_blocks(self) -> int:
        """How many can be allocated now: the unused and the cached ones."""
        return len(self._unused) + len(self._cached)

    @property
    def cached_blocks(self) -> int:
        """How many nobody refers to, but `find` still finds."""
        return len(self._cached)

    @property
    def used_blocks(self) -> int:
        """How many somebody refers to."""
        return self.blocks - 1 - self.free_blocks

    def references(self, block: int) -> int:
        """How many tables hold this block."""
        return self._references[block]

    def is_writable(self, block: int) -> bool:
        """Whether its only owner may write into it: exactly one reference and not published."""
        return self._references[block] == 1 and self._hash_of[block] is None

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one reference each: unused ones first, then the cached ones released longest ago.

        What those held can no longer be found. Raises OutOfBlocks, and changes nothing, if there are not enough.
        """
        if count > self.free_blocks:
            raise OutOfBlocks(f"{count} blocks asked for, {self.free_blocks} of {self.blocks - 1} free")
        return [self._take() for _ in range(count)]

    def _take(self) -> int:
        block = self._unused.pop() if self._unused else self._evict()
        self._references[block] = 1
        return block

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        evicted = self._hash_of[block]
        if evicted is not None:
            del self._block_of[evicted]
        self._hash_of[block] = None
        self.evictions_total += 1
        return block

    def retain(self, block: int) -> None:
        """One more reference to a used or cached block. Raises ValueError if it is neither."""
        if self._references[block] == 0:
            if block not in self._cached:
                raise ValueError(f"block {block} is neither used nor cached")
            del self._cached[block]
        self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each. Give a table front to back: its end is released first, and so evicted first.

        Raises ValueError at a block that nobody refers to; those behind it have been released then.
        """
        for block in reversed(blocks):
            if block == NULL_BLOCK:
                continue
            if self._references[block] == 0:
                raise ValueError(f"block {block} was released more often than retained")
            self._references[block] -= 1
            if self._references[block] == 0:
                self._put_back(block)

    def _put_back(self, block: int) -> None:
        if self._hash_of[block] is None:
            self._unused.append(block)
        else:
            self._cached[block] = None

    def find(self, block_hash: bytes) -> int | None:
        """The block that holds this content, used or cached, or None. Retain it before anything else is allocated."""
        return self._block_of.get(block_hash)

    def publish(self, block: int, block_hash: bytes) -> None:
        """Make a block findable: it is full and will not be written again.

        Does nothing if another block already has this hash; this one then stays private to its owner.
        Raises ValueError if nobody refers to the block or it is published under another hash.
        """
        if self._references[block] == 0:
            raise ValueError(f"block {block} is published without an owner")
        known = self._hash_of[block]
        if known is not None and known != block_hash:
            raise ValueError(f"block {block} is already published under another hash")
        if block_hash not in self._block_of:
            self._block_of[block_hash] = block
            self._hash_of[block] = block_hash

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """For tests: raise AssertionError unless references, hashes and lists agree with each other and the tables."""
        held = Counter(block for table in tables for block in table if block != NULL_BLOCK)
        expected = [held[block] for block in range(self.blocks)]
        assert self._references == expected, f"references {self._references}, tables say {expected}"
        free = [*self._unused, *self._cached]
        used = [block for block in range(self.blocks) if self._references[block]]
        assert sorted([*free, *used]) == list(range(1, self.blocks)), "a block is lost, twice in a list, or null"
        published = {block: known for block, known in enumerate(self._hash_of) if known is not None}
        assert {known: block for block, known in published.items()} == self._block_of, "hashes are no bijection"
        assert all(block in published for block in self._cached), "a cached block cannot be found"
        assert not any(block in published for block in self._unused), "an unused block can be found"
