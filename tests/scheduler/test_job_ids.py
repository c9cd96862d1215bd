"""Job ids say where their job is."""

from __future__ import annotations

from collections import Counter

import pytest

from scheduler.errors import UnknownJob
from scheduler.job_ids import new_job_id, shard_of


def test_ids_are_spread_over_all_shards_and_say_which() -> None:
    ids = [new_job_id(8) for _ in range(1600)]
    assert len(set(ids)) == 1600
    counts = Counter(shard_of(job_id) for job_id in ids)
    assert set(counts) == set(range(8))
    assert min(counts.values()) > 100


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0-",
        "-01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "0-01arz3ndektsv4rrffq69g5fav",
        "0-01ARZ3NDEKTSV4RRFFQ69G5FA",
        "00000-X",
        "0-01ARZ3NDEKTSV4RRFFQ69G5FAV\n",
        "٣-01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "0-01ARZ3NDEKTSV4RRFFQ69G5FAU",
        "0:ev",
    ],
)
def test_other_texts_are_unknown_jobs(text: str) -> None:
    with pytest.raises(UnknownJob):
        shard_of(text)
