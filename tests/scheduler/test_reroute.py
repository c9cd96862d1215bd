"""A job that one model gives up on is taken over by another, in one step with its event."""

from __future__ import annotations

from redis.asyncio import Redis

from scheduler.events import EventType
from scheduler.failover import reroute
from scheduler.frames import AnswerPart, Chunk, decode_body, encode_chunks
from scheduler.jobs import JobState, replay
from scheduler.queue import shard_key
from scheduler.requests import JobRequest
from tests.scheduler.builders import Farm, make_request

OTHER = "cloud/big"
WHY = {"error_code": "provider_error", "error": "it is full"}


def asked(model: str = "demo", *fallbacks: JobRequest) -> JobRequest:
    return make_request(model=model, fallbacks=tuple(each.encode() for each in fallbacks))


async def test_the_other_model_finds_it_at_the_front_of_its_queue_and_the_record_who_had_it_before(
    redis: Redis,
) -> None:
    farm = Farm(redis)
    held = await farm.start(request=asked("demo", asked(OTHER)))
    first = await farm.submit(pool=OTHER, model=OTHER)
    request = held.request.next_request()
    assert request is not None
    assert request.model == OTHER
    assert await reroute(farm.queue, held.id, held.token, request, WHY) == "ok"
    assert await reroute(farm.queue, held.id, held.token, request, WHY) == "fenced"
    assert await farm.claim() == []
    await farm.worker("w2")
    taken = await farm.queue.claim("w2", OTHER, rows=2, nonce="n", idle=True)
    assert [job.id for job in taken] == [held.id, first]
    assert (taken[0].request, taken[0].request.next_request()) == (request, None)
    job = replay(await farm.events())[held.id]
    assert (job.model, job.state, job.attempts) == (OTHER, JobState.RUNNING, 2)
    assert job.routing["passed_over"] == [{"model": "demo", "reason": "provider_error"}]
    assert not await farm.finish(held)
    assert await farm.finish(taken[0], prompt_tokens=9, cost_usd=0.25, provider="cloud")
    job = replay(await farm.events())[held.id]
    assert (job.prompt_tokens, job.cost_usd) == (9, 0.25)
    assert await farm.finish(taken[1])
    assert await farm.counts() == {}
    assert await farm.eternal_keys(held.id) == []


async def test_a_job_that_was_asked_to_stop_ends_instead(redis: Redis) -> None:
    farm = Farm(redis)
    held = await farm.start(request=asked("demo", asked(OTHER)))
    await farm.queue.cancel(held.id, "me")
    assert await reroute(farm.queue, held.id, held.token, asked(OTHER), WHY) == "ended"
    assert await farm.state(held.id) is JobState.CANCELLED
    assert await farm.told(held.id) == ["submitted", "claimed", "cancelled"]


async def test_a_failure_that_may_pass_is_not_tried_again_before_its_time(redis: Redis) -> None:
    farm = Farm(redis)
    held = await farm.start()
    facts = {**WHY, "output_tokens": 0}
    assert int(await farm.queue.retry(held.id, held.token, "provider_error", facts, least_ms=600_000)) >= 600_000
    assert await farm.state(held.id) is JobState.DELAYED


async def test_a_tenant_owes_what_the_provider_counted_and_not_the_estimate(redis: Redis) -> None:
    farm = Farm(redis)
    held = await farm.start(request=make_request(conversation=b"{}", prompts=((),)))
    await farm.say(held, 1)
    assert await farm.finish(held, EventType.FINISHED, output_tokens=500, cached_tokens=0, provider="cloud")
    owed = await redis.hget(shard_key(0, "vt"), "F:demo:normal:default")  # type: ignore[misc]
    scores = await redis.zrange(shard_key(0, "act:demo:normal"), 0, -1, withscores=True)
    assert 500.0 in ([float(owed)] if owed else []) + [score for _, score in scores]
    assert (await farm.queue.snapshot(held.id) or {})["out"] == "500"


def test_parts_of_an_answer_survive_the_wire_and_count_as_an_estimate() -> None:
    parts: tuple[AnswerPart, ...] = (("reasoning", "hmm", 0, None, None), ("call", "{}", 0, "look", "id1"))
    chunk = Chunk(0, (), "", None, "stop", None, parts=parts)
    assert decode_body(encode_chunks([chunk])) == (chunk,)
    assert (chunk.tokens, Chunk(0, (1, 2), "ab").tokens) == (2, 2)
