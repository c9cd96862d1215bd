"""How large the cache becomes, by what there is and what can be used."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.engine.paged.sizing import CacheNeeds, cache_blocks, snapshot_slots

MIB = 1 << 20
NEEDS = CacheNeeds(
    block_tokens=16,
    block_bytes=MIB,
    weight_bytes=1000 * MIB,
    max_sequences=32,
    context_tokens=4096,
    spare_bytes=6000 * MIB,
)


@pytest.mark.parametrize(
    ("changes", "blocks"),
    [
        ({}, 4000),  # four times the weights
        ({"spare_bytes": 3000 * MIB}, 3000),
        ({"weight_bytes": 5000 * MIB}, 6000),
        ({"weight_bytes": MIB}, 256),  # small models, small caches, but one whole context where there is room for it
        ({"weight_bytes": MIB, "context_tokens": 1024}, 128),
        ({"weight_bytes": MIB, "context_tokens": 1024, "max_sequences": 1}, 64),  # all that can be used
        ({"weight_bytes": MIB, "context_tokens": 16_384, "spare_bytes": 700 * MIB}, 700),
        ({"context_tokens": None}, 4000),
        ({"block_bytes": 0}, 32 * 256),
        ({"spare_bytes": 0}, 1),
    ],
)
def test_a_cache_is_as_large_as_is_useful_and_modest(changes: dict[str, int], blocks: int) -> None:
    assert cache_blocks(replace(NEEDS, **changes)) == blocks


def test_what_is_asked_for_is_taken() -> None:
    assert cache_blocks(NEEDS, kv_blocks=77) == 77
    assert cache_blocks(NEEDS, kv_bytes=5 * MIB + 1) == 5
    assert cache_blocks(NEEDS, kv_bytes=1) == 1


@given(
    st.integers(1, 10**7),
    st.integers(0, 10**11),
    st.integers(1, 64),
    st.one_of(st.none(), st.integers(1, 200_000)),
    st.integers(0, 10**11),
)
def test_a_cache_never_takes_more_than_the_node_can_spare(
    block_bytes: int, weight_bytes: int, sequences: int, context: int | None, spare_bytes: int
) -> None:
    needs = CacheNeeds(
        block_tokens=16,
        block_bytes=block_bytes,
        weight_bytes=weight_bytes,
        max_sequences=sequences,
        context_tokens=context,
        spare_bytes=spare_bytes,
    )
    blocks = cache_blocks(needs)
    assert blocks == 1 or blocks * block_bytes <= spare_bytes
    assert blocks <= sequences * -(-(context or 32_768) // 16)


def test_copies_of_states_are_few_and_take_a_share_of_the_cache() -> None:
    assert snapshot_slots(slot_bytes=0, blocks=1000, block_bytes=MIB) == 0
    assert snapshot_slots(slot_bytes=MIB, blocks=1000, block_bytes=MIB) == 64
    assert snapshot_slots(slot_bytes=10 * MIB, blocks=1000, block_bytes=MIB) == 25
    assert snapshot_slots(slot_bytes=MIB, blocks=40, block_bytes=MIB) == 10
