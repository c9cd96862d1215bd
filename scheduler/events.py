"""Facts about jobs, past tense, and their wire form in the event log; pure.

An entry of the stream `{shard}ev` has the fields `t` (type), `j` (job id), `at` (ms, Redis' clock)
and `d` (JSON object).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson


class EventType(StrEnum):
    """The vocabulary of the event log."""

    SUBMITTED = "submitted"
    SCHEDULED = "scheduled"
    """Submitted, to begin later."""
    CLAIMED = "claimed"
    REQUEUED = "requeued"
    DELAYED = "delayed"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    DIED = "died"
    LOST = "lost"
    """Only the record had it any more."""


@dataclass(frozen=True, slots=True)
class Event:
    """One fact. `id` is the stream id `<ms>-<seq>`, unique and increasing within a shard."""

    id: str
    type: EventType
    job_id: str
    at_ms: int
    data: Mapping[str, Any]

    @property
    def position(self) -> tuple[int, int]:
        """The id as numbers, for ordering."""
        return stream_position(self.id)


def stream_position(stream_id: str) -> tuple[int, int]:
    """`"17-3"` → `(17, 3)`."""
    ms, _, sequence = stream_id.partition("-")
    return int(ms), int(sequence)


def decode_event(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Event:
    """Read one stream entry. Raises KeyError or ValueError for a malformed one.

    NUL characters, which PostgreSQL cannot store as text, become U+FFFD.
    """
    data = orjson.loads(fields[b"d"].replace(rb"\u0000", rb"\ufffd"))
    if not isinstance(data, dict):
        raise ValueError("the event's data is not an object")
    return Event(
        id=entry_id.decode(),
        type=EventType(fields[b"t"].decode()),
        job_id=fields[b"j"].decode(),
        at_ms=int(fields[b"at"]),
        data=data,
    )
