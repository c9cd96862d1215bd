"""One circuit per provider's model, shared by all who ask it."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from scheduler.circuits import CircuitPolicy, Circuits, CircuitState
from scheduler.model_events import ModelEvents
from tests.waiting import until_async

MODEL = "cloud/big"
FOR_EVER_MS = 10**9


def circuits(redis: Redis, worker: str = "w1", *, open_ms: int = FOR_EVER_MS, probe_ms: int = FOR_EVER_MS) -> Circuits:
    policy = CircuitPolicy(failures=3, window_ms=FOR_EVER_MS, open_ms=open_ms, probe_ms=probe_ms)
    return Circuits(redis, worker, policy)


async def _told(redis: Redis) -> list[tuple[str, str, str]]:
    facts = await ModelEvents(redis).newest(100, MODEL)
    return [(fact["event"], fact["from"], fact["why"]) for fact in reversed(facts)]


async def test_failures_in_a_row_open_it_for_everybody_and_it_says_so_once(redis: Redis) -> None:
    one, other = circuits(redis), circuits(redis, "w2")
    for _ in range(2):
        assert (await one.failed(MODEL, "provider_error")).state is CircuitState.CLOSED
    assert (await other.ask(MODEL)).wait_ms == 0
    assert (await other.failed(MODEL, "provider_timeout")).state is CircuitState.OPEN
    for asking in (one, other):
        answer = await asking.ask(MODEL)
        assert answer.state is CircuitState.OPEN
        assert 0 < answer.wait_ms <= FOR_EVER_MS
    assert (await one.failed(MODEL, "late")).state is CircuitState.OPEN
    assert await _told(redis) == [("circuit_opened", "closed", "provider_timeout")]
    assert await one.is_shut(MODEL)
    assert (await one.ask("cloud/other")).wait_ms == 0


async def test_an_answer_in_between_makes_the_count_begin_again(redis: Redis) -> None:
    circuit = circuits(redis)
    for _ in range(3):
        await circuit.failed(MODEL, "x")
        await circuit.failed(MODEL, "x")
        await circuit.went_well(MODEL)
    assert (await circuit.ask(MODEL)).state is CircuitState.CLOSED
    assert await _told(redis) == []


async def test_old_failures_are_forgotten(redis: Redis) -> None:
    circuit = Circuits(redis, "w1", CircuitPolicy(failures=2, window_ms=1, open_ms=FOR_EVER_MS))
    await circuit.failed(MODEL, "x")

    async def forgotten() -> bool:
        return not await redis.exists(f"{{farm}}:circuit:{MODEL}")

    await until_async(forgotten)
    assert (await circuit.failed(MODEL, "x")).state is CircuitState.CLOSED


async def test_of_all_who_ask_when_its_time_is_over_one_is_the_probe(redis: Redis) -> None:
    many = [circuits(redis, f"w{number}", open_ms=1) for number in range(8)]
    for _ in range(3):
        await many[0].failed(MODEL, "x")

    async def over() -> bool:
        return not await many[0].is_shut(MODEL)

    await until_async(over)
    answers = await asyncio.gather(*(each.ask(MODEL) for each in many))
    assert sorted(answer.wait_ms > 0 for answer in answers) == [False] + [True] * 7
    assert {answer.state for answer in answers} == {CircuitState.HALF_OPEN}
    await many[0].went_well(MODEL)
    assert (await many[1].ask(MODEL)).state is CircuitState.CLOSED
    assert [event for event, _, _ in await _told(redis)] == ["circuit_opened", "circuit_half_open", "circuit_closed"]


async def test_a_probe_that_fails_opens_it_again_and_one_that_is_lost_is_replaced(redis: Redis) -> None:
    circuit = circuits(redis, open_ms=1, probe_ms=1)
    for _ in range(3):
        await circuit.failed(MODEL, "x")

    async def probe() -> bool:
        return (await circuit.ask(MODEL)).wait_ms == 0

    await until_async(probe)
    await until_async(probe)  # the first has not come back
    assert (await circuit.failed(MODEL, "again")).state is CircuitState.OPEN
    told = await _told(redis)
    assert told[-1] == ("circuit_opened", "half_open", "again")
