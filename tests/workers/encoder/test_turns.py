"""Which inputs are computed next, and with which neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from workers.encoder.turns import PADDING_SHARE, Turns, pack


@dataclass(frozen=True)
class Item:
    id: str
    token_ids: tuple[int, ...]
    priority: int = 0


def item(request: str, index: int, tokens: int = 1, priority: int = 0) -> Item:
    return Item(f"{request}/{index}", (7,) * tokens, priority)


requests = st.lists(
    st.tuples(st.sampled_from("abcd"), st.integers(1, 50), st.sampled_from([-1, 0, 1])), min_size=1, max_size=40
)


@given(requests, st.integers(1, 100))
def test_every_input_is_taken_once_and_no_step_is_fuller_than_its_limit(
    asked: list[tuple[str, int, int]], max_tokens: int
) -> None:
    turns: Turns[Item] = Turns()
    items = [item(request, index, tokens, priority) for index, (request, tokens, priority) in enumerate(asked)]
    for waiting in items:
        turns.add(waiting)
    taken: list[Item] = []
    while len(turns):
        step = turns.take(max_tokens)
        assert step
        assert len(step) == 1 or sum(len(one.token_ids) for one in step) <= max_tokens
        taken += step
    assert sorted(one.id for one in taken) == sorted(one.id for one in items)
    assert [one.priority for one in taken] == sorted((one.priority for one in items), reverse=True)


def test_a_small_request_does_not_wait_for_a_large_one() -> None:
    turns: Turns[Item] = Turns()
    for index in range(2000):
        turns.add(item("large", index))
    turns.add(item("small", 0))
    assert "small/0" in [one.id for one in turns.take(4)]


def test_an_input_that_was_removed_is_not_taken() -> None:
    turns: Turns[Item] = Turns()
    for index in range(3):
        turns.add(item("a", index))
    assert turns.remove("a/1")
    assert not turns.remove("a/1")
    assert not turns.remove("b/0")
    assert (len(turns), [one.id for one in turns.take(10)]) == (2, ["a/0", "a/2"])


@given(st.lists(st.integers(1, 500), max_size=60))
def test_forwards_are_of_similar_lengths_and_lose_nobody(lengths: list[int]) -> None:
    packs = pack(lengths)
    assert sorted(index for part in packs for index in part) == list(range(len(lengths)))
    for part in packs:
        padded = max(lengths[index] for index in part) * len(part)
        assert padded - sum(lengths[index] for index in part) <= PADDING_SHARE * padded
