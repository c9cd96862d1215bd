"""What a job's events make of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from scheduler.events import Event, EventType
from scheduler.jobs import TERMINAL, TRANSITIONS, IllegalMove, JobState, Lane, apply_after_loss, replay
from tests.scheduler.builders import ENDED, Farm


async def test_a_job_is_what_its_events_say(farm: Farm) -> None:
    job_id = await farm.submit(tenant="t", lane=Lane.HIGH, route="r", rule_version=2, model_asked="gpt", request_id="q")
    (held,) = await farm.claim()
    await farm.queue.release(held.id, held.token, "drain")
    (held,) = await farm.claim("w2")
    await farm.finish(held)
    events = await farm.events()
    job = replay(events)[job_id]
    assert (job.state, job.tenant, job.lane, job.route) == (JobState.FINISHED, "t", Lane.HIGH, "r")
    assert (job.rule_version, job.model_asked, job.model, job.request_id) == (2, "gpt", "demo", "q")
    assert (job.worker, job.attempts, job.crashes, job.prompt_tokens) == ("w2", 2, 0, 3)
    assert (job.submitted_ms, job.claimed_ms, job.ended_ms) == (events[0].at_ms, events[1].at_ms, events[-1].at_ms)
    assert {name: getattr(job, name) for name in ENDED} == ENDED
    assert job.last_event == events[-1].id


async def test_crashes_are_counted_to_the_end(farm: Farm) -> None:
    await farm.start()
    await farm.crash()
    (held,) = await farm.claim()
    await farm.finish(held, EventType.FAILED, error_code="engine_error", error="it broke")
    job = replay(await farm.events())[held.id]
    assert (job.crashes, job.attempts, job.error_code, job.error) == (1, 2, "engine_error", "it broke")


async def test_jobs_do_not_mix(farm: Farm) -> None:
    one, two = await farm.start(), await farm.start()
    await farm.finish(two)
    jobs = replay(await farm.events())
    assert (jobs[one.id].state, jobs[two.id].state) == (JobState.RUNNING, JobState.FINISHED)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("event", EventType)
async def test_after_a_loss_the_queues_word_stands_until_the_first_end(
    farm: Farm, state: JobState, event: EventType
) -> None:
    """F16: the record has moves that the queue lost; only an end, once recorded, is final."""
    held = await farm.start()
    first, claimed = await farm.events()
    job = replace(replay([first, claimed])[held.id], state=state)
    data = dict(first.data) | dict(claimed.data)
    late = Event("9-0", event, held.id, 9, data)
    if state in TERMINAL:
        with pytest.raises(IllegalMove):
            apply_after_loss(job, late)
    else:
        assert apply_after_loss(job, late).state is TRANSITIONS[event][1]
