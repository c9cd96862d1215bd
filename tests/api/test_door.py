"""The way in: order, room and patience."""

from __future__ import annotations

import asyncio

import pytest

import api.door
from api.door import PLACES, Door
from tests.waiting import PATIENCE_S


async def test_only_so_many_are_inside_and_the_others_follow_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.door, "PATIENCE_S", PATIENCE_S)
    door, entered = Door(), list[int]()
    turns = [door.turn() for _ in range(PLACES + 2)]

    async def enter(index: int) -> None:
        await turns[index].begin()
        entered.append(index)

    waiting = [asyncio.create_task(enter(index)) for index in range(len(turns))]
    await asyncio.wait(waiting[:PLACES])
    assert entered == list(range(PLACES))
    turns[0].over()
    await waiting[PLACES]
    assert entered == list(range(PLACES + 1))
    turns[1].over()
    await waiting[PLACES + 1]
    assert entered == list(range(PLACES + 2))


async def test_a_turn_ends_once_however_often_it_is_said_to_be_over() -> None:
    door = Door()
    with door.turn() as turn:
        await turn.begin()
        turn.over()
    inside = [door.turn() for _ in range(PLACES)]
    for each in inside:
        await each.begin()
    late = asyncio.create_task(door.turn().begin())
    done, _ = await asyncio.wait([late], timeout=0.001)
    assert not done
    await late


async def test_who_has_waited_too_long_goes_in_anyway_and_gives_no_place_back() -> None:
    door = Door()
    inside = [door.turn() for _ in range(PLACES)]
    for each in inside:
        await each.begin()
    with door.turn() as impatient:
        await impatient.begin()  # nobody has left
    late = asyncio.create_task(door.turn().begin())
    done, _ = await asyncio.wait([late], timeout=0.001)
    assert not done
    await late


async def test_who_is_done_steps_aside_until_nobody_waits_outside() -> None:
    door = Door()
    turns = [door.turn() for _ in range(PLACES + 1)]
    for turn in turns[:PLACES]:
        await turn.begin()
    outside = asyncio.create_task(turns[PLACES].begin())
    done, _ = await asyncio.wait([outside], timeout=0.001)
    assert not done
    await turns[0].step_aside()
    assert outside.done()


async def test_nobody_steps_aside_for_longer_than_his_patience() -> None:
    door = Door()
    turns = [door.turn() for _ in range(PLACES + 2)]
    for turn in turns[:PLACES]:
        await turn.begin()
    outside = [asyncio.create_task(turn.begin()) for turn in turns[PLACES:]]
    await asyncio.wait(outside, timeout=0.001)
    await turns[0].step_aside()  # makes room for one; the other keeps waiting, but not for ever
    await asyncio.gather(*outside)
