"""Names of a prompt's beginnings, so that the queue can tell which worker has read one before; pure.

They say nothing about the text to who reads them, and are the same wherever the same tokens are read under the same
root (what is shared depends on the adapter and on the tenant's salt).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

SHORTEST_TOKENS = 128
"""What is shorter is read again faster than anybody could wait for it."""

LONGEST_TOKENS = 1 << 16


def prefix_marks(token_ids: Sequence[int], *, root: str = "") -> list[str]:
    """Of the first 128, 256, 512, … tokens (16 hexadecimal digits each), the longest beginning first.

    The last token is never part of one: it has to be computed anyway.
    """
    marks: list[str] = []
    digest, done, size = blake2b(root.encode(), digest_size=8), 0, SHORTEST_TOKENS
    while size < len(token_ids) and size <= LONGEST_TOKENS:
        digest.update(array("q", token_ids[done:size]).tobytes())
        marks.append(digest.hexdigest())
        done, size = size, size * 2
    return marks[::-1]
