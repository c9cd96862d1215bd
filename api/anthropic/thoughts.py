"""Signatures of thinking blocks: they say that a block is whole, and carry its text where it is not displayed; pure.

A client sends the blocks back as they came, so that a template which wants past reasoning gets it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib

_SHOWN = "farm1."
_CARRIED = "farm1z."
_MOST_CARRIED_BYTES = 4 * 1024 * 1024


def signature(thinking: str, *, displayed: bool) -> str:
    """A signature: a digest of displayed text, else the text itself, compressed."""
    if displayed:
        return _SHOWN + hashlib.sha256(thinking.encode()).hexdigest()[:32]
    return _CARRIED + base64.urlsafe_b64encode(zlib.compress(thinking.encode())).decode()


def carried(signed: str) -> str | None:
    """The text that a signature carries; None for signatures that carry none, and for others' signatures."""
    if not signed.startswith(_CARRIED):
        return None
    try:
        packed = base64.urlsafe_b64decode(signed.removeprefix(_CARRIED))
        return zlib.decompressobj().decompress(packed, _MOST_CARRIED_BYTES).decode() or None
    except (binascii.Error, zlib.error, UnicodeDecodeError, ValueError):
        return None
