"""Job ids carry their shard, so that any node computes a job's keys without a look-up: `<shard>-<ULID>`.

ULID: https://github.com/ulid/spec (sortable by time, 80 random bits).
"""

from __future__ import annotations

import re

from ulid import ULID

from scheduler.errors import UnknownJob

_JOB_ID = re.compile(r"[0-9]{1,4}-[0-9A-HJKMNP-TV-Z]{26}")


def new_job_id(shards: int) -> str:
    """Make an id whose shard is drawn from the id's own random part (uniform over `shards`)."""
    ulid = ULID()
    return f"{int(ulid) % shards}-{ulid}"


def shard_of(job_id: str) -> int:
    """Return the shard number. Raises UnknownJob when the text is not a job id."""
    if not _JOB_ID.fullmatch(job_id):
        raise UnknownJob(job_id)
    return int(job_id.partition("-")[0])
